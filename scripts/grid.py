"""The papers' protocol: a grid, the best cell by validation, its test metrics over several new seeds.

``python scripts/grid.py benchmark=multi_digits combiner=mgda grid=gama seeds=5``
"""

import itertools
import multiprocessing
import os
import shlex
import sys
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from omegaconf import MISSING, OmegaConf
from rich.console import Console

from mtrl.errors import InputError, Interrupted, RunError
from mtrl.report.statistics import Estimate, mean_over_seeds
from mtrl.report.tables import Table
from mtrl.run.directory import read_summary
from mtrl.run.files import write_atomically, write_text
from mtrl.run.signals import interruption, on_stop_request
from mtrl.supervised.measures import mean_rank
from scripts.entry import SUPERVISED_CONFIGS, one_line_errors
from scripts.methods import load_plugins, plugins_in
from scripts.supervised import SupervisedConfig, method_name, train

Cell = Mapping[str, Any]
"""Values by key: one choice along every axis of the grid."""


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
    seeds: int = MISSING
    seeds_per_cell: int = MISSING
    workers: int = MISSING
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for key in ("seeds", "seeds_per_cell", "workers"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}: expected an integer of at least 1, got {getattr(self, key)}")


ConfigStore.instance().store("grid_schema", GridConfig)


@dataclass(frozen=True)
class Tried:
    """What the runs of a cell came to on the validation split.

    Attributes:
        cell: its choices.
        validation: the mean over its runs, by metric key; None where one failed.
        score: the mean of the models' selection scores; None where a run failed or metrics cannot be averaged.
        seconds: of all its runs.
        failure: what went wrong.
    """

    cell: Cell
    validation: dict[str, float] | None
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


def configuration(overrides: Sequence[str], cell: Cell, **values: Any) -> SupervisedConfig:
    """The configuration of one run of a cell."""
    config = compose("supervised", [*overrides, *(f"{key}={value}" for key, value in cell.items())])
    config.merge_with(values)
    checked = OmegaConf.to_object(config)
    assert isinstance(checked, SupervisedConfig)
    return checked


def cells(axes: Axes, config: SupervisedConfig, overrides: Sequence[str]) -> list[Cell]:
    """Every combination; a key that the command line sets has that value alone.

    Raises:
        InputError: if nothing is left to choose.
    """
    chosen = dict(axes.axes)
    for name in (config.combiner["name"], config.method["name"]):
        chosen |= axes.methods.get(name, {})
    chosen = {key: values for key, values in chosen.items() if key not in keys(overrides)}
    if not all(chosen.values()) or not chosen:
        raise InputError("the grid has no cells: every key of it is set on the command line, or has no values")
    return [dict(zip(chosen, values, strict=True)) for values in itertools.product(*chosen.values())]


def attempt(config: SupervisedConfig) -> str:
    """Trains; says why it failed where it did, and nothing else."""
    try:
        train(config, quiet=True)
    except RunError as error:
        return str(error)
    return ""


def attempt_in_worker(config: SupervisedConfig) -> str:
    """`attempt`, ending the process where it was asked to stop."""
    try:
        return attempt(config)
    except Interrupted as error:
        os._exit(128 + error.signal_number)  # no exception ends an executor's worker


def run_all(configs: Sequence[SupervisedConfig], workers: int) -> Generator[str]:
    """Trains one after the other or several at once; yields the failures (or nothing) in order.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after the runs have written checkpoints.
        RunError: if a worker is killed.
    """
    if workers == 1:
        yield from map(attempt, configs)
        return

    signals: list[int] = []  # looked at between waits: what a handler raises can leave an executor's lock taken
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        with on_stop_request(signals.append):
            for future in [pool.submit(attempt_in_worker, config) for config in configs]:
                while not (signals or future.done()):
                    wait([future], timeout=0.1)
                if signals:
                    raise interruption(signals[0])
                yield future.result()
            if signals:
                raise interruption(signals[0])
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise RunError("a worker was killed; the same command goes on from there") from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def judge(cell: Cell, directories: Sequence[Path], failures: Sequence[str]) -> Tried:
    """What a cell's runs came to."""
    summaries = [read_summary(directory) for directory in directories]
    found = [summary for summary in summaries if summary is not None]
    seconds = sum(summary["seconds"] for summary in found)
    if any(failures) or len(found) < len(directories):
        return Tried(cell, None, None, seconds, "; ".join(failure for failure in failures if failure))
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
    whole = [one for one in tried if one.validation is not None]
    if not whole:
        raise RunError(f"every cell failed, the first one thus: {tried[0].failure}")
    if all(one.score is not None for one in whole):
        return max(whole, key=lambda one: one.score or 0.0)
    ranks = mean_rank({str(number): one.validation or {} for number, one in enumerate(whole)}, higher_is_better)
    return whole[min(range(len(whole)), key=lambda number: ranks[str(number)])]


