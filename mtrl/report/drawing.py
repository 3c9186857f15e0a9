"""What all figures of a report have in common: style, colours, curves with intervals, rows and grids of panels."""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter
from numpy.typing import NDArray

from mtrl.report.comparison import Comparison, Method
from mtrl.report.statistics import Array, Estimate, mean_curve, mean_of_present

# Okabe and Ito (2008), tellable apart with any colour vision, without its yellow, which is too pale for lines. Black
# is the baseline's. Line styles repeat the distinction for print.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY = "#888888"
MOST = len(COLOURS)
"""So many methods share a pair of axes."""
VECTOR_STEPS = "vector steps (one environment step in every task)"
READING = "Dotted: reached by only some of a method's runs."
_STYLES = ("-", "-", "--", "-.", "-", "--", "-.")


@dataclass(frozen=True)
class Picture:
    """A figure of a report; its files' name, the question it answers, and a caption that says how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure

    def save(self, folder: Path, prefix: str = "") -> bytes:
        """Writes PNG and PDF, whose names begin with the prefix, and returns the PNG; the same bytes each time."""
        png = folder / f"{prefix}{self.name}.png"
        with style():
            self.figure.savefig(png, dpi=130)
            self.figure.set_layout_engine("none")  # it is laid out now; doing it again takes as long as drawing
            self.figure.savefig(png.with_suffix(".pdf"), metadata={"CreationDate": None})
        return png.read_bytes()


def style() -> AbstractContextManager[None]:
    """Names are shown as they are written (no ``$`` formulas), and PDFs hold text that journals accept."""
    return matplotlib.rc_context(
        {
            "text.parse_math": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "pdf.fonttype": 42,
            "figure.constrained_layout.use": True,
        }
    )


def drawn(pictures: Iterable[Picture | None]) -> list[Picture]:
    """The pictures that there are; where they are made one by one, in this `style`."""
    with style():
        return [picture for picture in pictures if picture is not None]


Rows = tuple[Array, Array]
"""Curves of several runs at the same places: these places ``[S]``, and values ``[n, S]``, NaN where a run has none."""


def aligned(series: Sequence[tuple[Array, Array]], where: Array | None = None) -> Rows | None:
    """Curves of several runs at given places, or at those of any; interpolated, NaN where a run did not get."""
    if not series:
        return None
    where = np.unique(np.concatenate([x for x, _ in series])) if where is None else where
    return where, np.stack([np.interp(where, x, y, np.nan, np.nan) for x, y in series])


def curve(
    axes: Axes, rows: Rows, seed: int, colour: str, style: str, *, label: str | None = None, band: bool = True
) -> None:
    """Draws the mean of several runs and its interval, dotted where not every run got."""
    where, values = rows
    mean = mean_of_present(values)
    marker = "o" if np.isfinite(mean).sum() < 3 else None  # else a single evaluation would not be seen
    everyone: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(values))
    axes.plot(where, np.where(everyone, mean, np.nan), color=colour, ls=style, lw=1.8, label=label, marker=marker)
    inside = everyone & np.append(everyone[1:], True) & np.insert(everyone[:-1], 0, True)
    axes.plot(where, np.where(inside, np.nan, mean), color=colour, ls=":", lw=1.2)
    if band:
        _, low, high = mean_curve(values, np.random.default_rng(seed))
        axes.fill_between(where, low, high, color=colour, alpha=0.15, lw=0)


def curves(axes: Axes, comparison: Comparison, title: str, rows_of: Callable[[Method], Rows | None]) -> None:
    """Draws a curve for each method that has one; the first panel of a figure that has a method names it."""
    axes.set_title(title, fontsize=9)
    named = {label for panel in axes.figure.axes for label in panel.get_legend_handles_labels()[1]}
    for method in selected(comparison):
        if (rows := rows_of(method)) is not None:
            label = None if method.name in named else method.name
            curve(axes, rows, comparison.seed, *look(comparison, method.name), label=label)


def selected(comparison: Comparison) -> list[Method]:
    """The methods that one pair of axes can hold: all, or the baseline and the best."""
    methods = [method for method in comparison.methods if method.runs]
    if len(methods) <= MOST:
        return methods
    others = [method for method in methods if method.name != comparison.baseline and method.seeds]
    best = sorted(others, key=lambda method: -method.scores.mean())[: MOST - 1]
    names = {comparison.baseline, *(method.name for method in best)}
    return [method for method in methods if method.name in names]


def selection(comparison: Comparison) -> str:
    """Says which methods are `selected`, where not all are."""
    count = sum(bool(method.runs) for method in comparison.methods)
    return "" if count <= MOST else f"Of {count} methods, {comparison.baseline} and the {MOST - 1} best are drawn."


def look(comparison: Comparison, name: str) -> tuple[str, str]:
    """A method's colour and line style, the same in every figure."""
    names = [method.name for method in selected(comparison)]
    if name not in names:
        return GREY, "-"
    place = names.index(name) + (comparison.baseline not in names)  # it is the first
    return COLOURS[place % MOST], _STYLES[place % MOST]


