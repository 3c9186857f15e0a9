"""What a training run ends with: success rates, a learning curve, where everything is, what to do next."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table

from mtrl.report import drawing
from mtrl.run.metrics import read_metrics
from mtrl.run.record import GOALS, PREFIXES, RunRecord, read_record
from mtrl.text import argument

_MAX_LABELLED = 10


def _draw(run: RunRecord, file: Path) -> None:
    """Success against vector steps, each task thin and their mean thick."""
    goals = run.summary.evaluated_on if run.summary else ["training"]
    prefix = PREFIXES[goals[0]]
    entries = [e for e in read_metrics(run.directory / "metrics.jsonl") if f"{prefix}success_mean" in e]
    steps = [entry["step"] for entry in entries]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for task in run.tasks:
        label = task if len(run.tasks) <= _MAX_LABELLED else None
        rates = np.array([e.get(f"{prefix}success/{task}") for e in entries], float)
        axes.plot(steps, rates, marker=".", lw=1, alpha=0.7, label=label)
    if len(run.tasks) > 1:
        for own, style in zip(goals, ("-", ":"), strict=False):
            mean = np.array([e.get(f"{PREFIXES[own]}success_mean") for e in entries], float)
            axes.plot(steps, mean, style, color="black", marker="o", lw=2.5, label=f"mean over tasks, {GOALS[own]}")
    axes.set(
        ylabel=f"success rate over {run.config['eval']['episodes']} episodes",
        ylim=(-0.03, 1.03),
        title=f"{run.benchmark}, {run.method}, seed {run.seed}",
    )
    drawing.label_progress(figure, drawing.VECTOR_STEPS, len(run.tasks))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(file, dpi=120)


def print_success(found: Mapping[str, Mapping[str, Any]], episodes: int, console: Console) -> None:
    """Prints success rates (in [0, 1]) by task, and their mean, on each kind of goals (`Evaluation.summary`)."""
    table = Table("task", *(Column(GOALS[goals], justify="right") for goals in found))
    for task in next(iter(found.values()))["success"]:
        table.add_row(task, *(f"{own['success'][task]:.2f}" for own in found.values()))
    table.add_section()
    table.add_row("mean over tasks", *(f"{own['success_mean']:.2f}" for own in found.values()), style="bold")
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
    first, *others = summary.evaluated_on
    found = {first: asdict(summary.final)} | {goals: asdict(summary.final)[goals] for goals in others}
    print_success(found, summary.episodes_per_evaluation, console)
    said = [
        f"{summary.steps:,} vector steps ({summary.transitions:,} transitions, {summary.updates:,} updates) "
        f"in {summary.seconds / 60:.1f} min; best of {summary.best.of_evaluations} evaluations: "
        f"{summary.best.success_mean:.2f} at step {summary.best.step:,}",
        f"learning curve   {picture}",
        f"run directory    {directory}",
        f"try next         python scripts/evaluate.py {argument('run', directory)}",
        "                 python scripts/train.py benchmark=mt10 combiner=pcgrad",
    ]
    print(*said, sep="\n", file=console.file)  # rich would change some names
