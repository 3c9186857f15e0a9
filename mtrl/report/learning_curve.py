"""What a training run ends with: success rates or returns, a learning curve, where everything is, what to do next."""

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
from mtrl.run.record import GOALS, RunRecord, prefix_of, read_record
from mtrl.text import argument, number

_MAX_LABELLED = 10


def _draw(run: RunRecord, file: Path) -> None:
    """What policies are chosen by against vector steps, each task thin and their mean thick."""
    measure = run.summary.measure if run.summary else "success"
    goals = run.summary.evaluated_on if run.summary else ["training"]
    prefix = prefix_of(goals[0])
    entries = [e for e in read_metrics(run.directory / "metrics.jsonl") if f"{prefix}{measure}_mean" in e]
    steps = [entry["step"] for entry in entries]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for task in run.tasks:
        label = task if len(run.tasks) <= _MAX_LABELLED else None
        rates = np.array([e.get(f"{prefix}{measure}/{task}") for e in entries], float)
        axes.plot(steps, rates, marker=".", lw=1, alpha=0.7, label=label)
    if len(run.tasks) > 1:
        for own, style in zip(goals, ("-", ":"), strict=False):
            mean = np.array([e.get(f"{prefix_of(own)}{measure}_mean") for e in entries], float)
            axes.plot(steps, mean, style, color="black", marker="o", lw=2.5, label=f"mean over tasks, {GOALS[own]}")
    axes.set(
        ylabel=f"{NAMES[measure]} over {run.config['eval']['episodes']} episodes",
        ylim=(-0.03, 1.03) if measure == "success" else None,
        title=f"{run.benchmark}, {run.method}, seed {run.seed}",
    )
    drawing.label_progress(figure, drawing.VECTOR_STEPS, len(run.tasks))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(file, dpi=120)


NAMES = {"success": "success rate", "score": "normalised return", "return": "return"}
"""What measures are called."""


def print_measures(found: Mapping[str, Mapping[str, Any]], episodes: int, console: Console) -> None:
    """Prints what was measured by task, and the means, on each kind of goals (`Evaluation.summary`).

    Of success alone, a column for each kind of goals; else one for each measure.
    """
    columns: list[tuple[str, Mapping[str, Any], str]] = []
    for goals, own in found.items():
        measures = [measure for measure in NAMES if own.get(f"{measure}_mean") is not None]
        other = f", {GOALS[goals]}" if len(found) > 1 else ""
        columns += [(GOALS[goals] if measures == ["success"] else NAMES[m] + other, own, m) for m in measures]
    table = Table("task", *(Column(name, justify="right") for name, _, _ in columns))
    for task in columns[0][1][_plural(columns[0][2])]:
        table.add_row(task, *(_digits(own[_plural(measure)][task], measure) for _, own, measure in columns))
    table.add_section()
    means = (_digits(own[f"{measure}_mean"], measure) for _, own, measure in columns)
    table.add_row("mean over tasks", *means, style="bold")
    what = NAMES[columns[0][2]].capitalize()
    console.print(f"{what} over {episodes} episodes per task", highlight=False, soft_wrap=True)
    console.print(table)


def _plural(measure: str) -> str:
    return measure if measure == "success" else f"{measure}s"


def _digits(value: float, measure: str) -> str:
    return number(value) if measure == "return" else f"{value:.2f}"


def print_outcome(directory: Path, console: Console) -> None:
    """Prints a finished run's measures and writes ``learning_curve.png`` into its directory."""
    run = read_record(directory)
    picture = directory / "learning_curve.png"
    _draw(run, picture)
    summary = run.summary
    assert summary
    assert summary.final
    assert summary.best
    first, *others = summary.evaluated_on
    found = {first: asdict(summary.final)} | {goals: asdict(summary.final)[goals] for goals in others}
    print_measures(found, summary.episodes_per_evaluation, console)
    said = [
        f"{summary.steps:,} vector steps ({summary.transitions:,} transitions, {summary.updates:,} updates) "
        f"in {summary.seconds / 60:.1f} min; best of {summary.best.of_evaluations} evaluations: "
        f"{_digits(summary.best.value, summary.measure)} at step {summary.best.step:,}",
        f"learning curve   {picture}",
        f"run directory    {directory}",
        f"try next         python scripts/evaluate.py {argument('run', directory)}",
    ]
    if first != "seeded":
        said.append("                 python scripts/train.py benchmark=mt10 combiner=pcgrad")
    print(*said, sep="\n", file=console.file)  # rich would change some names
