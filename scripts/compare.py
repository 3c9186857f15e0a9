"""Compares the methods of a set of runs: ``python scripts/compare.py runs=runs/sweep out=report``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtrl.errors import InputError
from mtrl.report.comparison import Comparison, TrainingComparison, compare
from mtrl.report.page import verdicts, write_report
from mtrl.report.runs import load_runs
from mtrl.report.supervised import compare_supervised
from mtrl.report.tables import tables, text_of
from scripts.entry import hydra_main, run


@dataclass
class CompareConfig:
    """The configuration of this script."""

    runs: str = MISSING
    out: str = "report"
    baseline: str = "unitary"
    metric: str = "eval/success_mean"
    task_metric: str = "eval/success/"
    last_k: int = 5
    seed: int = 0
    debug: bool = False

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for key, value, least in (("last_k", self.last_k, 1), ("seed", self.seed, 0)):
            if value < least:
                raise InputError(f"{key}: expected an integer of at least {least}, got {value}")


ConfigStore.instance().store("compare_schema", CompareConfig)


def compare_runs(options: CompareConfig) -> None:
    """Writes the report, and prints its verdicts and its first table."""
    runs, left_out = load_runs(Path(options.runs), options.metric, options.task_metric)
    comparisons: Sequence[Comparison]
    if runs[0].supervised:
        for key in ("metric", "task_metric", "last_k"):
            if getattr(options, key) != getattr(CompareConfig, key):
                raise InputError(
                    f"{key} is for runs of reinforcement learning: supervised runs are compared by their test metrics"
                )
        comparisons = compare_supervised(runs, baseline=options.baseline, seed=options.seed, left_out=left_out)
    else:
        trained = compare(
            runs,
            metric=options.metric,
            baseline=options.baseline,
            seed=options.seed,
            last_k=options.last_k,
            left_out=left_out,
        )
        comparisons = [trained]
    page = write_report(comparisons, Path(options.out), sys.argv)
    console = Console()
    for comparison in comparisons:
        show(comparison, console)
    console.print(f"report   {page}", highlight=False, markup=False, soft_wrap=True)


def show(comparison: Comparison, console: Console) -> None:
    """Prints a comparison's first table, verdicts and warnings."""
    numbers = tables(comparison)[0]
    if isinstance(comparison, TrainingComparison):
        title = f"{comparison.benchmark} at step {comparison.step:,}: {comparison.metric}"
        columns = ["method", "seeds", f"last {comparison.last_k}", "best"]
    else:
        title = f"{comparison.benchmark} ({', '.join(comparison.tasks)}): {comparison.score}"
        columns = ["method", "seeds", "gain, %", "mean rank"]
    shown = [numbers.header.index(name) for name in columns]
    table = Table(title=Text(title))
    for index in shown:
        table.add_column(Text(numbers.header[index]), justify="right" if index else "left")
    for row in numbers.rows:
        table.add_row(*(Text(text_of(row[index])) for index in shown))
    console.print(table)
    for line in verdicts(comparison):
        console.print(Text(line))
    for line in comparison.warnings:
        console.print(Text(f"note: {line}", style="yellow"))


main = hydra_main(CompareConfig, "compare", compare_runs, runs="name the folder with the runs: runs=DIRECTORY")

if __name__ == "__main__":
    run(main)
