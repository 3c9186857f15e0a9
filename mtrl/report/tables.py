"""Tables, as CSV with every digit and as Markdown for people; and those of every comparison."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mtrl.report.comparison import Comparison
from mtrl.report.runs import Metrics, Run
from mtrl.report.statistics import Estimate

Cell = str | int | float | Estimate | None
Item = TypeVar("Item")

_ESCAPES = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;", "\n": " "})


@dataclass(frozen=True)
class Table:
    """A table: columns, and rows in which None is an empty cell; paragraphs of its note are an empty line apart."""

    name: str
    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""

    @classmethod
    def of(
        cls, name: str, title: str, items: Iterable[Item], columns: Mapping[str, Callable[[Item], Cell]], note: str = ""
    ) -> "Table":
        """A row for each item; what each column reads of it stands beside the column's name."""
        return cls(name, title, list(columns), [[read(item) for read in columns.values()] for item in items], note)

    def csv(self) -> str:
        """Comma-separated values; an estimate takes three columns: value, low and high."""
        columns: list[list[Cell]] = []
        for name, *cells in zip(self.header, *self.rows, strict=True):
            columns.append([name, *(cell.value if isinstance(cell, Estimate) else cell for cell in cells)])
            if any(isinstance(cell, Estimate) for cell in cells):
                columns += ([f"{name} {end}", *(getattr(cell, end, None) for cell in cells)] for end in ("low", "high"))
        file = io.StringIO()
        rows = zip(*columns, strict=True)
        csv.writer(file, lineterminator="\n").writerows(["" if _empty(cell) else cell for cell in row] for row in rows)
        return file.getvalue()

    def markdown(self) -> str:
        """A Markdown table with its title and note."""
        lines = [self.header, ["---"] * len(self.header), *([text_of(cell) for cell in row] for row in self.rows)]
        table = "\n".join(f"| {' | '.join(cell.translate(_ESCAPES) for cell in line)} |" for line in lines)
        return f"## {self.title}\n\n{table}\n" + (f"\n{self.note}\n" if self.note else "")

    def columns(self, title: str, names: Sequence[str]) -> "Table":
        """The table of some columns alone."""
        chosen = [self.header.index(name) for name in names]
        return Table(self.name, title, list(names), [[row[index] for index in chosen] for row in self.rows])


def text_of(cell: Cell) -> str:
    """A cell for people: few digits, a dash where there is nothing."""
    if _empty(cell.value if isinstance(cell, Estimate) else cell):
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if 1000 <= abs(cell) < 1e9 else f"{cell:z.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _empty(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def paired_table(comparison: Comparison) -> Table:
    """Each method against the baseline."""
    return Table.of(
        "paired_differences",
        f"Differences to {comparison.baseline}, paired by seed",
        comparison.paired,
        {
            "method": lambda paired: paired.method,
            "paired seeds": lambda paired: paired.seeds,
            "difference": lambda paired: paired.difference,
            "p": lambda paired: paired.p_value,
            "adjusted p": lambda paired: paired.adjusted_p_value,
            "detectable": lambda paired: paired.detectable,
            "probability of improvement": lambda paired: paired.improvement,
            "verdict": lambda paired: paired.verdict,
        },
        f"Of the mean over tasks: {comparison.score}. p: two-sided sign-flip permutation test, exact up to 16 seeds; "
        "adjusted for the number of methods (Holm, 1979). Detectable: how large a difference has to be for as many "
        "seeds to show it four times in five, before adjustment. Probability of improvement: how "
        f"often a run of the method beats a run of {comparison.baseline} on a task, a tie counting half. Intervals "
        "resample whole seeds.",
    )


def cost_table(comparison: Comparison, note: str) -> Table:
    """What each method cost; the note says what the times and the memory are of."""
    times = {method.name: method.durations for method in comparison.methods}

    def quantile(name: str, q: float) -> float:
        return float(np.quantile(times[name], q)) if len(times[name]) else math.nan

    return Table.of(
        "cost",
        "Cost",
        comparison.methods,
        {
            "method": lambda method: method.name,
            "runs": lambda method: len(method.runs),
            f"seconds per {comparison.interval}, median": lambda method: quantile(method.name, 0.5),
            "lower quartile": lambda method: quantile(method.name, 0.25),
            "upper quartile": lambda method: quantile(method.name, 0.75),
            f"relative to {comparison.baseline}": (
                lambda method: quantile(method.name, 0.5) / (quantile(comparison.baseline, 0.5) or math.nan)
            ),
            "peak memory, GiB": lambda method: method.peak_memory("process_gib"),
            "peak GPU memory, GiB": lambda method: method.peak_memory("gpu_gib"),
        },
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
    """Every run, with columns for what it is and for what it logged last; these are empty where it logged nothing."""
    scored = {run.directory for run in comparison.compared}

    def logged(read: Callable[[Metrics], Cell]) -> Callable[[Run], Cell]:
        return lambda run: read(run.metrics) if len(run.metrics.steps) else None

    return Table.of(
        "runs",
        "Runs",
        comparison.runs,
        {
            "run": lambda run: str(run.directory),
            **what,
            "seed": lambda run: str(run.seed),
            "state": lambda run: "finished" if run.summary else "unfinished",
            **{name: logged(read) for name, read in last.items()},
            "seconds": logged(lambda metrics: float(metrics.seconds[-1])),
            "scored": lambda run: "yes" if run.directory in scored else "no",
        },
    )
