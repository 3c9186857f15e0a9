"""The papers' protocol: a grid, the best cell by validation, its test metrics over several new seeds.

``python scripts/grid.py benchmark=multi_digits combiner=mgda grid=gama seeds=5``: all keys but those of
``configs/supervised/grid.yaml`` are those of ``scripts/supervised.py``, and grids are in ``configs/supervised/grid``.
"""

import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from omegaconf import MISSING, OmegaConf

from mtrl.errors import InputError, Interrupted, RunError
from mtrl.measures import mean_rank
from mtrl.ranges import Count, check_fields
from mtrl.report.statistics import Array, mean_over_seeds
from mtrl.report.tables import Table
from mtrl.run.files import write_atomically, write_text
from mtrl.run.record import Metric, Summary, read_record
from mtrl.sweep.supervision import Supervision
from mtrl.text import quoted
from scripts.entry import SUPERVISED_CONFIGS, as_typed, helped, one_line_errors, refuse_flags, refuse_misread
from scripts.methods import read_methods
from scripts.supervised import SupervisedConfig, method_name, store_options

_LETTERS_ABREAST = 35
"""How many letters the labels of one axis may have before they would overlap."""
Cell = Mapping[str, Any]
"""Values by key: one choice along every axis of the grid."""
Choices = Mapping[str, Sequence[Any]]
"""All values to try, by key."""


@dataclass
class Axes:
    """A grid, as it ships in ``configs/supervised/grid``."""

    axes: dict[str, list[Any]] = field(default_factory=dict)
    """The values to try, by key of ``scripts/supervised.py``."""
    methods: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Further axes, by the name of the combiner or method that has these keys."""


@dataclass
class GridConfig:
    """What ``scripts/grid.py`` has beside the keys of ``scripts/supervised.py``; ``grid.yaml`` holds the defaults."""

    grid: Axes = field(default_factory=Axes)
    seeds: Count = MISSING
    seeds_per_cell: Count = MISSING
    workers: Count = MISSING
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_fields(self)


ConfigStore.instance().store("grid_schema", GridConfig)


@dataclass(frozen=True)
class Tried:
    """What the runs of a cell came to on the validation split."""

    cell: Cell
    validation: Mapping[str, float]  # the mean over its runs, by metric key; empty where one failed
    score: float | None  # the mean of the models' selection scores; None where a run failed or metrics have no mean
    seconds: float  # of all its runs
    failure: str = ""  # what went wrong


def configured(overrides: Sequence[str]) -> tuple[GridConfig, list[str]]:
    """The grid's configuration, and what is left for ``scripts/supervised.py``."""
    own = [one for one, key in keys(overrides).items() if key in GridConfig.__dataclass_fields__]
    return composed("grid", own), [one for one in overrides if one not in own]


def keys(overrides: Sequence[str]) -> dict[str, str]:
    """What each override of the command line sets."""
    return {one.input_line or "": one.key_or_group for one in OverridesParser.create().parse_overrides([*overrides])}


def composed(name: str, overrides: Sequence[str], cell: Cell | None = None) -> Any:
    """The configuration of ``grid`` or ``supervised``, where a cell is chosen."""
    return OmegaConf.to_object(compose(name, [*overrides, *settings(cell or {})]))


def settings(cell: Cell) -> list[str]:
    """The overrides that choose a cell."""
    return [f"{key}={value}" for key, value in cell.items()]


def open_axes(axes: Axes, config: SupervisedConfig, overrides: Sequence[str]) -> Choices:
    """The values to try by key, of the keys that the command line leaves open; InputError where none is."""
    chosen = dict(axes.axes)
    for name in (config.combiner["name"], config.method["name"]):
        chosen |= axes.methods.get(name, {})
    chosen = {key: values for key, values in chosen.items() if key not in keys(overrides).values()}
    if not all(chosen.values()) or not chosen:
        raise InputError("the grid has no cells: every key of it is set on the command line, or has no values")
    return chosen


