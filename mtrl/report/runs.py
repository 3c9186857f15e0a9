"""Runs as a report sees them: their records, and what they logged."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtrl.errors import InputError, unknown_name
from mtrl.report.statistics import Array, mean_of_present
from mtrl.run.record import MEASURES, PREFIXES, RunRecord, goals_of, read_record

_THIRDS = 3
_CONFLICT_ENTRIES = 100
_MATRICES = 5 * _THIRDS
_UPDATES_PER_SECOND = re.compile(rb'"speed/updates_per_s":\s*([0-9.eE+-]+)')
_MATRIX = "/cosines"  # how the keys of matrices end
_Line = tuple[int, bytes]
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Metrics:
    """What a run logged, as far as it is compared: E evaluations, M measurements of conflict.

    A value that is missing, null or not finite is NaN.

    Attributes:
        steps: ``[E]``, vector steps at each evaluation; epochs where the run is supervised.
        seconds: ``[E]``, seconds of training by then.
        scores: ``[E]``, the metric's mean over tasks; NaN where the run is supervised: its tasks have their own.
        task_scores: ``[E, T]``, the metric of each task; where the run is supervised, its first one, on validation.
        durations: seconds per 10,000 updates in each interval between two log entries with updates; seconds of each
            epoch's updates where the run is supervised.
        conflict_steps: ``[M]``, where conflict was measured, as ``steps``; at most 100, evenly thinned.
        conflict: ``[M]`` for each logged key, without its ``conflict/``.
        cosines: by objective ``[3, T, T]``, the pairwise cosines of the tasks' gradients in the early, middle and late
            third of training, each the mean of at most five matrices.
        old_matrices: whether matrices stand among the numbers, as older versions wrote them; these are not read.
        network: ``[M]`` for each measure of a network, without its ``network/``; none where the run is supervised.
        logged: ``[E]`` for each other key that is shown: where the run is supervised, what it is compared by, and
            otherwise success rates on the goals that ``scores`` are not of.
        missing: the keys of which a value is NaN in an evaluation or measurement that has others.
    """

    steps: Array
    seconds: Array
    scores: Array
    task_scores: Array
    durations: Array
    conflict_steps: Array
    conflict: dict[str, Array]
    cosines: dict[str, Array]
    old_matrices: bool
    network: dict[str, Array]
    logged: dict[str, Array]
    missing: list[str]

    @property
    def whole(self) -> NDArray[np.bool_]:
        """``[E]``, which evaluations have the metric's mean and that of every task."""
        whole: NDArray[np.bool_] = np.isfinite(self.scores) & np.isfinite(self.task_scores).all(1)
        return whole


@dataclass(frozen=True)
class Run(RunRecord):
    """A run's record, and what it logged."""

    metrics: Metrics


def metric_keys(folder: Path, metric: str | None, task_metric: str | None = None) -> tuple[str, str]:
    """The key of what runs of reinforcement learning are compared by, and that of a task without its name.

    ``metric`` is such a key, one of `MEASURES`, or None: the first of these that every run has evaluated by, as far as
    they have been evaluated. The other key is that of a task where it is given, or goes with the first. `InputError`
    where it is neither a measure nor a key.
    """
    if metric is not None and metric not in MEASURES and "/" not in metric:
        raise unknown_name("metric", metric, MEASURES)
    if metric is None:
        found = [_evaluated_by(file) for file in sorted(folder.rglob("metrics.jsonl"))]
        common = set(MEASURES).intersection(*filter(None, found))
        metric = next((measure for measure in MEASURES if measure in common), MEASURES[0])
    key = f"eval/{metric}_mean" if metric in MEASURES else metric
    return key, f"{key.removesuffix('_mean')}/" if task_metric is None else task_metric


def _evaluated_by(file: Path) -> set[str]:
    """The measures in a run's first evaluation; none before it."""
    with file.open("rb") as lines:
        first = next((line for line in lines if b'"eval/' in line), b"")
    return {measure for measure in MEASURES if f'"eval/{measure}_mean"'.encode() in first}


