"""Can linear scalarization explore the Pareto front?

``python scripts/linear_mtl.py data=FILE targets=[3,4,5] rank=1``
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.config_store import ConfigStore
from matplotlib.figure import Figure
from omegaconf import MISSING
from rich.console import Console
from rich.table import Table

from mtrl import combiners
from mtrl.errors import InputError, RunError
from mtrl.linear import data as regression_data
from mtrl.linear import linear
from mtrl.linear.linear import Array, Problem, Verdict
from mtrl.run.files import write_atomically, write_text
from scripts.entry import hydra_main, run

SIMULATED_RECORDS = 6000


@dataclass
class LinearConfig:
    """The configuration of ``scripts/linear_mtl.py``; ``configs/linear_mtl.yaml`` holds the defaults."""

    data: str = MISSING
    outputs: int | None = None
    targets: list[int] | None = None
    rank: int = MISSING
    point: list[float] | None = None
    surface: int = MISSING
    weightings: int = MISSING
    combiners: list[str] = field(default_factory=list)
    starts: int = MISSING
    epochs: int = MISSING
    learning_rate: float = MISSING
    seed: int = MISSING
    out: str | None = None
    debug: bool = False

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for key in ("rank", "surface", "weightings", "starts", "epochs"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}: expected an integer of at least 1, got {getattr(self, key)}")
        if self.seed < 0:
            raise InputError(f"seed: expected an integer of at least 0, got {self.seed}")


ConfigStore.instance().store("linear_mtl_schema", LinearConfig)


@dataclass(frozen=True)
class Point:
    """One model: where it comes from, and what it explains (``[k]``)."""

    source: str
    start: int | None
    explained: Array
    weights: Array | None = None


def load(config: LinearConfig) -> tuple[Problem, list[int]]:
    """The problem, and its targets as the user numbers them.

    Raises:
        InputError: if the data cannot be used, or a target does not exist.
    """
    if config.data == "simulated":
        try:
            from envs.metaworld.inverse_dynamics import inverse_dynamics

            inputs, outputs = inverse_dynamics(SIMULATED_RECORDS, config.seed)
        except ImportError as error:
            raise InputError(f"data=simulated needs Meta-World and MuJoCo ({error})") from error
    else:
        inputs, outputs = regression_data.load(config.data, config.outputs)
    available = outputs.shape[1]
    targets = config.targets or list(range(1, available + 1))
    for target in targets:
        if not 1 <= target <= available:
            raise InputError(f"targets: expected numbers from 1 to {available}, got {target}")
    if len(set(targets)) < len(targets):
        raise InputError(f"targets: one comes twice in {targets}")
    return linear.standardised(inputs, outputs[:, [target - 1 for target in targets]]), targets


def verdict_lines(verdict: Verdict, targets: Sequence[int], gramian: Array, rank: int) -> list[str]:
    """The verdict in words, with its evidence."""
    words = {True: "can fully explore", False: "cannot fully explore"}
    line = f"targets {', '.join(map(str, targets))}, rank {rank}: "
    if verdict.fully is None:
        return [
            f"{line}no criterion is known for whether linear scalarization explores the Pareto front: {verdict.reason}"
        ]
    lines = [f"{line}linear scalarization {words[verdict.fully]} the Pareto front: {verdict.reason}"]
    if verdict.flips is not None:
        negated = ", ".join(str(targets[i]) for i in verdict.flips) or "none"
        lines.append(f"sign flips: {negated}")
    if verdict.cycle is not None:
        matrix = gramian if rank == 1 else np.linalg.inv(gramian)
        closed = (*verdict.cycle, verdict.cycle[0])
        steps = [
            f"{targets[i]} -({matrix[i, j] / np.sqrt(matrix[i, i] * matrix[j, j]):+.3f})-" for i, j in pairwise(closed)
        ]
        lines.append(f"offending cycle: {' '.join(steps)} {targets[closed[-1]]} (the product of its signs is negative)")
    return lines


def certificate_line(problem: Problem, errors: Sequence[float]) -> str:
    """Whether a point of the user's can be reached.

    Raises:
        InputError: if it has the wrong length, or is no better than predicting 0.
    """
    if len(errors) != len(problem.gramian):
        raise InputError(f"point: expected {len(problem.gramian)} mean squared errors, got {len(errors)}")
    explained = problem.variances - np.array(errors)
    if (explained < 0).any():
        raise InputError(f"point: the mean squared error of predicting 0 is 1; got {max(errors)}")
    found = linear.certificate(problem.gramian, explained, tolerance=1e-3)
    line = f"point {list(errors)}: "
    if found.outcome == "infeasible":
        return f"{line}infeasible; at most {found.reach:.3f} of what it explains can be explained"
    if found.reach > 1.001:
        surface = problem.variances - found.reach * explained
        line += f"not on the surface, where {np.array2string(surface, precision=4, separator=', ')} is "
    weights = "" if found.weights is None else np.array2string(found.weights, precision=4, separator=", ")
    return (
        line
        + {
            "reachable": f"reachable by linear scalarization with weights {weights}",
            "unreachable": (
                f"unreachable: stationary for the weights {weights} alone, for which another model scores "
                f"{found.shortfall:.1%} more"
            ),
            "dominated": "not Pareto-optimal: no non-negative weights make it stationary",
        }[found.outcome]
    )


def points(config: LinearConfig, problem: Problem, console: Console) -> Iterator[Point]:
    """Models on the surface, those of linear scalarization, and those that optimizers end at."""
    k = len(problem.gramian)
    for explained in linear.feasible(problem.gramian, config.rank, config.surface, config.seed):
        yield Point("surface", None, explained)
    weights = linear.random_weights(k, config.weightings, config.seed)
    for weight, explained in zip(weights, linear.scalarized(problem.gramian, config.rank, weights), strict=True):
        yield Point("scalarization", None, explained, weight)
    for name in config.combiners:
        for start in range(config.starts):
            combiner = combiners.make(name.removesuffix("_ub"), k, seed=config.seed + start)
            try:
                explained = linear.descend(
                    problem,
                    config.rank,
                    combiner,
                    by_representation=name.endswith("_ub"),
                    epochs=config.epochs,
                    learning_rate=config.learning_rate,
                    seed=config.seed + start,
                )
            except RunError as error:
                console.print(f"{name}, start {start + 1}: {error}", highlight=False)
                continue
            yield Point(name, start + 1, explained)


def write_csv(file: Path, found: Sequence[Point], problem: Problem, targets: Sequence[int]) -> None:
    """One model per line: source, start, mean squared errors, balance, weights."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", "start", *(f"mse_{t}" for t in targets), "balance", *(f"weight_{t}" for t in targets)])
    for point in found:
        errors = [f"{error:.6g}" for error in problem.variances - point.explained]
        weights = [""] * len(targets) if point.weights is None else [f"{weight:.6g}" for weight in point.weights]
        balance = float(linear.balance(point.explained, problem.gramian))
        writer.writerow([point.source, point.start or "", *errors, f"{balance:.6g}", *weights])
    write_text(file, text.getvalue())


