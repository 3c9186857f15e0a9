"""What all figures of a report have in common: style, colours, curves with intervals, rows and grids of panels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from mtrl.report.comparison import Comparison, Method
from mtrl.report.statistics import Array, Estimate, mean_curve, mean_of_present

# Okabe and Ito (2008), tellable apart with any colour vision, without its yellow, which is too pale for lines. Black
# is the baseline's. Line styles repeat the distinction for print.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREY = "#888888"
MOST = len(COLOURS)
"""So many methods share a pair of axes."""
READING = "Dotted: reached by only some of a method's runs."
_STYLES = ("-", "-", "--", "-.", "-", "--", "-.")


@dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Attributes:
        name: of its files.
        title: what it answers.
        caption: how to read it.
        figure: the figure.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    def save(self, folder: Path, prefix: str = "") -> bytes:
        """Writes PNG and PDF, whose names begin with the prefix; the same figure gives the same bytes.

        Returns:
            The PNG.
        """
        png = folder / f"{prefix}{self.name}.png"
        with style():
            self.figure.savefig(png, dpi=130)
            self.figure.set_layout_engine("none")  # it is laid out now; doing it again takes as long as drawing
            self.figure.savefig(png.with_suffix(".pdf"), metadata={"CreationDate": None})
        return png.read_bytes()


@contextmanager
def style() -> Iterator[None]:
    """Names are shown as they are written (no ``$`` formulas), and PDFs hold text that journals accept."""
    with matplotlib.rc_context(
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
    ):
        yield


Rows = tuple[Array, Array]
"""Curves of several runs at the same places: these places ``[S]``, and values ``[n, S]``, NaN where a run has none."""


def aligned(series: Sequence[tuple[Array, Array]]) -> Rows:
    """Curves of several runs, interpolated between a run's own places; NaN where it did not get."""
    return at(np.unique(np.concatenate([x for x, _ in series])), series)


def at(where: Array, series: Sequence[tuple[Array, Array]]) -> Rows:
    """Curves of several runs at given places, as `aligned`."""
    return where, np.stack([np.interp(where, x, y, np.nan, np.nan) for x, y in series])


def curve(
    axes: Axes, rows: Rows, seed: int, colour: str, style: str, *, label: str | None = None, band: bool = True
) -> None:
    """Draws the mean of several runs and its interval, dotted where not every run got."""
    where, values = rows
    mean = mean_of_present(values)
    marker = "o" if np.isfinite(mean).sum() < 3 else None  # else a single evaluation would not be seen
    everyone: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(values))
    axes.plot(
        where, np.where(everyone, mean, np.nan), color=colour, linestyle=style, lw=1.8, label=label, marker=marker
    )
    inside = everyone & np.append(everyone[1:], True) & np.insert(everyone[:-1], 0, True)
    axes.plot(where, np.where(inside, np.nan, mean), color=colour, linestyle=":", lw=1.2)
    if band:
        _, low, high = mean_curve(values, np.random.default_rng(seed))
        axes.fill_between(where, low, high, color=colour, alpha=0.15, lw=0)


def curves(axes: Axes, comparison: Comparison, by_method: Mapping[str, Rows]) -> None:
    """Draws each method's curve; the first panel of a figure that has a method names it for the legend."""
    named = {label for panel in axes.figure.axes for label in panel.get_legend_handles_labels()[1]}
    for name, rows in by_method.items():
        label = None if name in named else name
        curve(axes, rows, comparison.seed, *look(comparison, name), label=label)


def interval(axes: Axes, row: float, estimate: Estimate, colour: str, width: float) -> None:
    """Draws an interval as a horizontal bar; nothing where there is none."""
    if not math.isnan(estimate.low):
        axes.plot([estimate.low, estimate.high], [row, row], color=colour, lw=width, solid_capstyle="butt", alpha=0.8)


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
    if name == comparison.baseline:
        return COLOURS[0], _STYLES[0]
    place = 1 + [other for other in names if other != comparison.baseline].index(name)
    return COLOURS[place % MOST], _STYLES[place % MOST]


def over_training(figure: Figure, comparison: Comparison) -> Figure:
    """Labels the horizontal axes: how far training is."""
    for axes in figure.axes:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.supxlabel(comparison.progress, fontsize=10)
    return figure


def legend_above(figure: Figure) -> None:
    """A legend of all panels, in as many columns as the figure is wide."""
    names = [str(label) for axes in figure.axes for label in axes.get_legend_handles_labels()[1]]
    inches = 0.6 + 0.09 * max(map(len, names), default=0)
    columns = int(figure.get_figwidth() / inches)
    figure.legend(loc="outside upper center", ncols=min(max(columns, 1), 4))


def rows_of(methods: Sequence[Method]) -> tuple[Figure, Axes]:
    """Axes with a row for each method, the first at the top."""
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(methods)))
    axes = figure.add_subplot()
    label_rows(axes, methods)
    return figure, axes


def label_rows(axes: Axes, methods: Sequence[Method]) -> None:
    """A row for each method, the first at the top."""
    axes.set_yticks(range(len(methods)), [method.name for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def scores(axes: Axes, row: float, values: Array, mean: Estimate, colour: str, size: float) -> None:
    """Draws a row's mean as a circle, and below it a tick for each seed's value."""
    axes.plot(values, np.full(len(values), row + 0.28), "|", color=GREY, ms=size - 1)
    axes.plot(mean.value, row, "o", color=colour, mec="white", ms=size, zorder=3)


def grid_of(count: int) -> tuple[Figure, list[Axes]]:
    """Small panels with common axes, and a figure that holds them."""
    columns = min(count, 5)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(5.0, 2.1 * columns), 1.7 * rows + 0.9))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, axes in enumerate(grid[:count]):
        axes.tick_params(labelbottom=index >= count - columns, labelleft=index % columns == 0)
    for axes in grid[count:]:
        axes.remove()
    return figure, list(grid[:count])


def same_limits(grid: Sequence[Axes]) -> None:
    """What shared axes do, whose drawing time grows with the square of the number of panels."""
    for limits, set_limits in ((Axes.get_xlim, Axes.set_xlim), (Axes.get_ylim, Axes.set_ylim)):
        lows, highs = zip(*(limits(axes) for axes in grid), strict=True)
        for axes in grid:
            set_limits(axes, min(lows), max(highs))
