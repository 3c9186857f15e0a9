"""Figures of how the tasks' gradients got on: their cosines, whom the update serves, and the tasks' weights."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mtrl.report import drawing
from mtrl.report.comparison import Comparison, Method
from mtrl.report.drawing import Picture, Rows
from mtrl.report.statistics import Array, mean_of_present

_WINDOWS = 25
_MOST_NUMBERS = 300
_MEASURES = {
    "cosine_mean": "mean cosine of two tasks",
    "cosine_min": "smallest cosine of two tasks",
    "conflicting_pairs": "share of conflicting pairs",
    "magnitude_similarity": "magnitude similarity",
}
_PLASTICITY = {"dormant_share": "share of dormant units", "effective_rank": "effective rank"}
_ALIGNMENT = {
    "update": (
        "Which tasks the update serves",
        "the combined update, mean over seeds and training. Blue: the update helps the task; red: it works against it.",
    ),
    "average": (
        "Which tasks agree with the others",
        "the average of all tasks' gradients of the shared parameters, mean over seeds and training. Blue: the plain "
        "sum would help the task; red: it would work against it.",
    ),
}


def conflict_pictures(comparison: Comparison) -> Iterator[Picture | None]:
    """Every figure of conflict; None for those that the runs hold no data for."""
    logged = (run.metrics.conflict for method in comparison.methods for run in method.runs)
    objectives = list(dict.fromkeys(key.split("/")[0] for conflict in logged for key in conflict))
    if objectives:
        yield _conflict_curves(comparison, objectives)
        yield _agreement(comparison)
    yield _cosines(comparison)
    for target in _ALIGNMENT:
        yield _alignment(comparison, objectives, target)
    yield _weights(comparison, objectives)


def _conflict_curves(comparison: Comparison, objectives: Sequence[str]) -> Picture | None:
    figure = Figure(figsize=(3.2 * len(_MEASURES), 2.6 * len(objectives) + 0.6))
    grid = figure.subplots(len(objectives), len(_MEASURES), sharex=True, sharey="col", squeeze=False)
    for objective, row in zip(objectives, grid, strict=True):
        for (measure, title), axes in zip(_MEASURES.items(), row, strict=True):
            drawing.curves(axes, comparison, f"{objective}: {title}", partial(_smooth, keys=[f"{objective}/{measure}"]))
    return drawing.picture_over_training(
        comparison,
        figure,
        "conflict",
        "Conflict between the tasks' gradients",
        "Means over 25 windows of training and over seeds, with the 95% bootstrap interval over seeds. Cosines are "
        "between per-task gradients of one update; a pair conflicts where its cosine is negative; magnitude "
        "similarity is 1 where two gradients are equally long and near 0 where one drowns the other.",
    )


def plasticity_picture(comparison: Comparison) -> Picture | None:
    """How much of the networks is still at work, and how far the tasks' gradients are apart in length."""
    logged = [run.metrics for method in comparison.methods for run in method.runs]
    networks = dict.fromkeys(key.split("/")[0] for run in logged for key in run.network)
    if not networks:
        return None
    figure = Figure(figsize=(3.4 * (len(_PLASTICITY) + 1), 2.6 * len(networks) + 0.6))
    grid = figure.subplots(len(networks), len(_PLASTICITY) + 1, sharex=True, squeeze=False)
    for network, (*row, spread) in zip(networks, grid, strict=True):
        for (measure, title), axes in zip(_PLASTICITY.items(), row, strict=True):
            rows = partial(_smooth, keys=[f"{network}/{measure}"], of="network")
            drawing.curves(axes, comparison, f"{network}: {title}", rows)
            axes.set_ylim(bottom=0)
        drawing.curves(
            spread,
            comparison,
            f"{network}: spread of gradient norms",
            partial(_smooth, keys=[f"{network}/norm_spread"]),
        )
        _logarithmic(spread)
    return drawing.picture_over_training(
        comparison,
        figure,
        "plasticity",
        "Are the networks still at work?",
        "Dormant units hardly ever answer (Sokar et al., 2023: a mean activation of at most 0.025 of the layer's). "
        "The effective rank of the last hidden layer says how many directions its features span (Roy and Vetterli, "
        "2007). Spread: the longest of the tasks' gradients over the shortest. Means over 25 windows of training and "
        "over seeds, with the 95% bootstrap interval over seeds.",
    )


