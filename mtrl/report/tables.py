"""Tables, as CSV with every digit and as Markdown for people; and those of every comparison."""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtrl.report.comparison import Comparison
from mtrl.report.runs import Metrics, Run
from mtrl.report.statistics import Array, Estimate

Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its files.
        title: what a reader sees.
        header: the columns.
        rows: cells by row; None is an empty cell.
        note: how to read it; paragraphs are an empty line apart.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""

    def csv(self) -> str:
        """Comma-separated values; an estimate takes three columns: value, low and high."""
        wide = [any(isinstance(row[column], Estimate) for row in self.rows) for column in range(len(self.header))]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            cell
            for name, estimate in zip(self.header, wide, strict=True)
            for cell in ([name, f"{name} low", f"{name} high"] if estimate else [name])
        )
        for row in self.rows:
            writer.writerow(
                value
                for cell, estimate in zip(row, wide, strict=True)
                for value in (_values(cell) if estimate else [_number(cell)])
            )
        return file.getvalue()

    def markdown(self) -> str:
        """A Markdown table with its title and note."""
        lines = [self.header, ["---"] * len(self.header), *([text_of(cell) for cell in row] for row in self.rows)]
        table = "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)
        return f"## {self.title}\n\n{table}\n" + (f"\n{self.note}\n" if self.note else "")

    def columns(self, title: str, names: Sequence[str]) -> "Table":
        """The table of some columns alone."""
        chosen = [self.header.index(name) for name in names]
        return Table(self.name, title, list(names), [[row[index] for index in chosen] for row in self.rows])


def text_of(cell: Cell) -> str:
    """A cell for people: few digits, a dash where there is nothing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    if isinstance(cell, Estimate):
        return "-" if math.isnan(cell.value) else str(cell)
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _values(cell: Cell) -> list[Cell]:
    if isinstance(cell, Estimate):
        return [_number(cell.value), _number(cell.low), _number(cell.high)]
    return [_number(cell), "", ""]


def _number(cell: Cell) -> Cell:
    return "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else cell


def _escaped(text: str) -> str:
    for character, escape in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(character, escape)
    return text


# -------------------------------------------------------------------------------------------- of every comparison


def paired_table(comparison: Comparison) -> Table:
    """Each method against the baseline."""
    return Table(
        "paired_differences",
        f"Differences to {comparison.baseline}, paired by seed",
        ["method", "paired seeds", "difference", "p", "adjusted p", "probability of improvement", "verdict"],
        [
            [
                paired.method,
                paired.seeds,
                paired.difference,
                paired.p_value,
                paired.adjusted_p_value,
                paired.improvement,
                paired.verdict,
            ]
            for paired in comparison.paired
        ],
        f"Of the mean over tasks: {comparison.score}. p: two-sided sign-flip permutation "
        "test, exact up to 16 seeds; adjusted for the number of methods (Holm, 1979). Probability of improvement: how "
        f"often a run of the method beats a run of {comparison.baseline} on a task, a tie counting half. Intervals "
        "resample whole seeds.",
    )


def cost_table(comparison: Comparison, note: str) -> Table:
    """What each method cost; the note says what the times and the memory are of."""
    times = {method.name: method.durations for method in comparison.methods}
    base = _quantile(times[comparison.baseline], 0.5)
    return Table(
        "cost",
        "Cost",
        [
            "method",
            "runs",
            f"seconds per {comparison.interval}, median",
            "lower quartile",
            "upper quartile",
            f"relative to {comparison.baseline}",
            "peak memory, GiB",
            "peak GPU memory, GiB",
        ],
        [
            [
                method.name,
                len(method.runs),
                *(_quantile(times[method.name], q) for q in (0.5, 0.25, 0.75)),
                _quantile(times[method.name], 0.5) / base,
                method.peak_memory("process_gib"),
                method.peak_memory("gpu_gib"),
            ]
            for method in comparison.methods
        ],
        f"Wall-clock time. {note}",
    )


def configuration_table(comparison: Comparison) -> Table:
    """Every key in which runs differ, by method."""
    names = [method.name for method in comparison.methods]
    return Table(
        "configuration",
        "Differences in configuration",
        ["key", *names],
        [[key, *(values[name] for name in names)] for key, values in comparison.configuration.items()],
        "Every key in which two runs differ, other than the seed and where and how a run was computed.",
    )


def runs_table(
    comparison: Comparison, what: Mapping[str, Callable[[Run], Cell]], last: Mapping[str, Callable[[Metrics], Cell]]
) -> Table:
    """Every run.

    Args:
        comparison: whose runs.
        what: columns that say what a run is.
        last: columns that say what it logged last, read only where it logged something.
    """
    scored = {run.directory for run in comparison.compared}
    last = {**last, "seconds": lambda metrics: float(metrics.seconds[-1])}
    return Table(
        "runs",
        "Runs",
        ["run", *what, "seed", "state", *last, "scored"],
        [
            [
                str(run.directory),
                *(read(run) for read in what.values()),
                str(run.seed),
                "finished" if run.summary else "unfinished",
                *(read(run.metrics) if len(run.metrics.steps) else None for read in last.values()),
                "yes" if run.directory in scored else "no",
            ]
            for run in comparison.runs
        ],
    )


def _quantile(values: Array, q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else math.nan
