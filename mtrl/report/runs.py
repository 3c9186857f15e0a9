"""Runs as the analysis sees them: what their directories hold, finished or not."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtrl.report.statistics import Floats, mean_of_present
from mtrl.errors import InputError
from mtrl.run.directory import read_config, read_summary

THIRDS = 3
_CONFLICT_ENTRIES = 100
_MATRICES = 5 * THIRDS
_UPDATES_PER_SECOND = re.compile(rb'"speed/updates_per_s":\s*([0-9.eE+-]+)')
_MATRIX = re.compile(rb',\s*"conflict/[^"]*/cosines":\s*\[(?:\[[^\]]*\],?\s*)*\]')
_Line = tuple[int, bytes]


@dataclass(frozen=True)
class Metrics:
    """What a run logged, as far as it is compared: E evaluations, M measurements of conflict.

    Attributes:
        steps: ``[E]``, vector steps at each evaluation; epochs where the run is supervised.
        seconds: ``[E]``, seconds of training by then.
        scores: ``[E]``, the metric's mean over tasks; NaN where the run is supervised, for its tasks have metrics of
            their own.
        task_scores: ``[E, T]``, the metric of each task; where the run is supervised, its first one, on validation.
        durations: seconds per 10,000 updates in each interval between two log entries with updates; seconds of each
            epoch's updates where the run is supervised.
        conflict_steps: ``[M]``, where conflict was measured, as ``steps``; at most 100, evenly thinned.
        conflict: ``[M]`` for each logged key, without its ``conflict/``; NaN where a measurement lacks it.
        cosines: by objective ``[3, T, T]``, the pairwise cosines of the tasks' gradients in the early, middle and late
            third of training, each the mean of at most five matrices; NaN where there is none.
        logged: ``[E]`` for each other key that is compared; nothing where the run is not supervised.
    """

    steps: Floats
    seconds: Floats
    scores: Floats
    task_scores: Floats
    durations: Floats
    conflict_steps: Floats
    conflict: dict[str, Floats]
    cosines: dict[str, Floats]
    logged: dict[str, Floats]


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
    def supervised(self) -> bool:
        """Whether it is a run of ``scripts/supervised.py``."""
        return "agent" not in self.config

    @property
    def method(self) -> str:
        """The combiner's name, or that of the method that does without one."""
        own = self.config.get("method") or {}
        return str(self.config["combiner"]["name"] if own.get("name", "combined") == "combined" else own["name"])

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
        lines = _lines(directory / "metrics.jsonl")
        try:
            if "agent" in config:
                metrics = _read_metrics(lines, directory / "metrics.jsonl", config["tasks"], metric, task_metric)
            else:
                metrics = _read_supervised_metrics(lines, directory / "metrics.jsonl", config["tasks"])
        except (ValueError, TypeError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{directory / 'metrics.jsonl'} is damaged: {' '.join(str(error).split())}") from error
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
        if run.supervised != first.supervised:
            kinds = sorted([first, run], key=lambda own: own.supervised)
            raise InputError(
                "runs of reinforcement learning and supervised runs cannot be compared "
                f"({kinds[0].directory} and {kinds[1].directory}): compare them one by one"
            )
        if run.benchmark != first.benchmark:
            difference = f"{first.benchmark} in {first.directory}, {run.benchmark} in {run.directory}"
        elif run.tasks != first.tasks and not run.supervised:
            difference = f"different tasks in {first.directory} and {run.directory}"
        else:
            continue
        raise InputError(f"runs of different benchmarks cannot be compared ({difference}): compare them one by one")


def _read_summary(directory: Path) -> dict[str, Any] | None:
    try:
        return read_summary(directory)
    except ValueError as error:
        raise InputError(f"{directory / 'summary.json'} cannot be read: {error}") from error


def _lines(path: Path) -> list[_Line]:
    """The lines with their numbers; without half a line of a run that is being written or was killed."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return list(enumerate(lines if _is_json(lines[-1]) else lines[:-1], 1))


def _read_metrics(lines: list[_Line], path: Path, tasks: list[str], metric: str, task_metric: str) -> Metrics:
    """Reads the lines that are compared; of the many others, in which training is logged, only the speed."""
    wanted = f'"{metric}"'.encode()
    evaluated: list[_Line] = []
    measured: list[_Line] = []
    durations: list[float] = []
    for number, line in lines:
        if wanted in line:
            evaluated.append((number, line))
        elif b'"conflict/' in line:
            measured.append((number, line))
        elif (speed := _UPDATES_PER_SECOND.search(line)) and float(speed[1]) > 0:
            durations.append(10_000 / float(speed[1]))
    evaluations = [_entry(path, line) for line in evaluated]
    conflict = _conflict_entries(path, measured)
    _require(path, evaluations, ["time", *(task_metric + task for task in tasks)])
    return Metrics(
        steps=_column(evaluations, "step"),
        seconds=_column(evaluations, "time"),
        scores=_column(evaluations, metric),
        task_scores=np.stack([_column(evaluations, task_metric + task) for task in tasks], 1),
        durations=np.array(durations),
        conflict_steps=_column(conflict, "step"),
        conflict=_columns(conflict, "conflict/"),
        cosines=_cosines(path, measured, len(tasks)),
        logged={},
    )


def _read_supervised_metrics(lines: list[_Line], path: Path, tasks: list[str]) -> Metrics:
    """Reads the line of each epoch, in which everything is."""
    lines = [(number, line) for number, line in lines if b'"epoch"' in line]
    epochs = [_entry(path, (number, _MATRIX.sub(b"", line))) for number, line in lines]
    conflict = _conflict_entries(path, lines)
    _require(path, epochs, ["time", "speed/epoch_seconds", *(f"val/{task}" for task in tasks)])
    return Metrics(
        steps=_column(epochs, "epoch"),
        seconds=_column(epochs, "time"),
        scores=np.full(len(epochs), np.nan),
        task_scores=np.stack([_column(epochs, f"val/{task}") for task in tasks], 1),
        durations=_column(epochs, "speed/epoch_seconds"),
        conflict_steps=_column(conflict, "epoch"),
        conflict=_columns(conflict, "conflict/")
        | {f"shared/weight/{task}": values for task, values in _columns(conflict, "train/weight/").items()},
        cosines=_cosines(path, lines, len(tasks)),
        logged={
            prefix + key: values for prefix in ("val/", "distance/") for key, values in _columns(epochs, prefix).items()
        },
    )


def _require(path: Path, entries: list[dict[str, Any]], keys: list[str]) -> None:
    for entry in entries:
        for key in keys:
            if key not in entry:
                raise InputError(f"{path}: the evaluation at step {entry['step']} has no '{key}'")


def _conflict_entries(path: Path, measured: list[_Line]) -> list[dict[str, Any]]:
    """At most 100 of the measurements of conflict, without their matrices, which take long to parse."""
    return [_entry(path, (number, _MATRIX.sub(b"", line))) for number, line in _thinned(measured, _CONFLICT_ENTRIES)]


def _cosines(path: Path, measured: list[_Line], count: int) -> dict[str, Floats]:
    """The means of the matrices of pairwise cosines in each third of training, by objective."""
    entries = [_entry(path, line) for line in _thinned([m for m in measured if b'/cosines"' in m[1]], _MATRICES)]
    keys = dict.fromkeys(key for entry in entries for key in entry if key.endswith("/cosines"))
    nothing = np.full((1, count, count), np.nan)
    found = {}
    for key in keys:
        matrices = [np.array(entry[key], float) for entry in entries if key in entry]
        thirds = np.array_split(np.stack(matrices), THIRDS)
        means = [mean_of_present(np.concatenate([third, nothing])) for third in thirds]
        found[key.removeprefix("conflict/").removesuffix("/cosines")] = np.stack(means)
    return found


def _thinned(lines: list[_Line], most: int) -> list[_Line]:
    kept = np.unique(np.linspace(0, len(lines) - 1, min(len(lines), most)).astype(int))
    return [lines[index] for index in kept]


def _columns(entries: list[dict[str, Any]], prefix: str) -> dict[str, Floats]:
    """Every key with a prefix, without it."""
    keys = dict.fromkeys(key for entry in entries for key in entry if key.startswith(prefix))
    return {key.removeprefix(prefix): _column(entries, key) for key in keys}


def _column(entries: list[dict[str, Any]], key: str) -> Floats:
    return np.array([entry.get(key) for entry in entries], float)  # null and missing are NaN


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _entry(path: Path, numbered: _Line) -> dict[str, Any]:
    number, line = numbered
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise ValueError("not an object with an integer 'step'")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: {error}") from error
    return entry
