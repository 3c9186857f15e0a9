"""The papers' protocol: a grid, the best cell by validation, its test metrics over several new seeds.

``python scripts/grid.py benchmark=multi_digits combiner=mgda grid=gama seeds=5``
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

from mtrl.errors import InputError, RunError
from mtrl.measures import mean_rank
from mtrl.ranges import Count, check_fields
from mtrl.report.statistics import Estimate, mean_over_seeds
from mtrl.report.tables import Table
from mtrl.run.directory import read_summary
from mtrl.run.files import write_atomically, write_text
from mtrl.run.signals import interruption
from mtrl.sweep.launch import quoted
from mtrl.sweep.member import Member
from mtrl.sweep.supervision import Supervision
from scripts.entry import SUPERVISED_CONFIGS, one_line_errors
from scripts.methods import load_plugins, plugins_in
from scripts.supervised import SupervisedConfig, method_name

SCRIPT = str(Path(__file__).with_name("supervised.py"))
_GROUPS = ("benchmark", "combiner", "method")
Cell = Mapping[str, Any]
"""Values by key: one choice along every axis of the grid."""
Choices = Mapping[str, Sequence[Any]]
"""All values to try, by key."""


@dataclass
class Axes:
    """A grid, as it ships in ``configs/supervised/grid``.

    Attributes:
        axes: the values to try, by key of ``scripts/supervised.py``.
        methods: further axes, by the name of the combiner or method that has these keys.
    """

    axes: dict[str, list[Any]] = field(default_factory=dict)
    methods: dict[str, dict[str, list[Any]]] = field(default_factory=dict)


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
    """What the runs of a cell came to on the validation split.

    Attributes:
        cell: its choices.
        validation: the mean over its runs, by metric key; empty where one failed.
        score: the mean of the models' selection scores; None where a run failed or metrics cannot be averaged.
        seconds: of all its runs.
        failure: what went wrong.
    """

    cell: Cell
    validation: Mapping[str, float]
    score: float | None
    seconds: float
    failure: str = ""


def configured(overrides: Sequence[str]) -> tuple[GridConfig, list[str]]:
    """The grid's configuration, and what is left for ``scripts/supervised.py``."""
    own = [one for one, key in zip(overrides, keys(overrides), strict=True) if key in GridConfig.__dataclass_fields__]
    grid = OmegaConf.to_object(compose("grid", own))
    assert isinstance(grid, GridConfig)
    return grid, [one for one in overrides if one not in own]


def keys(overrides: Sequence[str]) -> list[str]:
    """What each override of the command line sets."""
    return [override.key_or_group for override in OverridesParser.create().parse_overrides(list(overrides))]


def configuration(overrides: Sequence[str], cell: Cell) -> SupervisedConfig:
    """The configuration of a cell's runs."""
    chosen = [f"{key}={value}" for key, value in cell.items()]
    config = OmegaConf.to_object(compose("supervised", [*overrides, *chosen]))
    assert isinstance(config, SupervisedConfig)
    return config


def open_axes(axes: Axes, config: SupervisedConfig, overrides: Sequence[str]) -> Choices:
    """The values to try by key, of the keys that the command line leaves open.

    Raises:
        InputError: if nothing is left to choose.
    """
    chosen = dict(axes.axes)
    for name in (config.combiner["name"], config.method["name"]):
        chosen |= axes.methods.get(name, {})
    chosen = {key: values for key, values in chosen.items() if key not in keys(overrides)}
    if not all(chosen.values()) or not chosen:
        raise InputError("the grid has no cells: every key of it is set on the command line, or has no values")
    return chosen


