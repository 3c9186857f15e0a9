"""Compares the methods of a set of runs: ``python scripts/compare.py runs=runs/sweep out=report``."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtrl.errors import InputError
from mtrl.ranges import Count, Seed
from mtrl.report.page import write_report
from mtrl.report.runs import load_runs, metric_keys
from mtrl.report.section import Section
from mtrl.report.supervised import compare_supervised, supervised_section
from mtrl.report.tables import text_of
from mtrl.report.training import compare_training, training_section
from mtrl.text import unquoted
from scripts.entry import hydra_main, run


@dataclass
class CompareConfig:
    """The configuration of this script."""

    runs: str = MISSING
    out: str = "report"
    baseline: str = "unitary"
    metric: str | None = None
    task_metric: str | None = None
    last_k: Count = 5
    tuning_seeds: list[Seed] = field(default_factory=list)
    seed: Seed = 0
    debug: bool = False


def compare_runs(options: CompareConfig) -> None:
    """Writes the report, and prints each section's headline, verdicts and warnings."""
    reported = sections(options)
    words = [word.partition("=") for word in sys.argv]
    page = write_report(reported, Path(options.out), [f"{key}{is_}{unquoted(value)}" for key, is_, value in words])
    console = Console()
    for section in reported:
        table = Table(title=Text(section.headline.title))
        for index, name in enumerate(section.headline.header):
            table.add_column(Text(name), justify="right" if index else "left")
        for row in section.headline.rows:
            table.add_row(*(Text(text_of(cell)) for cell in row))
        console.print(table, *map(Text, section.comparison.verdicts()), sep="\n")
        for line in section.comparison.warnings:
            console.print(Text(f"note: {line}", style="yellow"))
    print(f"report   {page}")


def sections(options: CompareConfig) -> list[Section]:
    """The report for the kind of runs that there are."""
    metric, task_metric = metric_keys(Path(options.runs), options.metric, options.task_metric)
    runs, left_out = load_runs(Path(options.runs), metric, task_metric)
    given: dict[str, Any] = {"baseline": options.baseline, "seed": options.seed, "left_out": left_out}
    if runs[0].kind == "rl":
        given |= {"last_k": options.last_k, "tuning_seeds": options.tuning_seeds}
        return [training_section(compare_training(runs, metric=metric, **given))]
    defaults = CompareConfig()
    for key in ("metric", "task_metric", "last_k", "tuning_seeds"):
        if getattr(options, key) != getattr(defaults, key):
            raise InputError(
                f"{key} is for runs of reinforcement learning: supervised runs are compared by their test metrics"
            )
    return [supervised_section(comparison) for comparison in compare_supervised(runs, **given)]


main = hydra_main(
    CompareConfig, "compare", compare_runs, about=__doc__, runs="name the folder with the runs: runs=DIRECTORY"
)

if __name__ == "__main__":
    run(main)