def load_runs(folder: Path, metric: str, task_metric: str) -> tuple[list[Run], list[str]]:
    """Every run in a folder and the folders below it, in the order of their paths, and what is left out.

    Of reinforcement learning, ``metric`` is the key of the metric's mean over tasks, e.g. ``eval/success_mean``, and
    ``task_metric`` that of a task without its name, e.g. ``eval/success/``. A sentence names each directory with a
    ``config.yaml`` that is not a run's or is damaged (a half-written last line is not damage).

    Raises:
        InputError: if the folder is missing or holds no run that can be read, or the runs are of different kinds
            or benchmarks.
    """
    if not folder.is_dir():
        raise InputError(f"runs={folder}: there is no such folder")
    runs: list[Run] = []
    remarks: list[str] = []
    for file in sorted(folder.rglob("config.yaml")):
        try:
            record = read_record(file.parent)
            runs.append(Run(**vars(record), metrics=_read_metrics(record, metric, task_metric)))
        except InputError as error:
            remarks.append(f"Left out: {error}.")
        except (OSError, ValueError, TypeError, OverflowError) as error:
            remarks.append(f"Left out: the metrics in {file.parent} are damaged: {' '.join(str(error).split())}.")
    if not runs:
        raise InputError(
            f"runs={folder}: no run in it or below it (a run directory has config.yaml, metrics.jsonl)"
            + "".join(f"; {remark.removesuffix('.')}" for remark in remarks[:1])
        )
    _check_benchmark(runs)
    runs = _in_one_order(runs)
    if old := sum(run.metrics.old_matrices for run in runs):
        remarks.append(
            f"{old} of {len(runs)} runs are of an older version, which kept matrices of cosines among the numbers in "
            "metrics.jsonl: the heat maps of pairs of tasks are without them."
        )
    return runs, remarks


def _check_benchmark(runs: Sequence[RunRecord]) -> None:
    first = runs[0]
    for run in runs:
        if run.kind != first.kind:
            learning, supervised = sorted([first, run], key=lambda own: own.kind)
            what = "reinforcement learning and supervised runs"
            where = f"{learning.directory} and {supervised.directory}"
        elif run.benchmark != first.benchmark:
            what = "different benchmarks"
            where = f"{first.benchmark} in {first.directory}, {run.benchmark} in {run.directory}"
        elif run.kind == "rl" and set(run.tasks) != set(first.tasks):
            what, where = "different benchmarks", f"different tasks in {first.directory} and {run.directory}"
        else:
            continue
        raise InputError(f"runs of {what} cannot be compared ({where}): compare them one by one")


def _in_one_order(runs: Sequence[Run]) -> list[Run]:
    """The runs with their tasks in the order of the first run of the same ones."""
    orders: dict[frozenset[str], list[str]] = {}
    ordered = []
    for run in runs:
        tasks = orders.setdefault(frozenset(run.tasks), run.tasks)
        if tasks != run.tasks:
            places = [run.tasks.index(task) for task in tasks]
            metrics = dataclasses.replace(
                run.metrics,
                task_scores=run.metrics.task_scores[:, places],
                cosines={key: values[:, places][:, :, places] for key, values in run.metrics.cosines.items()},
            )
            run = dataclasses.replace(run, tasks=tasks, config=run.config | {"tasks": tasks}, metrics=metrics)
        ordered.append(run)
    return ordered