def _logarithmic(axes: Axes) -> None:
    """A logarithmic vertical axis with numbers on it."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _agreement(comparison: Comparison) -> Picture | None:
    """How well the tasks' gradients agree on a direction, and how long their sum is, for each method."""
    cosines = [f"shared/cosine_to_average/{task}" for task in comparison.tasks]
    figure = Figure(figsize=(8, 3.4))
    left, right = figure.subplots(1, 2)
    drawing.curves(left, comparison, "mean cosine to the average direction", partial(_smooth, keys=cosines))
    drawing.curves(
        right, comparison, "norm of the summed gradient", partial(_smooth, keys=["shared/summed_gradient_norm"])
    )
    if not left.lines:
        return None
    _logarithmic(right)
    return drawing.picture_over_training(
        comparison,
        figure,
        "agreement",
        "Do the tasks' gradients agree?",
        "Left: the cosine between each task's gradient of the shared parameters and the average of all, mean over "
        "tasks (Gama and Grassi, 2025, figures 3a and 7). Right: the norm of their sum (Kurin et al., 2022, section "
        "5.3). Means over 25 windows of training and over seeds, with the 95% bootstrap interval over seeds.",
    )


def _cosines(comparison: Comparison) -> Picture | None:
    """Heat maps of tasks against tasks, a row for each method, three columns for each objective."""
    maps: dict[tuple[str, str], Array] = {}
    for method in drawing.selected(comparison):
        for objective in dict.fromkeys(objective for run in method.runs for objective in run.metrics.cosines):
            found = [run.metrics.cosines[objective] for run in method.runs if objective in run.metrics.cosines]
            for when, matrix in zip(("early", "middle", "late"), mean_of_present(np.stack(found)), strict=True):
                maps[method.name, f"{objective}, {when}"] = matrix
    if not maps:
        return None
    names, columns = (list(dict.fromkeys(keys)) for keys in zip(*maps, strict=True))
    tasks = comparison.tasks
    side = float(np.clip(0.17 * len(tasks), 1.5, 3.4))
    size = len(columns) * (side + 0.15) + 2.2, len(names) * (side + 0.35) + 1.5
    figure = Figure(figsize=size)
    grid = figure.subplots(len(names), len(columns), squeeze=False)
    fontsize = min(7.0, 60 * side / len(tasks))
    for (row, column), axes in np.ndenumerate(grid):
        below, left = row == len(names) - 1, column == 0  # each label takes time to lay out
        axes.set_xticks(range(len(tasks)) if below else [], tasks if below else [], rotation=90, fontsize=fontsize)
        axes.set_yticks(range(len(tasks)) if left else [], tasks if left else [], fontsize=fontsize)
        axes.grid(visible=False)
        values = maps.get((names[row], columns[column]))
        if values is not None:
            image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
            axes.set_title(f"{names[row]}\n{columns[column]}", fontsize=8)
            for (i, j), value in np.ndenumerate(values) if values.size * grid.size <= _MOST_NUMBERS else ():
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(
                    j, i, "" if np.isnan(value) else f"{value:z.2f}", ha="center", va="center", fontsize=7, color=colour
                )
    figure.colorbar(image, ax=grid, label="cosine of two tasks' gradients", shrink=0.9, aspect=8 * size[1])
    return Picture(
        "cosines",
        "Which tasks pull together",
        "Cosine between the gradients of each pair of tasks in the early, middle and late third of training, mean over "
        "seeds and at most five updates of each third. Blue: the two tasks agree; red: they are in conflict. "
        f"{drawing.selection(comparison)}",
        figure,
    )