def cell_table(tried: Sequence[Tried], chosen: Tried, metrics: Mapping[str, Any]) -> Table:
    """Every cell that was tried."""
    header = [
        *tried[0].cell,
        *(f"validation {key} ({m['name']})" for key, m in metrics.items()),
        "score",
        "seconds",
        "outcome",
    ]
    return Table(
        "cells",
        "Every cell",
        header,
        [
            [
                *(str(value) for value in one.cell.values()),
                *((one.validation or {}).get(key) for key in metrics),
                one.score,
                one.seconds,
                "chosen" if one is chosen else one.failure,
            ]
            for one in tried
        ],
        "Validation metrics are means over a cell's seeds. The test split was not read.",
    )


def final_table(estimates: Mapping[str, Estimate], metrics: Mapping[str, Any], seeds: Sequence[int]) -> Table:
    """What the chosen cell reaches."""
    return Table(
        "test",
        "The chosen cell on the test split",
        ["task", "metric", "mean"],
        [[key, metrics[key]["name"], estimate] for key, estimate in estimates.items()],
        f"Over {len(seeds)} seeds ({seeds[0]} to {seeds[-1]}) that the grid did not use, with 95% bootstrap intervals.",
    )


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
                if one.validation is not None:
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
    console = Console(highlight=False, soft_wrap=True)
    base = configuration(overrides, {})
    tried_cells = cells(grid.grid, base, overrides)
    name = f"grid-{base.benchmark['name']}-{'-'.join(base.tasks or ['all'])}-{method_name(base)}"
    out = Path(grid.out or f"runs/{name}")

    def runs(folder: str, cell: Cell, seeds: Sequence[int], test: bool) -> list[SupervisedConfig]:
        directory = out / folder / ",".join(f"{key}={value}" for key, value in cell.items())
        return [
            configuration(overrides, cell, seed=seed, test=test, run_dir=f"{directory}/seed{seed}") for seed in seeds
        ]

    search_seeds = range(base.seed, base.seed + grid.seeds_per_cell)
    planned = [runs("cells", cell, search_seeds, False) for cell in tried_cells]
    tried: list[Tried] = []
    with closing(run_all([config for one in planned for config in one], grid.workers)) as outcomes:
        for number, (cell, configs) in enumerate(zip(tried_cells, planned, strict=True), 1):
            failures = [next(outcomes) for _ in configs]
            tried.append(judge(cell, [Path(str(config.run_dir)) for config in configs], failures))
            words = " ".join(f"{key}={value}" for key, value in cell.items())
            values = " ".join(f"{key} {value:.4f}" for key, value in (tried[-1].validation or {}).items())
            console.print(f"[{number}/{len(tried_cells)}] {words}: {values or tried[-1].failure}", markup=False)

    finished = (read_summary(Path(str(configs[0].run_dir))) for configs in planned)
    metrics: dict[str, Any] = next((summary["metrics"] for summary in finished if summary is not None), {})
    chosen = best(tried, {key: metric["higher_is_better"] for key, metric in metrics.items()})
    seeds = range(search_seeds.stop, search_seeds.stop + grid.seeds)
    final = runs("final", chosen.cell, seeds, True)
    with closing(run_all(final, grid.workers)) as outcomes:
        for failure in outcomes:
            if failure:
                raise RunError(f"the chosen cell failed with another seed: {failure}")
    summaries = [read_summary(Path(str(config.run_dir))) or {} for config in final]
    test = {key: [summary["test"][key] for summary in summaries] for key in metrics}
    random = np.random.default_rng(0)
    estimates = {key: mean_over_seeds(np.array(values), random) for key, values in test.items()}

    tables = [cell_table(tried, chosen, metrics), final_table(estimates, metrics, seeds)]
    for table in tables:
        write_text(out / f"{table.name}.csv", table.csv())
    command = shlex.join([*overrides, *(f"{key}={value}" for key, value in chosen.cell.items())])
    text = f"# {name}\n\nChosen: `python scripts/supervised.py {command}`\n\n"
    write_text(out / "report.md", text + "\n".join(table.markdown() for table in reversed(tables)))
    draw(out / "grid.png", tried, chosen, test, estimates, metrics)
    console.print(f"chosen   {command}", markup=False)
    for key, estimate in estimates.items():
        console.print(f"test     {key} {metrics[key]['name']} {estimate}", markup=False)
    console.print(f"report   {out / 'report.md'}, {out / 'cells.csv'}, {out / 'grid.png'}; runs {out / 'final'}")


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
