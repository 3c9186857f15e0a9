"""Figures of a comparison: what was learned, how fast, at what cost, and how the tasks' gradients got on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter

from mtrl.analysis.comparison import Comparison, Method
from mtrl.analysis.statistics import Estimate, Floats, mean_curve, mean_of_present, mean_over_seeds, mean_over_tasks
from mtrl.analysis.tables import peak_memory, update_seconds

STEPS = "vector steps (one environment step in every task)"

# Okabe and Ito (2008), tellable apart with any colour vision, without its yellow, which is too pale for lines. Black
# is the baseline's. Line styles repeat the distinction for print.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_STYLES = ("-", "-", "--", "-.", "-", "--", "-.")
_MOST = len(_COLOURS)
_GREY = "#888888"
_POINTS = 100
_WINDOWS = 25


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

    def save(self, folder: Path) -> None:
        """Writes PNG and PDF; the same figure gives the same bytes."""
        with _style():
            self.figure.savefig(folder / f"{self.name}.png", dpi=130)
            self.figure.set_layout_engine("none")  # it is laid out now; doing it again takes as long as drawing
            self.figure.savefig(folder / f"{self.name}.pdf", metadata={"CreationDate": None})


def pictures(comparison: Comparison) -> list[Picture]:
    """Every figure for which the runs hold data."""
    with _style():
        drawn = [
            _learning_curves(comparison),
            _intervals(comparison),
            _task_curves(comparison),
            _wall_clock(comparison),
            _update_time(comparison),
            _memory(comparison),
            *_conflict(comparison),
        ]
        return [picture for picture in drawn if picture is not None]


@contextmanager
def _style() -> Iterator[None]:
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


# -------------------------------------------------------------------------------------------------------- learning


@dataclass(frozen=True)
class _Curve:
    """A mean over runs, its interval, and the share of runs that got there, each ``[S]``."""

    where: Floats
    mean: Floats
    low: Floats
    high: Floats
    share: Floats


def _learning_curves(comparison: Comparison) -> Picture:
    curves = {method.name: _score_curve(comparison, method) for method in comparison.methods if method.runs}
    return Picture(
        "learning_curves",
        "Learning curves",
        f"Mean over tasks and seeds, with the 95% bootstrap interval over seeds. {_READING}",
        _in_steps(_curves(comparison, curves, STEPS)),
    )


def _wall_clock(comparison: Comparison) -> Picture:
    longest = max(run.metrics.seconds[-1] for method in comparison.methods for run in method.runs)
    unit, seconds = ("hours", 3600) if longest > 7200 else ("minutes", 60)
    curves = {}
    for method in comparison.methods:
        if method.runs:
            series = [(run.metrics.seconds / seconds, run.metrics.scores) for run in method.runs]
            where = np.unique(np.linspace(min(x[0] for x, _ in series), max(x[-1] for x, _ in series), _POINTS))
            rows = np.stack([np.interp(where, x, y, np.nan, np.nan) for x, y in series])
            curves[method.name] = _curve(where, rows, comparison.seed)
    return Picture(
        "wall_clock",
        "What the same time buys",
        "The learning curves against the wall-clock time of training, evaluations included. Comparable only between "
        f"runs on the same hardware under the same load. {_READING}",
        _curves(comparison, curves, f"{unit} of training"),
    )


_READING = "Dotted: reached by only some of a method's runs."


def _curves(comparison: Comparison, curves: Mapping[str, _Curve], label: str) -> Figure:
    """All methods in one pair of axes, or a panel for each where they are many."""
    if len(curves) <= _MOST:
        figure = Figure(figsize=(8, 4.5))
        axes = figure.add_subplot()
        for name, curve in curves.items():
            _draw_curve(axes, curve, *_look(comparison, name), label=name)
        axes.set(xlabel=label, ylabel=metric_label(comparison.metric))
        _limit(axes, comparison)
        figure.legend(loc="outside right upper")
        return figure
    figure, grid = _grid(len(curves))
    for (name, curve), axes in zip(curves.items(), grid, strict=True):
        if comparison.baseline in curves:
            _draw_curve(axes, curves[comparison.baseline], _GREY, "-", band=False)
        _draw_curve(axes, curve, _COLOURS[0 if name == comparison.baseline else 1], "-")
        axes.set_title(name, fontsize=9)
        _limit(axes, comparison)
    _same_limits(grid)
    figure.supxlabel(label, fontsize=10)
    figure.supylabel(f"{metric_label(comparison.metric)}; grey: {comparison.baseline}", fontsize=10)
    return figure


def _task_curves(comparison: Comparison) -> Picture | None:
    if len(comparison.tasks) < 2:
        return None
    figure, grid = _grid(len(comparison.tasks))
    for index, (task, axes) in enumerate(zip(comparison.tasks, grid, strict=True)):
        for method in selected(comparison):
            label = method.name if index == 0 else None
            _draw_curve(axes, _score_curve(comparison, method, index), *_look(comparison, method.name), label=label)
        axes.set_title(task, fontsize=9)
        _limit(axes, comparison)
    _same_limits(grid)
    _in_steps(figure).supxlabel(STEPS, fontsize=10)
    figure.supylabel(metric_label(comparison.metric), fontsize=10)
    figure.legend(loc="outside upper center", ncols=4)
    return Picture(
        "tasks",
        "Task by task",
        "Mean over seeds in each task, with the 95% bootstrap interval over seeds. "
        f"{_READING} {_selection(comparison)}",
        figure,
    )


def _curve(where: Floats, rows: Floats, seed: int) -> _Curve:
    return _Curve(where, *mean_curve(rows, np.random.default_rng(seed)), (~np.isnan(rows)).mean(0))


def _score_curve(comparison: Comparison, method: Method, task: int | None = None) -> _Curve:
    runs = [run.metrics for run in method.runs]
    series = [(run.steps, run.scores if task is None else run.task_scores[:, task]) for run in runs]
    return _curve(*_aligned(series), comparison.seed)


def _aligned(series: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Curves of several runs at the same places, interpolated between a run's own; NaN where it did not get."""
    where = np.unique(np.concatenate([x for x, _ in series]))
    return where, np.stack([np.interp(where, x, y, np.nan, np.nan) for x, y in series])


