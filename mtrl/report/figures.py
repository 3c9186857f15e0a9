"""Figures of a comparison: what was learned, how fast, and at what cost."""

from collections.abc import Mapping
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mtrl.report.comparison import Comparison, Method, TrainingComparison, metric_label
from mtrl.report.conflict_figures import conflict_pictures
from mtrl.report.drawing import (
    COLOURS,
    GREY,
    MOST,
    READING,
    Curve,
    Picture,
    aligned,
    curve_of,
    draw_curve,
    draw_interval,
    grid_of,
    legend_above,
    look,
    over_training,
    rows_of,
    same_limits,
    selected,
    selection,
    style,
)
from mtrl.report.statistics import mean_over_seeds, mean_over_tasks
from mtrl.report.supervised import SINGLE, SupervisedComparison
from mtrl.report.tables import durations, peak_memory

_POINTS = 100


def pictures(comparison: Comparison) -> list[Picture]:
    """Every figure for which the runs hold data."""
    with style():
        if isinstance(comparison, SupervisedComparison):
            first = [
                _gains(comparison),
                _test_metrics(comparison),
                _validation_curves(comparison),
                _distances(comparison),
            ]
        else:
            assert isinstance(comparison, TrainingComparison)
            first = [
                _learning_curves(comparison),
                _intervals(comparison, f"At step {comparison.step:,}."),
                _task_curves(comparison),
                _wall_clock(comparison),
            ]
        drawn = [*first, _times(comparison), _memory(comparison), *conflict_pictures(comparison)]
        return [picture for picture in drawn if picture is not None]


# -------------------------------------------------------------------------------------------------------- learning


def _learning_curves(comparison: TrainingComparison) -> Picture:
    curves = {method.name: _score_curve(comparison, method) for method in comparison.methods if method.runs}
    return Picture(
        "learning_curves",
        "Learning curves",
        f"Mean over tasks and seeds, with the 95% bootstrap interval over seeds. {READING}",
        over_training(_curves(comparison, curves), comparison),
    )


def _wall_clock(comparison: TrainingComparison) -> Picture:
    longest = max(run.metrics.seconds[-1] for method in comparison.methods for run in method.runs)
    unit, seconds = ("hours", 3600) if longest > 7200 else ("minutes", 60)
    curves = {}
    for method in comparison.methods:
        if method.runs:
            series = [(run.metrics.seconds / seconds, run.metrics.scores) for run in method.runs]
            where = np.unique(np.linspace(min(x[0] for x, _ in series), max(x[-1] for x, _ in series), _POINTS))
            rows = np.stack([np.interp(where, x, y, np.nan, np.nan) for x, y in series])
            curves[method.name] = curve_of(where, rows, comparison.seed)
    figure = _curves(comparison, curves)
    figure.supxlabel(f"{unit} of training", fontsize=10)
    return Picture(
        "wall_clock",
        "What the same time buys",
        "The learning curves against the wall-clock time of training, evaluations included. Comparable only between "
        f"runs on the same hardware under the same load. {READING}",
        figure,
    )


def _curves(comparison: TrainingComparison, curves: Mapping[str, Curve]) -> Figure:
    """All methods in one pair of axes, or a panel for each where they are many."""
    if len(curves) <= MOST:
        figure = Figure(figsize=(8, 4.5))
        axes = figure.add_subplot()
        for name, curve in curves.items():
            draw_curve(axes, curve, *look(comparison, name), label=name)
        axes.set_ylabel(metric_label(comparison.metric))
        _limit(axes, comparison)
        figure.legend(loc="outside right upper")
        return figure
    figure, grid = grid_of(len(curves))
    for (name, curve), axes in zip(curves.items(), grid, strict=True):
        if comparison.baseline in curves:
            draw_curve(axes, curves[comparison.baseline], GREY, "-", band=False)
        draw_curve(axes, curve, COLOURS[0 if name == comparison.baseline else 1], "-")
        axes.set_title(name, fontsize=9)
        _limit(axes, comparison)
    same_limits(grid)
    figure.supylabel(f"{metric_label(comparison.metric)}; grey: {comparison.baseline}", fontsize=10)
    return figure


