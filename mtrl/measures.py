"""Measures over the metrics of several methods: gains over single-task training, ranks.

Metrics go by key: a task's name for its first metric, ``<task>/<metric>`` for others.
"""

from collections.abc import Mapping

import numpy as np

from mtrl.errors import InputError


def _by_task(values: Mapping[str, float]) -> dict[str, float]:
    """The mean within each task."""
    groups: dict[str, list[float]] = {}
    for key, value in values.items():
        groups.setdefault(key.split("/")[0], []).append(value)
    return {task: float(np.mean(group)) for task, group in groups.items()}


def relative_gain(
    metrics: Mapping[str, float], reference: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> tuple[float, dict[str, float]]:
    """The relative gain over single-task training by tasks: 0.01 is one per cent better, higher is better.

    It is the mean over tasks of the mean over a task's metrics, called delta p (Maninis et al., 2019; Gama & Grassi,
    2025, equation 1); `relative_loss` is the other one that is in use. All is by key; of a multi-task model's
    ``metrics``, those without a direction do not count.

    Returns:
        The mean over tasks, and by task the mean over its metrics.

    Raises:
        InputError: if a reference is missing or 0.
    """
    by_task = _by_task(_gains(metrics, reference, higher_is_better))
    return float(np.mean(list(by_task.values()))), by_task


def relative_loss(
    metrics: Mapping[str, float], reference: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> float:
    """The relative loss against single-task training by metrics: 0.01 is one per cent worse, lower is better.

    It is the mean over all metrics, whatever their tasks, called delta m (Liu et al., 2021; Navon et al., 2022, and
    their successors): tasks count by how many metrics they have. Arguments and errors are those of `relative_gain`.
    """
    return -float(np.mean(list(_gains(metrics, reference, higher_is_better).values())))


def _gains(
    metrics: Mapping[str, float], reference: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> dict[str, float]:
    gains = {}
    for key, value in metrics.items():
        if key not in higher_is_better:
            continue
        if not reference.get(key):
            raise InputError(f"the relative gain in {key} needs a single-task reference other than 0")
        gain = (value - reference[key]) / reference[key]
        gains[key] = gain if higher_is_better[key] else -gain
    return gains


def mean_rank(methods: Mapping[str, Mapping[str, float]], higher_is_better: Mapping[str, bool]) -> dict[str, float]:
    """The mean rank (Gama & Grassi, 2025, equation 2): within a task over its metrics, then over tasks; 1 is best.

    ``methods`` are metrics by key, by method. Ties share the mean of their ranks.
    """
    ranks: dict[str, dict[str, float]] = {method: {} for method in methods}
    for key, higher in higher_is_better.items():
        values = np.array([metrics[key] for metrics in methods.values()]) * (-1 if higher else 1)
        for method, value in zip(methods, values, strict=True):
            ranks[method][key] = float((values < value).sum() + ((values == value).sum() + 1) / 2)
    return {method: float(np.mean(list(_by_task(found).values()))) for method, found in ranks.items()}


def gain_statistics(by_task: Mapping[str, float]) -> dict[str, float]:
    """How evenly the gains of `relative_gain` are spread (Gama & Grassi, 2025, table 5): ``min max median std mean``.

    The standard deviation is the population's.
    """
    values = list(by_task.values())
    return {name: float(getattr(np, name)(values)) for name in ("min", "max", "median", "std", "mean")}