def _read_metrics(record: RunRecord, metric: str, task_metric: str) -> Metrics:
    """Reads the lines that are compared; of the many others, in which agents log their training, only the speed."""
    path = record.directory / "metrics.jsonl"
    lines = _lines(path)
    supervised = record.kind == "supervised"
    step, prefix = ("epoch", "val/") if supervised else ("step", task_metric)
    tasks = [prefix + task for task in record.tasks]
    wanted = [f'"{key}"'.encode() for key in ([step] if supervised else [metric, *tasks])]
    evaluations = _entries(path, [line for line in lines if any(key in line[1] for key in wanted)])
    _check_keys(path, evaluations, [step, "time", *["speed/epoch_seconds"] * supervised], tasks)
    if supervised:
        conflict = _thinned(evaluations, _CONFLICT_ENTRIES)
        durations = _column(evaluations, "speed/epoch_seconds")
    else:
        others = [line for line in lines if not any(key in line[1] for key in wanted)]
        measured = [line for line in others if b'"conflict/' in line[1]]
        conflict = _entries(path, _thinned(measured, _CONFLICT_ENTRIES))
        speeds = [_UPDATES_PER_SECOND.search(line) for _, line in others if b'"conflict/' not in line]
        durations = np.array([10_000 / float(speed[1]) for speed in speeds if speed and float(speed[1]) > 0])
    weights = {f"shared/weight/{task}": values for task, values in _columns(conflict, "train/weight/").items()}
    found = _columns(conflict, "conflict/") | weights
    shown = ("val/", "distance/") if supervised else _other_goals(metric)
    logged = {start + key: values for start in shown for key, values in _columns(evaluations, start).items()}
    compared = {key: _column(evaluations, key) for key in ([] if supervised else [metric, *tasks])} | logged
    compared |= {f"conflict/{key}": values for key, values in found.items()}
    return Metrics(
        steps=_column(evaluations, step),
        seconds=_column(evaluations, "time"),
        scores=_column(evaluations, metric),
        task_scores=np.stack([_column(evaluations, key) for key in tasks], 1),
        durations=durations[np.isfinite(durations)],
        conflict_steps=_column(conflict, step),
        conflict=found,
        cosines=_read_cosines(record),
        network=_columns(conflict, "network/"),
        old_matrices=any(key.endswith(_MATRIX) for entry in (*evaluations, *conflict) for key in entry),
        logged=logged,
        missing=[key for key, values in compared.items() if np.isnan(values).any()],
    )


def _other_goals(metric: str) -> list[str]:
    """How the keys of success rates on goals begin that a metric is not of."""
    own = goals_of(metric)
    return [f"{prefix}success" for kind, prefix in PREFIXES.items() if own not in (None, kind)]


def _check_keys(path: Path, evaluations: Sequence[dict[str, Any]], always: Sequence[str], once: Sequence[str]) -> None:
    """InputError where an evaluation lacks one of some keys, or all lack one of others."""
    for entry in evaluations:
        if missing := next((key for key in always if not _is_number(entry.get(key))), None):
            raise InputError(f"{path}: the evaluation at step {entry['step']} has no '{missing}'")
    for key in once:
        if evaluations and not any(key in entry for entry in evaluations):
            raise InputError(f"{path}: the evaluation at step {evaluations[0]['step']} has no '{key}'")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _read_cosines(record: RunRecord) -> dict[str, Array]:
    """The means of the matrices of pairwise cosines in each third of training, by objective."""
    path = record.directory / "matrices.jsonl"
    lines = [line for line in _lines(path) if f'{_MATRIX}"'.encode() in line[1]]
    entries = _entries(path, _thinned(lines, _MATRICES))
    keys = dict.fromkeys(key for entry in entries for key in entry if key.endswith(_MATRIX))
    nothing = np.full((1, len(record.tasks), len(record.tasks)), np.nan)
    found = {}
    for key in keys:
        matrices = [_finite(np.array(entry[key], float)) for entry in entries if key in entry]
        thirds = np.array_split(np.stack(matrices), _THIRDS)
        means = [mean_of_present(np.concatenate([third, nothing])) for third in thirds]
        found[key.removeprefix("conflict/").removesuffix(_MATRIX)] = np.stack(means)
    return found


def _lines(path: Path) -> list[_Line]:
    """The lines with their numbers; without half a line of a run that is being written or was killed."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    try:
        json.loads(lines[-1])
    except (ValueError, RecursionError):
        del lines[-1]
    return list(enumerate(lines, 1))


def _entries(path: Path, lines: Sequence[_Line]) -> list[dict[str, Any]]:
    entries = []
    for number, line in lines:
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError("not an object with an integer 'step'")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        entries.append(entry)
    return entries


def _thinned(entries: Sequence[_Entry], most: int) -> list[_Entry]:
    kept = np.unique(np.linspace(0, len(entries) - 1, min(len(entries), most)).astype(int))
    return [entries[index] for index in kept]


def _columns(entries: list[dict[str, Any]], prefix: str) -> dict[str, Array]:
    """Every key of numbers with a prefix, without it."""
    keys = dict.fromkeys(key for entry in entries for key in entry if key.startswith(prefix))
    return {key.removeprefix(prefix): _column(entries, key) for key in keys if not key.endswith(_MATRIX)}


def _column(entries: list[dict[str, Any]], key: str) -> Array:
    return _finite(np.array([entry.get(key) for entry in entries], float))  # null and missing are NaN


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, np.nan)