def _task_curves(comparison: TrainingComparison) -> Picture | None:
    if len(comparison.tasks) < 2:
        return None
    figure, grid = grid_of(len(comparison.tasks))
    for index, (task, axes) in enumerate(zip(comparison.tasks, grid, strict=True)):
        for method in selected(comparison):
            label = method.name if index == 0 else None
            draw_curve(axes, _score_curve(comparison, method, index), *look(comparison, method.name), label=label)
        axes.set_title(task, fontsize=9)
        _limit(axes, comparison)
    same_limits(grid)
    over_training(figure, comparison).supylabel(metric_label(comparison.metric), fontsize=10)
    legend_above(figure)
    return Picture(
        "tasks",
        "Task by task",
        f"Mean over seeds in each task, with the 95% bootstrap interval over seeds. {READING} {selection(comparison)}",
        figure,
    )


def _score_curve(comparison: Comparison, method: Method, task: int | None = None) -> Curve:
    runs = [run.metrics for run in method.runs]
    series = [(run.steps, run.scores if task is None else run.task_scores[:, task]) for run in runs]
    return curve_of(*aligned(series), comparison.seed)


def _limit(axes: Axes, comparison: Comparison) -> None:
    """Rates are shown on the whole of their scale."""
    if all(((run.metrics.task_scores >= 0) & (run.metrics.task_scores <= 1)).all() for run in comparison.runs):
        axes.set_ylim(-0.03, 1.03)


def _intervals(comparison: Comparison, what: str) -> Picture:
    """Each method's mean score, the best first."""
    methods = sorted((method for method in comparison.methods if method.seeds), key=lambda own: -own.scores.mean())
    figure, axes = rows_of(methods)
    for row, method in enumerate(methods):
        colour = look(comparison, method.name)[0]
        values = method.scores.mean(1)
        whole = mean_over_seeds(values, np.random.default_rng(comparison.seed))
        stratified = mean_over_tasks(method.scores, np.random.default_rng(comparison.seed))
        axes.plot(values, np.full(len(values), row + 0.28), "|", color=GREY, ms=7)
        draw_interval(axes, row, whole, colour, 1.2)
        draw_interval(axes, row, stratified, colour, 5)
        axes.plot(whole.value, row, "o", color=colour, mec="white", ms=8, zorder=3)
    axes.set_xlabel(comparison.score)
    return Picture(
        "intervals",
        "Where the methods end",
        f"{what} Circle: mean over tasks and seeds. Thick: 95% stratified-bootstrap interval (seeds resampled within "
        "each task). Thin: 95% interval that resamples whole seeds. Ticks below: one per seed.",
        figure,
    )


# ------------------------------------------------------------------------------------------------ supervised runs


def _gains(comparison: SupervisedComparison) -> Picture:
    picture = _intervals(
        comparison,
        "On the test split. The mean over tasks of the relative gain (Gama and Grassi, 2025, equation 1); dashed: "
        f"{comparison.reference_name}.",
    )
    picture.figure.axes[0].axvline(0, color=GREY, ls="--", lw=1)
    return picture