def cells(axes: Choices) -> list[Cell]:
    """Every combination of the axes' values, the last key's varying fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def train(
    out: Path, overrides: Sequence[str], axes: Choices, seeds: Sequence[int], split: str, workers: int
) -> list[Member]:
    """Sweeps over all combinations of the axes' values and seeds, these varying fastest, and tells how each did.

    Args:
        out: gets the run directories, ``<key>=<value>,.../seed<seed>``.
        overrides: of all runs.
        axes: values by key.
        seeds: of every combination.
        split: what is told of a run: ``validation``, and the test split is not read, or ``test``.
        workers: how many runs train at once.

    Returns:
        The runs in order. Those that could not go on, for a loss that is not finite, say, are among them.

    Raises:
        InputError: if a run could not start.
        Interrupted: on SIGINT or SIGTERM, after the runs have written checkpoints.
        RunError: if a run ended in any other way.
    """
    cell = ",".join(f"{key}=${{{key}{'.name' if key in _GROUPS else ''}}}" for key in axes)
    command = [
        *(one for one, key in zip(overrides, keys(overrides), strict=True) if key not in ("seed", "test", "run_dir")),
        *(f"{key}={','.join(map(str, values))}" for key, values in axes.items()),
        f"seed={','.join(map(str, seeds))}",
        f"test={split == 'test'}",
        f"run_dir={quoted(f'{out}/{cell}/seed${{seed}}')}",
        f"hydra.sweep.dir={quoted(out)}",
    ]
    if workers > 1:
        command += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={workers}"]
    with Supervision([sys.executable, SCRIPT, "-m", *command], out / ".sweep", quiet=True) as sweep:
        for member in sweep:
            if member.error == "InputError":
                raise InputError(member.reason)
            told = [member.label, measured(member, split)]
            print(sweep.count, ": ".join(filter(None, told)), flush=True)
    if sweep.signal is not None:
        raise interruption(sweep.signal)
    for member in sweep.members.values():
        if not member.completed and member.error != "RunError":
            raise RunError(f"{sweep.told(member)}; the same command goes on from there")
    if sweep.code:
        raise RunError(f"the launcher gave up (exit code {sweep.code}); the same command goes on from there")
    return [member for _, member in sorted(sweep.members.items())]


def summary_of(run: Member) -> dict[str, Any] | None:
    """The summary of a run, where it has one."""
    return read_summary(Path(run.run_dir)) if run.completed and run.run_dir else None


def measured(run: Member, split: str) -> str:
    """The metrics of a run, or what else became of it."""
    summary = summary_of(run)
    return " ".join(f"{key} {summary[split][key]:.4f}" for key in summary["metrics"]) if summary else run.outcome


def judge(cell: Cell, runs: Sequence[Member]) -> Tried:
    """What a cell's runs came to."""
    found = [summary for summary in map(summary_of, runs) if summary is not None]
    seconds = sum(summary["seconds"] for summary in found)
    if len(found) < len(runs):
        return Tried(cell, {}, None, seconds, "; ".join(run.reason for run in runs if run.reason))
    metrics = found[0]["metrics"]
    validation = {key: float(np.mean([summary["validation"][key] for summary in found])) for key in metrics}
    scores = [summary["selection"]["scores"] for summary in found]
    score = None if found[0]["selection"]["by"] == "per_metric" else float(np.mean([list(s.values()) for s in scores]))
    return Tried(cell, validation, score, seconds)


def best(tried: Sequence[Tried], higher_is_better: Mapping[str, bool]) -> Tried:
    """The cell with the best validation score; by mean rank over the metrics where these cannot be averaged.

    Raises:
        RunError: if every cell failed.
    """
    whole = [one for one in tried if one.validation]
    if not whole:
        raise RunError(f"every cell failed, the first one thus: {tried[0].failure}")
    if all(one.score is not None for one in whole):
        return max(whole, key=lambda one: one.score or 0.0)
    ranks = mean_rank({str(number): one.validation for number, one in enumerate(whole)}, higher_is_better)
    return whole[min(range(len(whole)), key=lambda number: ranks[str(number)])]


def cell_table(tried: Sequence[Tried], chosen: Tried, metrics: Mapping[str, Any]) -> Table:
    """Every cell that was tried."""
    validation = [f"validation {key} ({metric['name']})" for key, metric in metrics.items()]
    rows: list[list[Any]] = []
    for one in tried:
        values = [one.validation.get(key) for key in metrics]
        outcome = "chosen" if one is chosen else one.failure
        rows.append([*map(str, one.cell.values()), *values, one.score, one.seconds, outcome])
    header = [*chosen.cell, *validation, "score", "seconds", "outcome"]
    note = "Validation metrics are means over a cell's seeds. The test split was not read."
    return Table("cells", "Every cell", header, rows, note)


def final_table(estimates: Mapping[str, Estimate], metrics: Mapping[str, Any], seeds: Sequence[int]) -> Table:
    """What the chosen cell reaches."""
    rows = [[key, metrics[key]["name"], estimate] for key, estimate in estimates.items()]
    seeds_told = f"{len(seeds)} seeds ({seeds[0]} to {seeds[-1]})"
    note = f"Over {seeds_told} that the grid did not use, with 95% bootstrap intervals."
    return Table("test", "The chosen cell on the test split", ["task", "metric", "mean"], rows, note)


