"""What a training run ends with: success rates, a learning curve, where everything is, what to do next."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table

from mtrl.run.metrics import read_metrics
from mtrl.run.record import RunRecord, read_record

_MAX_LABELLED = 10


def _draw(run: RunRecord, file: Path) -> None:
    """Success against vector steps, each task thin and their mean thick."""
    entries = [e for e in read_metrics(run.directory / "metrics.jsonl") if "eval/success_mean" in e]
    steps = [entry["step"] for entry in entries]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for task in run.tasks:
        label = task if len(run.tasks) <= _MAX_LABELLED else None
        axes.plot(steps, [e[f"eval/success/{task}"] for e in entries], marker=".", lw=1, alpha=0.7, label=label)
    if len(run.tasks) > 1:
        mean = [entry["eval/success_mean"] for entry in entries]
        axes.plot(steps, mean, color="black", marker="o", lw=2.5, label="mean over tasks")
    axes.set(
        xlabel="vector steps (one environment step in every task)",
        ylabel=f"success rate over {run.config['eval']['episodes']} episodes",
        ylim=(-0.03, 1.03),
        title=f"{run.benchmark}, {run.method}, seed {run.seed}",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(file, dpi=120)


def print_success(rates: Mapping[str, float], mean: float, episodes: int, console: Console) -> None:
    """Prints a table of success rates (in [0, 1]) by task, and their mean."""
    table = Table("task", Column("success rate", justify="right"))
    for task, rate in rates.items():
        table.add_row(task, f"{rate:.2f}")
    table.add_section()
    table.add_row("mean over tasks", f"{mean:.2f}", style="bold")
    console.print(f"Success rate over {episodes} episodes per task", highlight=False, soft_wrap=True)
    console.print(table)


def print_outcome(directory: Path, console: Console) -> None:
    """Prints a finished run's success rates and writes ``learning_curve.png`` into its directory."""
    run = read_record(directory)
    picture = directory / "learning_curve.png"
    _draw(run, picture)
    summary = run.summary
    assert summary
    assert summary.final
    assert summary.best
    print_success(summary.final.success, summary.final.success_mean, summary.episodes_per_evaluation, console)
    console.print(
        f"{summary.steps:,} vector steps ({summary.transitions:,} transitions, {summary.updates:,} updates) "
        f"in {summary.seconds / 60:.1f} min; best of {summary.best.of_evaluations} evaluations: "
        f"{summary.best.success_mean:.2f} at step {summary.best.step:,}",
        f"learning curve   {picture}",
        f"run directory    {directory}",
        f"try next         python scripts/evaluate.py run={directory}",
        "                 python scripts/train.py benchmark=mt10 combiner=pcgrad",
        sep="\n",
        highlight=False,
        soft_wrap=True,
    )
