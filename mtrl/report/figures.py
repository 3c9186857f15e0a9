"""Figures of every comparison: where the methods end, and what they cost."""

import numpy as np

from mtrl.report import drawing
from mtrl.report.comparison import Comparison
from mtrl.report.drawing import Picture
from mtrl.report.statistics import mean_over_tasks


def intervals(comparison: Comparison, what: str) -> Picture:
    """Each method's mean score, the best first; the caption begins with what it is."""
    methods = sorted(comparison.scored, key=lambda method: -method.scores.mean())
    figure, axes = drawing.rows([method.name for method in methods])
    for row, method in enumerate(methods):
        values, colour = method.scores.mean(1), drawing.look(comparison, method.name)[0]
        by_task = comparison.estimate(method.scores, mean_over_tasks)
        drawing.scores(axes, row, values, colour, 8, (comparison.estimate(values), 1.2), (by_task, 5))
    axes.set_xlabel(comparison.score)
    return Picture(
        "intervals",
        "Where the methods end",
        f"{what} Circle: mean over tasks and seeds. Thick: 95% stratified-bootstrap interval (seeds resampled within "
        "each task). Thin: 95% interval that resamples whole seeds. Ticks below: one per seed.",
        figure,
    )


def times(comparison: Comparison, name: str, over: str) -> Picture | None:
    """How long updates took; the caption says over what."""
    timed = [method for method in comparison.methods if len(method.durations)]
    if not timed:
        return None
    methods = sorted(timed, key=lambda method: float(np.median(method.durations)))
    figure, axes = drawing.rows([method.name for method in methods])
    axes.boxplot(
        [method.durations for method in methods],
        positions=range(len(methods)),
        orientation="horizontal",
        widths=0.6,
        whis=(5, 95),
        showfliers=False,
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": "#D6E6F2"},
        medianprops={"color": drawing.COLOURS[2], "lw": 2},
    )
    axes.set_xlabel(f"wall-clock seconds per {comparison.interval}")
    if np.median(methods[-1].durations) > 20 * np.median(methods[0].durations):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    else:
        axes.set_xlim(left=0)
    return Picture(
        name,
        f"Time per {comparison.interval}",
        f"Over {over}. Box: quartiles and median; whiskers: 5th and 95th percentile.",
        figure,
    )


def memory(comparison: Comparison, remark: str = "") -> Picture | None:
    """The peak memory of each method; the remark ends the caption."""
    methods = [method for method in comparison.methods if method.peak_memory("process_gib")]
    if not methods:
        return None
    names = {"process_gib": "training process", "gpu_gib": "GPU"}
    kinds = {key: label for key, label in names.items() if any(method.peak_memory(key) for method in methods)}
    figure, axes = drawing.rows([method.name for method in methods])
    height = 0.7 / len(kinds)
    for offset, (key, label) in enumerate(kinds.items()):
        values = [method.peak_memory(key) or 0.0 for method in methods]
        where = np.arange(len(methods)) + (offset - (len(kinds) - 1) / 2) * height
        bars = axes.barh(where, values, height, color=drawing.COLOURS[1 + offset], label=label)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlabel("peak memory, GiB")
    axes.margins(x=0.1)
    if len(kinds) > 1:
        figure.legend(loc="outside right upper")
    return Picture("memory", "Peak memory", f"The largest of any finished run.{remark}", figure)