def cells(axes: Choices) -> list[Cell]:
    """Every combination of the axes' values, the last key's varying fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def train(
    out: Path, overrides: Sequence[str], axes: Choices, seeds: Sequence[int], *, test: bool, workers: int
) -> list[Summary | str]:
    """Sweeps over all combinations of the axes' values and seeds, these varying fastest, and tells how each did.

    Returns what the runs in ``<out>/<key>=<value>,.../seed<seed>`` came to; of one that could not go on, the reason.

    Raises:
        InputError: if a run could not start.
        Interrupted: on SIGINT or SIGTERM, after the runs have written checkpoints.
        RunError: if a run ended in any other way.
    """
    cell = ",".join(f"{key}=${{{key}{'.name' if key in ('benchmark', 'combiner', 'method') else ''}}}" for key in axes)
    command = [
        *(one for one, key in keys(overrides).items() if key not in ("seed", "test", "run_dir")),
        *(f"{key}={','.join(map(str, values))}" for key, values in {**axes, "seed": seeds}.items()),
        f"test={test}",
        f"run_dir={quoted(f'{out}/{cell}/seed${{seed}}')}",
        f"hydra.sweep.dir={quoted(out)}",
    ]
    if workers > 1:
        command += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"]
    script = str(Path(__file__).with_name("supervised.py"))
    found: dict[int, Summary | str] = {}
    with Supervision([sys.executable, script, "-m", *command], out / ".sweep", quiet=True) as sweep:
        for member in sweep:
            if member.error == "InputError":
                raise InputError(member.reason)
            outcome, found[member.number] = member.outcome, member.reason or ""
            if member.status == "finished" and (summary := read_record(Path(member.run_dir or "")).summary):
                found[member.number] = summary
                measures = summary.test or summary.validation
                outcome = " ".join(f"{key} {measures[key]:.4f}" for key in summary.metrics)
            print(sweep.count, ": ".join(filter(None, [member.label, outcome])), flush=True)
    if sweep.signal is not None:
        raise Interrupted(sweep.signal)
    for member in sweep.members.values():
        if member.status != "finished" and member.error != "RunError":
            raise RunError(f"{sweep.told(member)}; the same command goes on from there")
    if sweep.code:
        raise RunError(f"the launcher gave up (exit code {sweep.code}); the same command goes on from there")
    return [run for _, run in sorted(found.items())]


def judge(cell: Cell, runs: Sequence[Summary | str]) -> Tried:
    """What a cell's runs came to."""
    found = [run for run in runs if isinstance(run, Summary)]
    seconds = sum(run.seconds for run in found)
    if len(found) < len(runs):
        return Tried(cell, {}, None, seconds, "; ".join(run for run in runs if isinstance(run, str)))
    validation = {key: float(np.mean([run.validation[key] for run in found])) for key in found[0].metrics}
    scores = [list(by.scores.values()) for run in found if (by := run.selection) and by.by != "per_metric"]
    return Tried(cell, validation, float(np.mean(scores)) if scores else None, seconds)


def best(tried: Sequence[Tried], higher_is_better: Mapping[str, bool]) -> Tried:
    """The cell with the best validation score, by mean rank where metrics have no mean; RunError if all failed."""
    whole = [one for one in tried if one.validation]
    if not whole:
        raise RunError(f"every cell failed, the first one thus: {tried[0].failure}")
    if all(one.score is not None for one in whole):
        return max(whole, key=lambda one: one.score or 0.0)
    ranks = mean_rank({str(number): one.validation for number, one in enumerate(whole)}, higher_is_better)
    return whole[int(min(ranks, key=lambda number: ranks[number]))]


def cell_table(tried: Sequence[Tried], chosen: Tried, metrics: Mapping[str, Metric]) -> Table:
    """Every cell that was tried."""
    validation = [f"validation {key} ({metric.name})" for key, metric in metrics.items()]
    header = [*chosen.cell, *validation, "score", "seconds", "outcome"]
    rows: list[list[Any]] = []
    for one in tried:
        outcome = "chosen" if one is chosen else one.failure
        rows.append([*map(str, one.cell.values()), *map(one.validation.get, metrics), one.score, one.seconds, outcome])
    note = "Validation metrics are means over a cell's seeds. The test split was not read."
    return Table("cells", "Every cell", header, rows, note)