def picture(found: Sequence[Point], problem: Problem, targets: Sequence[int], title: str) -> Figure:
    """The errors of the first three targets (or of two) in space: the surface, scalarization, and each optimizer.

    The surface sets the limits. How many points of a source are beyond them is in the legend.
    """
    shown = min(len(targets), 3)
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes: Any = figure.add_subplot(**({"projection": "3d", "computed_zorder": False} if shown == 3 else {}))
    errors = {
        source: np.array([problem.variances - point.explained for point in found if point.source == source])[:, :shown]
        for source in dict.fromkeys(point.source for point in found)
    }
    low, high = errors["surface"].min(0), errors["surface"].max(0)
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
    for number, (source, points_) in enumerate(errors.items()):
        inside = ((points_ >= low) & (points_ <= high)).all(1)
        label = source if inside.all() else f"{source} ({(~inside).sum()} of {len(inside)} outside)"
        style: dict[str, Any] = {"s": 60, "color": f"C{number - 1}", "edgecolors": "black", "depthshade": False}
        if source == "surface":
            style = {"s": 3, "color": "0.8"}
        elif source == "scalarization":
            style = {"s": 8, "color": "C0"}
        if shown < 3:
            style.pop("depthshade", None)
        axes.scatter(*points_[inside].T, label=label, **style)
    for axis, target, limits in zip("xyz", targets, zip(low, high, strict=True), strict=False):
        axes.set(**{f"{axis}label": f"mean squared error of target {target}", f"{axis}lim": limits})
    axes.set_title(title)
    if shown == 3:
        axes.view_init(elev=20, azim=-150)  # from the side of the small errors
    axes.legend(loc="upper left", bbox_to_anchor=(1.05, 1))
    return figure


def report(found: Sequence[Point], problem: Problem, targets: Sequence[int], rank: int, console: Console) -> None:
    """The most balanced model of every source."""
    table = Table(title="The most balanced model of each: worst target's share of what it could explain alone")
    table.add_column("source")
    for target in targets:
        table.add_column(f"mse {target}", justify="right")
    table.add_column("balance", justify="right")
    certified = rank == 1 and np.linalg.matrix_rank(problem.gramian, hermitian=True) == len(targets) > 1
    if certified:
        table.add_column("reach", justify="right")
        table.add_column("by linear scalarization")
    for source in dict.fromkeys(point.source for point in found):
        explained = np.array([point.explained for point in found if point.source == source])
        shares = linear.balance(explained, problem.gramian)
        best = explained[shares.argmax()]
        cells = [source, *(f"{error:.4f}" for error in problem.variances - best), f"{shares.max():.3f}"]
        if certified:
            found_here = linear.certificate(problem.gramian, best.clip(0), tolerance=1e-3)
            cells += [f"{found_here.reach:.2f}", found_here.outcome]
        table.add_row(*cells)
    console.print(table)


def explore(config: LinearConfig) -> None:
    """Prints the verdict and writes ``points.csv`` and ``surface.png``."""
    console = Console(highlight=False, soft_wrap=True)
    problem, targets = load(config)
    if config.data == "simulated":
        console.print("data: simulated, inverse dynamics of Meta-World's arm by MuJoCo")
    for name in config.combiners:
        combiners.get(name.removesuffix("_ub"))
    for line in verdict_lines(linear.verdict(problem.gramian, config.rank), targets, problem.gramian, config.rank):
        console.print(line)
    if config.point is not None:
        if config.rank != 1:
            raise InputError("point: the certificate is for rank=1")
        console.print(certificate_line(problem, config.point))
    found = list(points(config, problem, console))
    name = f"linear-{Path(config.data).stem}-{'-'.join(map(str, targets))}-rank{config.rank}"
    out = Path(config.out or f"runs/{name}")
    out.mkdir(parents=True, exist_ok=True)
    report(found, problem, targets, config.rank, console)
    write_csv(out / "points.csv", found, problem, targets)
    console.print(f"points   {out / 'points.csv'}")
    if len(targets) > 1:
        figure = picture(found, problem, targets, f"{Path(config.data).stem}, rank {config.rank}")
        write_atomically(
            out / "surface.png", lambda stream: figure.savefig(stream, dpi=120, format="png", bbox_inches="tight")
        )
        console.print(f"figure   {out / 'surface.png'}")


main = hydra_main(LinearConfig, "linear_mtl", explore)

if __name__ == "__main__":
    run(main)