def label_progress(figure: Figure, what: str, parallel: int) -> None:
    """Labels the horizontal axes: how far training is; where one of that is several environment steps, these below."""
    short = EngFormatter(sep="")
    both = FuncFormatter(lambda step, _: f"{short(step)}\n{short(step * parallel)}")
    for axes in figure.axes:
        axes.xaxis.set_major_formatter(both if parallel > 1 else short)
    label = what + "; below, environment steps" * (parallel > 1)  # of which twelve letters are an inch wide
    figure.supxlabel(textwrap.fill(label, int(12 * figure.get_figwidth())), fontsize=10)


def over_training(figure: Figure, comparison: Comparison) -> Figure:
    """`label_progress` of a comparison's runs."""
    label_progress(figure, comparison.progress, comparison.parallel)
    return figure


def picture_over_training(
    comparison: Comparison, figure: Figure, name: str, title: str, caption: str
) -> Picture | None:
    """A picture of curves over training, under a legend of all its panels; None where none was drawn."""
    if not any(axes.lines for axes in figure.axes):
        return None
    over_training(figure, comparison)
    names = [str(label) for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    columns = int(figure.get_figwidth() / (0.6 + 0.09 * max(map(len, names), default=0)))
    figure.legend(loc="outside upper center", ncols=min(max(columns, 1), 4))
    return Picture(name, title, f"{caption} {selection(comparison)}", figure)


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """A row for each name, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def in_lines(name: str) -> str:
    """A method's name as a small panel has room for it: a long one is broken between its options."""
    return textwrap.fill(name, 26, break_long_words=False, break_on_hyphens=False)


def rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes with a row for each name."""
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(names)))
    label_rows(axes := figure.add_subplot(), names)
    return figure, axes


def scores(axes: Axes, row: float, values: Array, colour: str, size: float, *intervals: tuple[Estimate, float]) -> None:
    """Draws in a row the mean as a circle, intervals as bars with their widths, and below it a tick for each seed."""
    for estimate, width in intervals:
        if not math.isnan(estimate.low):
            ends = [estimate.low, estimate.high]
            axes.plot(ends, [row, row], color=colour, lw=width, solid_capstyle="butt", alpha=0.8)
    axes.plot(values, np.full(len(values), row + 0.28), "|", color=GREY, ms=size - 1)
    axes.plot(intervals[0][0].value, row, "o", color=colour, mec="white", ms=size, zorder=3)


def panels(
    count: int, columns: int, size: tuple[float, float], more: tuple[float, float], *, sharex: bool = False
) -> tuple[Figure, list[Axes], int]:
    """A figure of panels of a size (inches), the panels, and how many are side by side: at most so many.

    Lines are as even as can be: six panels of five at most are three and three. The figure is wider and higher by some
    ``more``.
    """
    lines = math.ceil(count / columns)
    columns = math.ceil(count / lines)
    figure = Figure(figsize=(max(5.0, more[0] + size[0] * columns), size[1] * lines + more[1]))
    grid = figure.subplots(lines, columns, sharex=sharex, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    return figure, list(grid[:count]), columns