def draw(tried: Sequence[Tried], chosen: Tried, test: Mapping[str, Array], final: Sequence[Any]) -> Figure:
    """One row per metric: validation of every cell along each axis, and the chosen cell's test metric."""
    labels = {axis: list(dict.fromkeys(str(one.cell[axis]) for one in tried)) for axis in chosen.cell}
    longest = {axis: max(map(len, own)) for axis, own in labels.items()}
    upright = {axis: longest[axis] for axis, own in labels.items() if len(own) * longest[axis] > _LETTERS_ABREAST}
    height = 2.2 * len(test) + 0.6 + 0.08 * max(upright.values(), default=0)
    figure = Figure(figsize=(3.2 * len(labels) + 2, height), layout="constrained")
    widths = [3] * len(labels) + [1]
    grid = figure.subplots(len(test), len(widths), squeeze=False, sharex="col", sharey="row", width_ratios=widths)
    for row, (key, name, estimate) in zip(grid, final, strict=True):
        for panel, (axis, own) in zip(row, labels.items(), strict=False):
            for one in tried:
                if one.validation:
                    style = {"color": "tab:red", "zorder": 3} if one is chosen else {"color": "0.5", "alpha": 0.7}
                    panel.scatter(own.index(str(one.cell[axis])), one.validation[key], **style)
            panel.set_xticks(range(len(own)), own, rotation=90 if axis in upright else 0)
            panel.set(xlim=(-0.5, len(own) - 0.5))
        row[0].set_ylabel(f"{key} {name}")
        last = row[-1]
        last.scatter([0] * len(test[key]), test[key], color="tab:blue", alpha=0.6)
        last.hlines(estimate.value, -0.3, 0.3, color="black")
        if np.isfinite(estimate.low):
            last.vlines(0.3, estimate.low, estimate.high, color="black")
        last.set(xlim=(-0.6, 0.6), xticks=[])
    for panel, below in zip(grid[-1], [*labels, "seeds"], strict=True):
        panel.set_xlabel(below)
    grid[0][0].set_title("validation (red: the chosen cell)", loc="left", fontsize="medium")
    grid[0][-1].set_title("test", loc="left", fontsize="medium")
    return figure


def search(grid: GridConfig, overrides: Sequence[str]) -> None:
    """Trains every cell, chooses one, trains it again with other seeds, and writes the report."""
    base: SupervisedConfig = composed("supervised", overrides)
    axes = open_axes(grid.grid, base, overrides)
    for cell in cells(axes):
        composed("supervised", overrides, cell)  # what cannot be is refused before anything is trained
    name = f"grid-{base.benchmark['name']}-{'-'.join(base.tasks or ['all'])}-{method_name(base)}"
    out, n = Path(grid.out or f"runs/{name}"), grid.seeds_per_cell
    runs = train(out / "cells", overrides, axes, range(base.seed, base.seed + n), test=False, workers=grid.workers)
    tried = [judge(cell, runs[i * n : (i + 1) * n]) for i, cell in enumerate(cells(axes))]
    metrics = next((run.metrics for run in runs if isinstance(run, Summary)), {})
    chosen = best(tried, {key: metric.higher_is_better for key, metric in metrics.items()})

    seeds = range(base.seed + n, base.seed + n + grid.seeds)
    only = {key: [value] for key, value in chosen.cell.items()}
    final = train(out / "final", overrides, only, seeds, test=True, workers=grid.workers)
    if failures := [run for run in final if isinstance(run, str)]:
        raise RunError(f"the chosen cell failed with another seed: {failures[0]}")
    reached = [run.test for run in final if isinstance(run, Summary) and run.test is not None]
    test = {key: np.array([measures[key] for measures in reached]) for key in metrics}
    random = np.random.default_rng(0)
    rows: list[list[Any]] = [[key, metrics[key].name, mean_over_seeds(values, random)] for key, values in test.items()]

    new = f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})"
    note = f"Over {new} that the grid did not use, with 95% bootstrap intervals."
    final_table = Table("test", "The chosen cell on the test split", ["task", "metric", "mean"], rows, note)
    tables = [final_table, cell_table(tried, chosen, metrics)]
    for table in tables:
        write_text(out / f"{table.name}.csv", table.csv())
    command = shlex.join([*overrides, *settings(chosen.cell)])
    text = f"# {name}\n\nChosen: `python scripts/supervised.py {command}`\n\n"
    write_text(out / "report.md", text + "\n".join(table.markdown() for table in tables))
    figure = draw(tried, chosen, test, rows)
    write_atomically(out / "grid.png", lambda stream: figure.savefig(stream, dpi=120, format="png"))
    print(f"chosen   python scripts/supervised.py {command}")
    for row in rows:
        print("test    ", *row)
    print(f"report   {out / 'report.md'}, {out / 'cells.csv'}, {out / 'grid.png'}; runs {out / 'final'}")


def main() -> None:
    """Reads the command line and searches."""
    if helped(f"{__doc__}", Path(SUPERVISED_CONFIGS) / "grid.yaml"):
        return
    read_methods()
    store_options()
    debug = "debug=true" in sys.argv
    with one_line_errors(debug=debug), initialize_config_dir(SUPERVISED_CONFIGS, version_base="1.3"):
        refuse_flags(sys.argv[1:])
        refuse_misread(sys.argv[1:], sweeping=True)
        search(*configured(as_typed(sys.argv[1:])))


if __name__ == "__main__":
    main()