def _draw_curve(
    axes: Axes, curve: _Curve, colour: str, style: str, *, label: str | None = None, band: bool = True
) -> None:
    marker = "o" if np.isfinite(curve.mean).sum() < 3 else None  # else a single evaluation would not be seen
    everyone = curve.share == 1
    whole = np.where(everyone, curve.mean, np.nan)
    axes.plot(curve.where, whole, color=colour, linestyle=style, lw=1.8, label=label, marker=marker)
    inside = everyone & np.append(everyone[1:], True) & np.insert(everyone[:-1], 0, True)
    axes.plot(curve.where, np.where(inside, np.nan, curve.mean), color=colour, linestyle=":", lw=1.2)
    if band:
        axes.fill_between(curve.where, curve.low, curve.high, color=colour, alpha=0.15, lw=0)


def _intervals(comparison: Comparison) -> Picture:
    methods = sorted((method for method in comparison.methods if method.seeds), key=lambda own: -own.last.mean())
    figure, axes = _rows(methods)
    for row, method in enumerate(methods):
        colour = _look(comparison, method.name)[0]
        values = method.last.mean(1)
        whole = mean_over_seeds(values, np.random.default_rng(comparison.seed))
        stratified = mean_over_tasks(method.last, np.random.default_rng(comparison.seed))
        axes.plot(values, np.full(len(values), row + 0.28), "|", color=_GREY, ms=7)
        _bar(axes, row, whole, colour, 1.2)
        _bar(axes, row, stratified, colour, 5)
        axes.plot(whole.value, row, "o", color=colour, mec="white", ms=8, zorder=3)
    axes.set_xlabel(f"{metric_label(comparison.metric)}, mean of the last {comparison.last_k} evaluations")
    return Picture(
        "intervals",
        "Where the methods end",
        f"At step {comparison.step:,}. Circle: mean over tasks and seeds. Thick: 95% stratified-bootstrap interval "
        "(seeds resampled within each task). Thin: 95% interval that resamples whole seeds. Ticks below: one per seed.",
        figure,
    )