def draw(
    file: Path,
    tried: Sequence[Tried],
    chosen: Tried,
    test: Mapping[str, Sequence[float]],
    estimates: Mapping[str, Estimate],
    metrics: Mapping[str, Any],
) -> None:
    """One row per metric: validation of every cell along each axis, and the chosen cell's test metric."""
    axes = list(tried[0].cell)
    figure = Figure(figsize=(3.2 * len(axes) + 2, 2.6 * len(test)), layout="constrained")
    grid = figure.subplots(len(test), len(axes) + 1, squeeze=False, sharey="row", width_ratios=[3] * len(axes) + [1])
    for row, key in zip(grid, test, strict=True):
        for panel, axis in zip(row, axes, strict=False):
            labels = list(dict.fromkeys(str(one.cell[axis]) for one in tried))
            for one in tried:
                if one.validation:
                    style = {"color": "tab:red", "zorder": 3} if one is chosen else {"color": "0.5", "alpha": 0.7}
                    panel.scatter(labels.index(str(one.cell[axis])), one.validation[key], **style)
            panel.set_xticks(range(len(labels)), labels)
            panel.set(xlabel=axis, xlim=(-0.5, len(labels) - 0.5))
        row[0].set_ylabel(f"{key} {metrics[key]['name']}")
        last, estimate = row[-1], estimates[key]
        last.scatter([0] * len(test[key]), test[key], color="tab:blue", alpha=0.6)
        last.hlines(estimate.value, -0.3, 0.3, color="black")
        if np.isfinite(estimate.low):
            last.vlines(0.3, estimate.low, estimate.high, color="black")
        last.set(xlim=(-0.6, 0.6), xticks=[], xlabel="seeds")
    for panel, title in ((grid[0][0], "validation (red: the chosen cell)"), (grid[0][-1], "test")):
        panel.set_title(title, loc="left", fontsize="medium")
    write_atomically(file, lambda stream: figure.savefig(stream, dpi=120, format="png"))


def search(grid: GridConfig, overrides: Sequence[str]) -> None:
    """Trains every cell, chooses one, trains it again with other seeds, and writes the report."""
    base = configuration(overrides, {})
    axes = open_axes(grid.grid, base, overrides)
    tried_cells = cells(axes)
    for cell in tried_cells:
        configuration(overrides, cell)  # what cannot be is refused before anything is trained
    name = f"grid-{base.benchmark['name']}-{'-'.join(base.tasks or ['all'])}-{method_name(base)}"
    out = Path(grid.out or f"runs/{name}")
    search_seeds = range(base.seed, base.seed + grid.seeds_per_cell)
    runs = train(out / "cells", overrides, axes, search_seeds, "validation", grid.workers)
    tried = [judge(cell, runs[i * len(search_seeds) :][: len(search_seeds)]) for i, cell in enumerate(tried_cells)]
    metrics: dict[str, Any] = next((summary["metrics"] for summary in map(summary_of, runs) if summary), {})
    chosen = best(tried, {key: metric["higher_is_better"] for key, metric in metrics.items()})

    seeds = range(search_seeds.stop, search_seeds.stop + grid.seeds)
    chosen_axes = {key: [value] for key, value in chosen.cell.items()}
    final = train(out / "final", overrides, chosen_axes, seeds, "test", grid.workers)
    if failures := [run.reason for run in final if not run.completed]:
        raise RunError(f"the chosen cell failed with another seed: {failures[0]}")
    test = {key: [(summary_of(run) or {})["test"][key] for run in final] for key in metrics}
    random = np.random.default_rng(0)
    estimates = {key: mean_over_seeds(np.array(values), random) for key, values in test.items()}

    tables = [cell_table(tried, chosen, metrics), final_table(estimates, metrics, seeds)]
    for table in tables:
        write_text(out / f"{table.name}.csv", table.csv())
    command = shlex.join([*overrides, *(f"{key}={value}" for key, value in chosen.cell.items())])
    text = f"# {name}\n\nChosen: `python scripts/supervised.py {command}`\n\n"
    write_text(out / "report.md", text + "\n".join(table.markdown() for table in reversed(tables)))
    draw(out / "grid.png", tried, chosen, test, estimates, metrics)
    print(f"chosen   {command}")
    for key, estimate in estimates.items():
        print(f"test     {key} {metrics[key]['name']} {estimate}")
    print(f"report   {out / 'report.md'}, {out / 'cells.csv'}, {out / 'grid.png'}; runs {out / 'final'}")


def main() -> None:
    """Reads the command line and searches."""
    with (
        one_line_errors(debug="debug=true" in sys.argv),
        initialize_config_dir(SUPERVISED_CONFIGS, version_base="1.3"),
    ):
        load_plugins(plugins_in(sys.argv[1:]))
        search(*configured(sys.argv[1:]))


if __name__ == "__main__":
    main()
