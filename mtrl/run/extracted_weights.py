"""Fixed weights from those that a method chose in a finished run."""

from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.errors import InputError, unknown_name
from mtrl.run.directory import read_config, read_summary
from mtrl.run.metrics import read_metrics

_MOMENTUM = 0.9
WAYS: dict[str, Callable[[Any], Any]] = {
    "mean": lambda weights: weights.mean(0),
    "ema": lambda weights: reduce(lambda average, row: _MOMENTUM * average + (1 - _MOMENTUM) * row, weights),
    "last": lambda weights: weights[-1],
}


def extracted_weights(intervals: Sequence[Sequence[float]], how: str) -> list[float]:
    """Fixed weights ``[T]`` from those of a method (Gama & Grassi, 2025, section 3.5).

    Args:
        intervals: ``[N, T]``, the weights of each epoch or logging interval, N at least 1.
        how: ``ema`` is the paper's: the exponential moving average with momentum 0.9, started at the first interval,
            as it is after the last; ``mean`` is over all intervals; ``last`` takes the last one's; others are refused.
    """
    if how not in WAYS:
        raise unknown_name("weights_how", how, WAYS)
    return [float(weight) for weight in WAYS[how](np.asarray(intervals, dtype=float))]


def weights_of_run(directory: Path, tasks: Sequence[str], prefix: str, how: str) -> list[float] | None:
    """`extracted_weights` ``[T]``, in the order of ``tasks``, of a finished run that logs them as ``<prefix>/<task>``.

    None where it logged none; `InputError` if it is not a finished run's directory, or the run is of other tasks.
    """
    theirs = read_config(directory).get("tasks") or []
    if sorted(theirs) != sorted(tasks):
        raise InputError(f"weights_from: the run in '{directory}' is of {theirs}, not of {list(tasks)}")
    if read_summary(directory) is None:
        raise InputError(f"weights_from: the run in '{directory}' is not finished")
    keys = [f"{prefix}/{task}" for task in tasks]
    rows: list[list[Any]] = [[entry.get(key) for key in keys] for entry in read_metrics(directory / "metrics.jsonl")]
    complete = [row for row in rows if None not in row]
    return extracted_weights(complete, how) if complete else None
