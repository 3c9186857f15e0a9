"""Fixed weights from those that a method chose in a finished run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.errors import InputError, unknown_name
from mtrl.run.directory import read_config, read_summary
from mtrl.run.metrics import read_metrics

WAYS = ("mean", "ema", "last")
_MOMENTUM = 0.9


def extracted_weights(intervals: Sequence[Sequence[float]], how: str = "ema") -> list[float]:
    """Fixed weights from those of a method (Gama & Grassi, 2025, section 3.5).

    Args:
        intervals: ``[N, T]``, the weights of each epoch or logging interval, N at least 1.
        how: ``ema`` is the paper's: the exponential moving average with momentum 0.9, started at the first interval,
            as it is after the last; ``mean`` is over all intervals; ``last`` takes the last one's.

    Returns:
        ``[T]``.

    Raises:
        InputError: if the way is unknown.
    """
    if how not in WAYS:
        raise unknown_name("weights_how", how, WAYS)
    weights = np.asarray(intervals, dtype=float)
    if how == "mean":
        extracted = weights.mean(0)
    else:
        extracted = weights[0]
        for row in weights[1:]:
            extracted = row if how == "last" else _MOMENTUM * extracted + (1 - _MOMENTUM) * row
    return [float(weight) for weight in extracted]


def weights_of_run(directory: Path, tasks: Sequence[str], prefix: str, how: str) -> list[float] | None:
    """`extracted_weights` of a finished run.

    Args:
        directory: the run's.
        tasks: in the order in which the weights are wanted.
        prefix: weights are logged as ``<prefix>/<task>``.
        how: see `extracted_weights`.

    Returns:
        ``[T]``; None where the run logged no weights.

    Raises:
        InputError: if it is not a finished run's directory, or the run is of other tasks.
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