def _alignment(comparison: Comparison, objectives: Sequence[str], target: str) -> Picture | None:
    """A heat map of tasks against methods for each objective."""
    panels: dict[str, dict[str, Array]] = {}
    for objective in objectives:
        for method in comparison.methods:
            if found := _by_task(comparison, method, f"{objective}/cosine_to_{target}"):
                panels.setdefault(objective, {})[method.name] = mean_of_present(found[1].T)
    if not panels:
        return None
    most = max(len(columns) for columns in panels.values())
    names = {name: drawing.in_lines(name) for columns in panels.values() for name in columns}
    longest = max(len(line) for name in names.values() for line in name.splitlines())
    tasks = comparison.tasks
    beside, above = (1, len(panels)) if most > drawing.MOST else (len(panels), 1)
    size = beside * max(2.0, 0.3 * most) + 2.6, above * (max(0.22 * len(tasks), 1.6) + max(1.2, 0.08 * longest)) + 0.6
    figure = Figure(figsize=size)
    grid = figure.subplots(above, beside, sharey=True, squeeze=False).ravel()
    for (objective, columns), axes in zip(panels.items(), grid, strict=True):
        image = axes.imshow(np.stack(list(columns.values()), 1), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        axes.set_title(objective, fontsize=10)
        axes.set_xticks(range(len(columns)), [names[name] for name in columns], rotation=90, fontsize=8)
        axes.set_yticks(range(len(tasks)), tasks, fontsize=8)
        axes.grid(visible=False)
    figure.colorbar(image, ax=grid, label=f"cosine to the {target}", aspect=5 * size[1])
    title, meaning = _ALIGNMENT[target]
    return Picture("alignment", title, f"Cosine between each task's own gradient and {meaning}", figure)


def _weights(comparison: Comparison, objectives: Sequence[str]) -> Picture | None:
    """A heat map of tasks against training for each method and objective."""
    maps: dict[tuple[str, str], tuple[Array, Array]] = {}
    for method in drawing.selected(comparison):
        for objective in objectives:
            found = _by_task(comparison, method, f"{objective}/weight")
            if found and len(found[0]) > 1:  # a single window is no training to look at
                where, weights = found
                with np.errstate(invalid="ignore"):  # all weights may be zero
                    relative = weights / np.abs(weights).mean(0)
                if np.ptp(np.nan_to_num(relative, nan=1)) > 1e-6:  # else every task has the same weight, always
                    maps[objective, method.name] = where, relative
    if not maps:
        return None
    rows, columns = (list(dict.fromkeys(keys)) for keys in zip(*maps, strict=True))
    tasks = comparison.tasks
    size = max(5.0, 2.4 + 1.9 * len(columns)), len(rows) * (1.0 + 0.18 * len(tasks)) + 0.6
    figure = Figure(figsize=size)
    grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    every = np.concatenate([np.ravel(values) for _, values in maps.values()])
    smallest, largest = min(0.0, np.nanquantile(every, 0.02)), max(2.0, np.nanquantile(every, 0.98))
    for place, axes in zip(product(rows, columns), grid.ravel(), strict=True):
        axes.set_title(drawing.in_lines("{1}: {0}".format(*place)), fontsize=9)
        axes.set_yticks(range(len(tasks)), tasks, fontsize=7)
        axes.grid(visible=False)
        if place in maps:
            where, values = maps[place]
            image = axes.pcolormesh(where, range(len(tasks)), values, cmap="viridis", vmin=smallest, vmax=largest)
    grid[0, 0].set_ylim(len(tasks) - 0.5, -0.5)
    drawing.over_training(figure, comparison)
    figure.colorbar(image, ax=grid, label="weight / mean weight", extend="both", extendfrac=0.03, aspect=5 * size[1])
    return Picture(
        "weights",
        "Task weights over training",
        "Means over 25 windows of training and over seeds, relative to the mean absolute weight of all tasks: 1 is an "
        f"equal share. Methods whose weights are always equal, were measured once, or that have none, are not drawn. "
        f"{drawing.selection(comparison)}",
        figure,
    )


def _by_task(comparison: Comparison, method: Method, prefix: str) -> tuple[Array, Array] | None:
    """Where a quantity of each task was measured, and its mean over seeds ``[T, M]``; None where none was."""
    smooth = [_smooth(method, [f"{prefix}/{task}"]) for task in comparison.tasks]
    whole = [rows for rows in smooth if rows is not None]
    return (whole[0][0], np.stack([mean_of_present(own) for _, own in whole])) if len(whole) == len(smooth) else None


def _smooth(method: Method, keys: Sequence[str], of: str = "conflict") -> Rows | None:
    """Averages over windows of training, and over the keys of a kind: single mini-batches say little."""
    runs = [(run.metrics.conflict_steps, getattr(run.metrics, of)) for run in method.runs]
    aligned = drawing.aligned(
        [(steps, np.mean([own[key] for key in keys], 0)) for steps, own in runs if set(keys) <= set(own)]
    )
    if aligned is None:
        return None
    where, rows = aligned
    windows = np.array_split(np.arange(len(where)), min(len(where), _WINDOWS))
    means = [mean_of_present(rows[:, window].T) for window in windows]
    return np.array([where[window].mean() for window in windows]), np.stack(means, 1)