def _bar(axes: Axes, row: int, estimate: Estimate, colour: str, width: float) -> None:
    if not math.isnan(estimate.low):
        axes.plot([estimate.low, estimate.high], [row, row], color=colour, lw=width, solid_capstyle="butt", alpha=0.8)


# ------------------------------------------------------------------------------------------------------------ cost


def _update_time(comparison: Comparison) -> Picture | None:
    methods = [method for method in comparison.methods if len(update_seconds(method))]
    if not methods:
        return None
    methods.sort(key=lambda method: float(np.median(update_seconds(method))))
    figure, axes = _rows(methods)
    axes.boxplot(
        [update_seconds(method) for method in methods],
        positions=range(len(methods)),
        orientation="horizontal",
        widths=0.6,
        whis=(5, 95),
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": "#D6E6F2"},
        medianprops={"color": _COLOURS[2], "lw": 2},
    )
    axes.set_xlabel("wall-clock seconds per 10,000 updates")
    medians = [float(np.median(update_seconds(method))) for method in methods]
    if max(medians) > 20 * min(medians):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter("")
    else:
        axes.set_xlim(left=0)
    return Picture(
        "update_time",
        "Time per 10,000 updates",
        "Over the intervals between log entries, stepping the simulators included. Box: quartiles and median; "
        "whiskers: 5th and 95th percentile.",
        figure,
    )