def _test_metrics(comparison: SupervisedComparison) -> Picture:
    """A panel for each metric, a row for each method."""
    methods = [method for method in comparison.methods if method.seeds]
    columns = min(len(comparison.metrics), 4)
    rows = ceil(len(comparison.metrics) / columns)
    figure = Figure(figsize=(2.2 + 2.1 * columns, rows * (0.9 + 0.3 * len(methods))))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(comparison.metrics) :]:
        axes.remove()
    for index, ((key, label), axes) in enumerate(zip(comparison.metrics.items(), grid, strict=False)):
        for row, method in enumerate(methods):
            colour = look(comparison, method.name)[0]
            own = mean_over_seeds(method.test[key], np.random.default_rng(comparison.seed))
            axes.plot(method.test[key], np.full(len(method.test[key]), row + 0.28), "|", color=GREY, ms=5)
            draw_interval(axes, row, own, colour, 3)
            axes.plot(own.value, row, "o", color=colour, mec="white", ms=6, zorder=3)
        if comparison.single:
            alone = mean_over_seeds(comparison.single[key], np.random.default_rng(comparison.seed))
            axes.axvline(alone.value, color=GREY, ls="--", lw=1)
            axes.axvspan(*np.nan_to_num([alone.low, alone.high], nan=alone.value), color=GREY, alpha=0.15, lw=0)
        axes.set_title(f"{label} {'→' if comparison.higher_is_better[key] else '←'}", fontsize=9)
        axes.set_yticks(range(len(methods)), [method.name for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.tick_params(labelleft=index % columns == 0, labelsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(visible=False, axis="y")
    alone_too = f" Dashed and grey: {SINGLE} and its interval." if comparison.single else ""
    return Picture(
        "metrics",
        "Test metrics",
        "Of the models selected by validation: mean over seeds, 95% interval, and a tick for each seed. The arrow "
        f"points to the better side.{alone_too}",
        figure,
    )


def _validation_curves(comparison: SupervisedComparison) -> Picture | None:
    return _logged_curves(
        comparison,
        {f"val/{key}": label for key, label in comparison.metrics.items()},
        "validation",
        "Validation over training",
        "Mean over seeds on the validation split, with the 95% bootstrap interval over seeds.",
    )


def _distances(comparison: SupervisedComparison) -> Picture | None:
    return _logged_curves(
        comparison,
        {"distance/total": "total distance", "distance/shortest": "shortest distance", "distance/ratio": "their ratio"},
        "distance",
        "How far the shared parameters travel",
        "The length of the path so far, the straight line from its start, and their quotient: 1 is the straight way "
        "(Pascal et al., section 4.4). Mean over seeds, with the 95% bootstrap interval over seeds.",
    )


def _logged_curves(
    comparison: SupervisedComparison, keys: Mapping[str, str], name: str, title: str, caption: str
) -> Picture | None:
    """A panel for each logged key, a curve for each method."""
    columns = min(len(keys), 4)
    rows = ceil(len(keys) / columns)
    figure = Figure(figsize=(max(5.0, 2.6 * columns), 2.2 * rows + 0.9))
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axes in grid[len(keys) :]:
        axes.remove()
    labelled: set[str] = set()
    for (key, label), axes in zip(keys.items(), grid, strict=False):
        for method in selected(comparison):
            series = [(run.metrics.steps, run.metrics.logged[key]) for run in method.runs if key in run.metrics.logged]
            if series:
                curve = curve_of(*aligned(series), comparison.seed)
                legend = None if method.name in labelled else method.name
                labelled.add(method.name)
                draw_curve(axes, curve, *look(comparison, method.name), label=legend)
        axes.set_title(label, fontsize=9)
    if not labelled:
        return None
    legend_above(over_training(figure, comparison))
    return Picture(name, title, f"{caption} {READING} {selection(comparison)}", figure)


# ------------------------------------------------------------------------------------------------------------ cost


def _times(comparison: Comparison) -> Picture | None:
    methods = [method for method in comparison.methods if len(durations(method))]
    if not methods:
        return None
    methods.sort(key=lambda method: float(np.median(durations(method))))
    figure, axes = rows_of(methods)
    axes.boxplot(
        [durations(method) for method in methods],
        positions=range(len(methods)),
        orientation="horizontal",
        widths=0.6,
        whis=(5, 95),
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": "#D6E6F2"},
        medianprops={"color": COLOURS[2], "lw": 2},
    )
    axes.set_xlabel(f"wall-clock seconds per {comparison.interval}")
    medians = [float(np.median(durations(method))) for method in methods]
    if max(medians) > 20 * min(medians):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter("")
    else:
        axes.set_xlim(left=0)
    supervised = isinstance(comparison, SupervisedComparison)
    what = "an epoch's updates" if supervised else "the intervals between log entries, stepping the simulators included"
    return Picture(
        "epoch_time" if supervised else "update_time",
        f"Time per {comparison.interval}",
        f"Over {what}. Box: quartiles and median; whiskers: 5th and 95th percentile.",
        figure,
    )


def _memory(comparison: Comparison) -> Picture | None:
    kinds = {"process_gib": "training process", "gpu_gib": "GPU"}
    methods = [method for method in comparison.methods if peak_memory(method, "process_gib")]
    if not methods:
        return None
    kinds = {key: label for key, label in kinds.items() if any(peak_memory(method, key) for method in methods)}
    figure, axes = rows_of(methods)
    height = 0.7 / len(kinds)
    for offset, (key, label) in enumerate(kinds.items()):
        values = [peak_memory(method, key) or 0.0 for method in methods]
        where = np.arange(len(methods)) + (offset - (len(kinds) - 1) / 2) * height
        bars = axes.barh(where, values, height, color=COLOURS[1 + offset], label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlabel("peak memory, GiB")
    axes.margins(x=0.1)
    if len(kinds) > 1:
        figure.legend(loc="outside right upper")
    supervised = isinstance(comparison, SupervisedComparison)
    return Picture(
        "memory",
        "Peak memory",
        "The largest of any finished run."
        + ("" if supervised else " Training process: without the processes that step the simulators."),
        figure,
    )
