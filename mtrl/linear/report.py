"""The models that were found: as a file, a table and a picture."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Column, Table

from mtrl.linear.certificate import certificate
from mtrl.linear.data import Array, Problem
from mtrl.linear.surface import balance


@dataclass(frozen=True)
class Models:
    """Models of one source.

    Attributes:
        source: ``surface``, ``scalarization``, or the combiner that ended there.
        explained: ``[m, k]``, the explained mean squares.
        weights: ``[m, k]``, those of linear scalarization.
        starts: ``[m]``, the combiner's start, from 1.
    """

    source: str
    explained: Array
    weights: Array | None = None
    starts: Sequence[int] | None = None


def points_csv(found: Sequence[Models], problem: Problem, targets: Sequence[int]) -> str:
    """One model per line: source, start, mean squared errors, balance, weights."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    write(["source", "start", *(f"mse_{t}" for t in targets), "balance", *(f"weight_{t}" for t in targets)])
    for models in found:
        shares = balance(models.explained, problem.gramian)
        for i, explained in enumerate(models.explained):
            weights = [""] * len(targets) if models.weights is None else [f"{w:.6g}" for w in models.weights[i]]
            numbers = [f"{number:.6g}" for number in (*(problem.variances - explained), shares[i])]
            write([models.source, models.starts[i] if models.starts else "", *numbers, *weights])
    return text.getvalue()


def table(found: Sequence[Models], problem: Problem, targets: Sequence[int], rank: int) -> Table:
    """The most balanced model of every source."""
    certified = rank == 1 and np.linalg.matrix_rank(problem.gramian, hermitian=True) == len(targets) > 1
    title = "The most balanced model of each: worst target's share of what it could explain alone"
    names = [*(f"mse {target}" for target in targets), "balance", *(["reach"] if certified else [])]
    drawn = Table("source", *(Column(name, justify="right") for name in names), title=title)
    if certified:
        drawn.add_column("by linear scalarization")
    for models in found:
        shares = balance(models.explained, problem.gramian)
        best = models.explained[shares.argmax()]
        cells = [models.source, *(f"{error:.4f}" for error in problem.variances - best), f"{shares.max():.3f}"]
        if certified:
            judged = certificate(problem.gramian, best.clip(0), tolerance=1e-3)
            cells += [f"{judged.reach:.2f}", judged.outcome]
        drawn.add_row(*cells)
    return drawn


def picture(found: Sequence[Models], problem: Problem, targets: Sequence[int], title: str) -> Figure:
    """The errors of the first three targets (or of two) in space, by source; the surface comes first.

    The surface sets the limits. How many points of a source are beyond them is in the legend.
    """
    shown = min(len(targets), 3)
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes: Any = figure.add_subplot(**({"projection": "3d", "computed_zorder": False} if shown == 3 else {}))
    errors = [(problem.variances - models.explained)[:, :shown] for models in found]
    low, high = errors[0].min(0), errors[0].max(0)
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
    styles = {"surface": {"s": 3, "color": "0.8"}, "scalarization": {"s": 8, "color": "C0"}}
    for number, (models, points) in enumerate(zip(found, errors, strict=True)):
        inside = ((points >= low) & (points <= high)).all(1)
        label = models.source if inside.all() else f"{models.source} ({(~inside).sum()} of {len(inside)} outside)"
        optimizer = {"s": 60, "color": f"C{number - 1}", "edgecolors": "black"}
        if shown == 3:
            optimizer["depthshade"] = False
        axes.scatter(*points[inside].T, label=label, **styles.get(models.source, optimizer))
    for axis, target, limits in zip("xyz", targets, zip(low, high, strict=True), strict=False):
        axes.set(**{f"{axis}label": f"mean squared error of target {target}", f"{axis}lim": limits})
    axes.set_title(title)
    if shown == 3:
        axes.view_init(elev=20, azim=-150)  # from the side of the small errors
    axes.legend(loc="upper left", bbox_to_anchor=(1.05, 1))
    return figure