def _memory(comparison: Comparison) -> Picture | None:
    kinds = {"process_gib": "training process", "gpu_gib": "GPU"}
    methods = [method for method in comparison.methods if peak_memory(method, "process_gib")]
    if not methods:
        return None
    kinds = {key: label for key, label in kinds.items() if any(peak_memory(method, key) for method in methods)}
    figure, axes = _rows(methods)
    height = 0.7 / len(kinds)
    for offset, (key, label) in enumerate(kinds.items()):
        values = [peak_memory(method, key) or 0.0 for method in methods]
        where = np.arange(len(methods)) + (offset - (len(kinds) - 1) / 2) * height
        bars = axes.barh(where, values, height, color=_COLOURS[1 + offset], label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlabel("peak memory, GiB")
    axes.margins(x=0.1)
    if len(kinds) > 1:
        figure.legend(loc="outside right upper")
    return Picture(
        "memory",
        "Peak memory",
        "The largest of any finished run. Training process: without the processes that step the simulators.",
        figure,
    )


# -------------------------------------------------------------------------------------------------------- conflict

_MEASURES = {
    "cosine_mean": "mean cosine of two tasks",
    "cosine_min": "smallest cosine of two tasks",
    "conflicting_pairs": "share of conflicting pairs",
    "magnitude_similarity": "magnitude similarity",
}


def _conflict(comparison: Comparison) -> list[Picture | None]:
    logged = (run.metrics.conflict for method in comparison.methods for run in method.runs)
    objectives = list(dict.fromkeys(key.split("/")[0] for conflict in logged for key in conflict))
    if not objectives:
        return []
    return [
        _conflict_curves(comparison, objectives),
        _alignment(comparison, objectives),
        _weights(comparison, objectives),
    ]


def _conflict_curves(comparison: Comparison, objectives: list[str]) -> Picture | None:
    figure = Figure(figsize=(3.2 * len(_MEASURES), 2.6 * len(objectives) + 0.6))
    grid = figure.subplots(len(objectives), len(_MEASURES), sharex=True, sharey="col", squeeze=False)
    labelled: set[str] = set()
    for objective, row in zip(objectives, grid, strict=True):
        for (measure, title), axes in zip(_MEASURES.items(), row, strict=True):
            for method in selected(comparison):
                if series := _conflict_series(method, f"{objective}/{measure}"):
                    curve = _curve(*_smoothed(*_aligned(series)), comparison.seed)
                    label = None if method.name in labelled else method.name
                    labelled.add(method.name)
                    _draw_curve(axes, curve, *_look(comparison, method.name), label=label)
            axes.set_title(f"{objective}: {title}", fontsize=9)
    if not labelled:
        return None
    _in_steps(figure).supxlabel(STEPS, fontsize=10)
    figure.legend(loc="outside upper center", ncols=4)
    return Picture(
        "conflict",
        "Conflict between the tasks' gradients",
        "Means over 25 windows of training and over seeds, with the 95% bootstrap interval over seeds. Cosines are "
        "between per-task gradients of one update; a pair conflicts where its cosine is negative; magnitude "
        "similarity is 1 where two gradients are equally long and near 0 where one drowns the other. "
        f"{_selection(comparison)}",
        figure,
    )


def _alignment(comparison: Comparison, objectives: list[str]) -> Picture | None:
    """A heat map of tasks against methods for each objective."""
    panels: dict[str, dict[str, Floats]] = {}
    for objective in objectives:
        for method in comparison.methods:
            found = _by_task(comparison, method, f"{objective}/cosine_to_update")
            if found is not None:
                panels.setdefault(objective, {})[method.name] = mean_of_present(found[1].T)
    if not panels:
        return None
    most = max(len(columns) for columns in panels.values())
    tasks = comparison.tasks
    beside, above = (1, len(panels)) if most > _MOST else (len(panels), 1)
    size = beside * max(2.0, 0.3 * most) + 2.6, above * (0.22 * len(tasks) + 1.2) + 0.6
    figure = Figure(figsize=size)
    grid = figure.subplots(above, beside, sharey=True, squeeze=False).ravel()
    for (objective, columns), axes in zip(panels.items(), grid, strict=True):
        image = axes.imshow(np.stack(list(columns.values()), 1), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        axes.set_title(objective, fontsize=10)
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
        axes.set_yticks(range(len(tasks)), tasks, fontsize=8)
        axes.grid(visible=False)
    figure.colorbar(image, ax=grid, label="cosine to the update", aspect=5 * size[1])
    return Picture(
        "alignment",
        "Which tasks the update serves",
        "Cosine between each task's own gradient and the combined update, mean over seeds and training. Blue: the "
        "update helps the task; red: it works against it.",
        figure,
    )


def _weights(comparison: Comparison, objectives: list[str]) -> Picture | None:
    """A heat map of tasks against training for each method and objective."""
    maps: dict[tuple[str, str], tuple[Floats, Floats]] = {}
    for method in selected(comparison):
        for objective in objectives:
            found = _by_task(comparison, method, f"{objective}/weight")
            if found is not None:
                where, weights = found
                with np.errstate(invalid="ignore"):  # all weights may be zero
                    relative = weights / np.abs(weights).mean(0)
                if np.ptp(np.nan_to_num(relative, nan=1)) > 1e-6:  # else every task has the same weight, always
                    maps[objective, method.name] = where, relative
    if not maps:
        return None
    columns = list(dict.fromkeys(name for _, name in maps))
    rows = list(dict.fromkeys(objective for objective, _ in maps))
    tasks = comparison.tasks
    size = max(5.0, 2.4 + 1.9 * len(columns)), len(rows) * (1.0 + 0.18 * len(tasks)) + 0.6
    figure = Figure(figsize=size)
    grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    every = np.concatenate([np.ravel(values) for _, values in maps.values()])
    smallest, largest = min(0.0, np.nanquantile(every, 0.02)), max(2.0, np.nanquantile(every, 0.98))
    for row, objective in zip(grid, rows, strict=True):
        for axes, name in zip(row, columns, strict=True):
            axes.set_title(f"{name}: {objective}", fontsize=9)
            axes.set_yticks(range(len(tasks)), tasks, fontsize=7)
            axes.grid(visible=False)
            if (objective, name) in maps:
                where, values = maps[objective, name]
                image = axes.pcolormesh(where, range(len(tasks)), values, cmap="viridis", vmin=smallest, vmax=largest)
    grid[0, 0].set_ylim(len(tasks) - 0.5, -0.5)
    _in_steps(figure).supxlabel(STEPS, fontsize=10)
    figure.colorbar(image, ax=grid, label="weight / mean weight", extend="both", extendfrac=0.03, aspect=5 * size[1])
    return Picture(
        "weights",
        "Task weights over training",
        "Means over 25 windows of training and over seeds, relative to the mean absolute weight of all tasks: 1 is an "
        f"equal share. Methods whose weights are always equal, or that have none, are not drawn. "
        f"{_selection(comparison)}",
        figure,
    )


def _by_task(comparison: Comparison, method: Method, prefix: str) -> tuple[Floats, Floats] | None:
    """Where a quantity of each task was measured, and its mean over seeds ``[T, M]``; None where none was."""
    series = [_conflict_series(method, f"{prefix}/{task}") for task in comparison.tasks]
    if not all(series):
        return None
    aligned = [_smoothed(*_aligned(own)) for own in series]
    return aligned[0][0], np.stack([mean_of_present(rows) for _, rows in aligned])


def _smoothed(where: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Averages over windows of training: single mini-batches say little about conflict."""
    windows = np.array_split(np.arange(len(where)), min(len(where), _WINDOWS))
    means = [mean_of_present(rows[:, window].T) for window in windows]
    return np.array([where[window].mean() for window in windows]), np.stack(means, 1)


def _conflict_series(method: Method, key: str) -> list[tuple[Floats, Floats]]:
    runs = [run.metrics for run in method.runs]
    return [(run.conflict_steps, run.conflict[key]) for run in runs if key in run.conflict]


# --------------------------------------------------------------------------------------------------------- drawing


def metric_label(metric: str) -> str:
    """What an axis calls a metric."""
    return "success rate" if metric == "eval/success_mean" else metric


def selected(comparison: Comparison) -> list[Method]:
    """The methods that one pair of axes can hold: all, or the baseline and the best."""
    methods = [method for method in comparison.methods if method.runs]
    if len(methods) <= _MOST:
        return methods
    others = [method for method in methods if method.name != comparison.baseline and method.seeds]
    best = sorted(others, key=lambda method: -method.last.mean())[: _MOST - 1]
    names = {comparison.baseline, *(method.name for method in best)}
    return [method for method in methods if method.name in names]


def _selection(comparison: Comparison) -> str:
    count = sum(bool(method.runs) for method in comparison.methods)
    if count <= _MOST:
        return ""
    return f"Of {count} methods, {comparison.baseline} and the {_MOST - 1} best are drawn."


def _look(comparison: Comparison, name: str) -> tuple[str, str]:
    """A method's colour and line style, the same in every figure."""
    names = [method.name for method in selected(comparison)]
    if name not in names:
        return _GREY, "-"
    if name == comparison.baseline:
        return _COLOURS[0], _STYLES[0]
    place = 1 + [other for other in names if other != comparison.baseline].index(name)
    return _COLOURS[place % _MOST], _STYLES[place % _MOST]


def _in_steps(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def _limit(axes: Axes, comparison: Comparison) -> None:
    """Rates are shown on the whole of their scale."""
    if all(((run.metrics.task_scores >= 0) & (run.metrics.task_scores <= 1)).all() for run in comparison.runs):
        axes.set_ylim(-0.03, 1.03)


def _rows(methods: Sequence[Method]) -> tuple[Figure, Axes]:
    """Axes with a row for each method, the first at the top."""
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(methods)))
    axes = figure.add_subplot()
    axes.set_yticks(range(len(methods)), [method.name for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _grid(count: int) -> tuple[Figure, list[Axes]]:
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


def _same_limits(grid: Sequence[Axes]) -> None:
    """What shared axes do, whose drawing time grows with the square of the number of panels."""
    for limits, set_limits in ((Axes.get_xlim, Axes.set_xlim), (Axes.get_ylim, Axes.set_ylim)):
        lows, highs = zip(*(limits(axes) for axes in grid), strict=True)
        for axes in grid:
            set_limits(axes, min(lows), max(highs))
