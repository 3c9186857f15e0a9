"""Runs as the analysis sees them: what their directories hold, finished or not."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.analysis.statistics import Floats
from mtrl.errors import InputError
from mtrl.experiment.run_directory import read_config, read_summary

_CONFLICT_ENTRIES = 100
_UPDATES_PER_SECOND = re.compile(rb'"speed/updates_per_s":\s*([0-9.eE+-]+)')


@dataclass(frozen=True)
class Metrics:
    """What a run logged, as far as it is compared: E evaluations, M measurements of conflict.

    Attributes:
        steps: ``[E]``, vector steps at each evaluation.
        seconds: ``[E]``, seconds of training by then.
        scores: ``[E]``, the metric's mean over tasks.
        task_scores: ``[E, T]``, the metric of each task.
        update_seconds: seconds per 10,000 updates in each interval between two log entries with updates.
        conflict_steps: ``[M]``, vector steps at each measurement of conflict; at most 100, evenly thinned.
        conflict: ``[M]`` for each logged key, without its ``conflict/``; NaN where a measurement lacks it.
    """

    steps: Floats
    seconds: Floats
    scores: Floats
    task_scores: Floats
    update_seconds: Floats
    conflict_steps: Floats
    conflict: dict[str, Floats]


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        directory: where it is.
        config: its configuration.
        summary: what it ended with; None for a running or killed run.
        metrics: what it logged.
    """

    directory: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    metrics: Metrics

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config["seed"])

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return str(self.config["benchmark"]["name"])

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the columns of `Metrics.task_scores`."""
        return list(self.config["tasks"])


def load_runs(folder: Path, metric: str, task_metric: str) -> tuple[list[Run], list[str]]:
    """Every run in a folder and the folders below it, in the order of their paths.

    Args:
        folder: where to look.
        metric: the key of the metric's mean over tasks, e.g. ``eval/success_mean``.
        task_metric: what stands before a task's name in the key of its metric, e.g. ``eval/success/``.

    Returns:
        The runs, and a line for each directory with a ``config.yaml`` that is not a run's.

    Raises:
        InputError: if the folder is missing or holds no run, the runs are of different benchmarks, or a run's
            metrics are damaged (a half-written last line is not damage).
    """
    if not folder.is_dir():
        raise InputError(f"runs={folder}: there is no such folder")
    runs: list[Run] = []
    skipped: list[str] = []
    for file in sorted(folder.rglob("config.yaml")):
        directory = file.parent
        try:
            config = read_config(directory)
        except InputError as error:
            skipped.append(f"Left out: {error}.")
            continue
        if not _is_run(config):
            skipped.append(f"Left out: {file} is not a run's configuration.")
            continue
        metrics = _read_metrics(directory / "metrics.jsonl", config["tasks"], metric, task_metric)
        runs.append(Run(directory, config, _read_summary(directory), metrics))
    if not runs:
        raise InputError(f"runs={folder}: no run in it or below it (a run directory has config.yaml, metrics.jsonl)")
    _check_benchmark(runs)
    return runs, skipped


def _is_run(config: Mapping[str, Any]) -> bool:
    return (
        isinstance(config.get("seed"), int)
        and isinstance(config.get("tasks"), list)
        and all(isinstance(config.get(key), dict) and "name" in config[key] for key in ("benchmark", "combiner"))
    )


def _check_benchmark(runs: list[Run]) -> None:
    first = runs[0]
    for run in runs:
        if run.benchmark != first.benchmark:
            difference = f"{first.benchmark} in {first.directory}, {run.benchmark} in {run.directory}"
        elif run.tasks != first.tasks:
            difference = f"different tasks in {first.directory} and {run.directory}"
        else:
            continue
        raise InputError(f"runs of different benchmarks cannot be compared ({difference}): compare them one by one")


def _read_summary(directory: Path) -> dict[str, Any] | None:
    try:
        return read_summary(directory)
    except ValueError as error:
        raise InputError(f"{directory / 'summary.json'} cannot be read: {error}") from error


def _read_metrics(path: Path, tasks: list[str], metric: str, task_metric: str) -> Metrics:
    """Reads the lines that are compared; of the many others, in which training is logged, only the speed."""
    wanted = f'"{metric}"'.encode()
    evaluations: list[dict[str, Any]] = []
    measurements: list[tuple[int, bytes]] = []
    update_seconds: list[float] = []
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    if not _is_json(lines[-1]):
        lines = lines[:-1]  # empty, or half a line of a run that is being written or was killed
    for number, line in enumerate(lines, 1):
        if wanted in line:
            evaluations.append(_entry(path, number, line))
        elif b'"conflict/' in line:
            measurements.append((number, line))
        elif (speed := _UPDATES_PER_SECOND.search(line)) and float(speed[1]) > 0:
            update_seconds.append(10_000 / float(speed[1]))
    kept = np.unique(np.linspace(0, len(measurements) - 1, min(len(measurements), _CONFLICT_ENTRIES)).astype(int))
    conflict = [_entry(path, *measurements[index]) for index in kept]
    keys = dict.fromkeys(key for entry in conflict for key in entry if key.startswith("conflict/"))

    def column(entries: list[dict[str, Any]], key: str) -> Floats:
        return np.array([entry.get(key) for entry in entries], float)  # null and missing are NaN

    for entry in evaluations:
        for key in ("time", *(task_metric + task for task in tasks)):
            if key not in entry:
                raise InputError(f"{path}: the evaluation at step {entry['step']} has no '{key}'")
    return Metrics(
        steps=column(evaluations, "step"),
        seconds=column(evaluations, "time"),
        scores=column(evaluations, metric),
        task_scores=np.stack([column(evaluations, task_metric + task) for task in tasks], 1),
        update_seconds=np.array(update_seconds),
        conflict_steps=column(conflict, "step"),
        conflict={key.removeprefix("conflict/"): column(conflict, key) for key in keys},
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _entry(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise ValueError("not an object with an integer 'step'")
    except ValueError as error:
        raise InputError(f"{path}, line {number}: {error}") from error
    return entry
