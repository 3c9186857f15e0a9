"""Supervised methods side by side: what each reaches on the test split, beside single-task training."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrl.report.comparison import (
    Comparison,
    Method,
    configuration_warnings,
    differences,
    machine_warnings,
    method_warnings,
    pair,
    runs_by_method,
    unscored_warning,
)
from mtrl.report.runs import Run
from mtrl.report.statistics import Floats
from mtrl.errors import InputError
from mtrl.supervised.measures import relative_gain

SINGLE = "single-task training"


@dataclass(frozen=True)
class SupervisedMethod(Method):
    """The runs of one way of training a supervised model; `scores` are relative gains of each task, in per cent.

    Attributes:
        test: ``[n]`` by metric key, what the selected models reach on the test split.
    """

    test: dict[str, Floats]


@dataclass(frozen=True)
class SupervisedComparison(Comparison):
    """A comparison of supervised runs of one set of tasks.

    Attributes:
        metrics: a label for each metric key: the task and the metric's name.
        higher_is_better: by metric key.
        single: the test metrics of single-task training, ``[n]`` by metric key; empty where it was not run.
        reference_name: what the gains are over: single-task training or, where that was not run, the baseline.
    """

    methods: Sequence[SupervisedMethod]
    metrics: dict[str, str]
    higher_is_better: dict[str, bool]
    single: dict[str, Floats]
    reference_name: str

    def means(self, test: Mapping[str, Floats]) -> dict[str, Floats]:
        """``[n, T]`` by metric name: what the tasks that are judged by a metric reach, where these are several."""
        groups: dict[str, list[Floats]] = defaultdict(list)
        for task in self.tasks:
            groups[self.metrics[task].removeprefix(f"{task} ")].append(test[task])
        return {name: np.stack(columns, 1) for name, columns in groups.items() if len(columns) > 1}


def compare_supervised(
    runs: Sequence[Run], *, baseline: str, seed: int, left_out: Sequence[str] = ()
) -> list[SupervisedComparison]:
    """Compares the methods of supervised runs by their test metrics, which only finished runs have.

    Runs of a single task are no method: they are the reference that the gains of the others are over.

    Args:
        runs: of one benchmark.
        baseline: the name of the method that the others are compared with.
        seed: of the resamples.
        left_out: lines about what could not be read, for the reader.

    Returns:
        One comparison for each set of tasks.

    Raises:
        InputError: if no run of several tasks is finished, or there is no such baseline.
    """
    singles: dict[str, list[Run]] = defaultdict(list)
    multiple: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if len(run.tasks) == 1:
            singles[run.tasks[0]].append(run)
        else:
            multiple[tuple(run.tasks)].append(run)
    if not multiple:
        raise InputError(
            f"all {len(runs)} runs are of a single task: they are what multi-task runs are measured by, and there "
            "is none of these"
        )
    left_out = [
        *left_out,
        *(
            f"Single-task runs of {task} are not used: no run has it among several tasks."
            for task in singles
            if not any(task in tasks for tasks in multiple)
        ),
        *(
            f"No run of the tasks {', '.join(tasks)} is finished: they are left out."
            for tasks, own in multiple.items()
            if not _finished(own)
        ),
    ]
    comparisons = [
        _compare(own, {task: singles[task] for task in tasks}, baseline, seed, left_out)
        for tasks, own in sorted(multiple.items())
        if _finished(own)
    ]
    if not comparisons:
        raise InputError(
            f"none of the {len(runs)} runs of several tasks is finished: test metrics are read at the end of training"
        )
    return comparisons


def _compare(
    runs: list[Run], singles: Mapping[str, list[Run]], baseline: str, seed: int, left_out: list[str]
) -> SupervisedComparison:
    described = _part(_finished(runs)[0], "metrics")
    higher = {key: bool(metric["higher_is_better"]) for key, metric in described.items()}
    by_name = runs_by_method(runs, baseline)
    tested = {name: _tested(own, list(higher)) for name, own in by_name.items()}
    single: dict[str, Floats] = {}
    for task, own in singles.items():
        if _finished(own):
            single |= _tested(own, [key for key in higher if key.split("/")[0] == task])[1]
    missing = [task for task in singles if task not in single]
    if missing and not tested[baseline][0]:
        raise InputError(
            f"gains have nothing to be measured by: neither single-task training of {missing[0]} nor the baseline, "
            f"{baseline}, has a finished run"
        )
    over = tested[baseline][1] if missing else single
    reference = {key: float(over[key].mean()) for key in higher}
    reference_name = baseline if missing else SINGLE
    methods = [
        SupervisedMethod(
            name,
            runs=[run for run in own if len(run.metrics.steps)],
            seeds=tested[name][0],
            scores=_gains(tested[name][1], reference, higher),
            test=tested[name][1],
        )
        for name, own in by_name.items()
    ]
    configuration = differences(by_name)
    every = [*runs, *(run for own in singles.values() for run in own)]
    return SupervisedComparison(
        benchmark=runs[0].benchmark,
        tasks=runs[0].tasks,
        score=f"relative gain over {reference_name}, %",
        progress="epochs",
        interval="epoch",
        seed=seed,
        baseline=baseline,
        methods=methods,
        runs=every,
        compared=_finished(every),
        paired=pair(methods, baseline, seed),
        configuration=configuration,
        warnings=[
            *([unscored_warning(every)] if len(_finished(every)) < len(every) else []),
            *_reference_warnings(runs, singles, missing, baseline),
            *method_warnings(methods, baseline),
            *configuration_warnings(configuration),
            *machine_warnings(every),
            *left_out,
        ],
        metrics={key: f"{key.split('/')[0]} {metric['name']}" for key, metric in described.items()},
        higher_is_better=higher,
        single={} if missing else single,
        reference_name=reference_name,
    )


def _finished(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.summary is not None]


def _tested(runs: Sequence[Run], keys: Sequence[str]) -> tuple[list[int], dict[str, Floats]]:
    """The seeds of finished runs and their test metrics by key; the mean over runs where a seed was run twice."""
    rows: dict[int, list[list[float]]] = defaultdict(list)
    for run in _finished(runs):
        test = _part(run, "test")
        for key in keys:
            if key not in test:
                raise InputError(f"{run.directory / 'summary.json'}: there is no test metric '{key}'")
        rows[run.seed].append([test[key] for key in keys])
    seeds = sorted(rows)
    values = np.array([np.mean(rows[seed], 0) for seed in seeds]).reshape(len(seeds), len(keys))
    return seeds, dict(zip(keys, values.T, strict=True))


def _part(run: Run, part: str) -> dict[str, Any]:
    assert run.summary is not None
    if not isinstance(run.summary.get(part), dict):
        raise InputError(f"{run.directory / 'summary.json'} is not that of a supervised run: it has no '{part}'")
    found: dict[str, Any] = run.summary[part]
    return found


def _gains(test: Mapping[str, Floats], reference: Mapping[str, float], higher: Mapping[str, bool]) -> Floats:
    """``[n, T]``, the relative gain of each task in per cent (Gama & Grassi, 2025, equation 1)."""
    tasks = dict.fromkeys(key.split("/")[0] for key in higher)
    rows = [dict(zip(test, row, strict=True)) for row in np.stack(list(test.values()), 1).tolist()]
    gains = [list(relative_gain(row, reference, higher)[1].values()) for row in rows]
    return 100 * np.array(gains).reshape(len(rows), len(tasks))


def _reference_warnings(
    runs: Sequence[Run], singles: Mapping[str, list[Run]], missing: list[str], baseline: str
) -> list[str]:
    if missing:
        return [f"There is no finished single-task run of {', '.join(missing)}: gains are over {baseline} instead."]
    warnings = []
    for task, own in singles.items():
        differing = differences({str(run.directory): [run] for run in own})
        if differing:
            warnings.append(
                f"Single-task runs of {task} differ in {', '.join(differing)}: the reference is the mean of all."
            )
        if own[0].config["benchmark"] != runs[0].config["benchmark"]:
            warnings.append(f"Single-task runs of {task} have other options of the benchmark than the runs of several.")
    return warnings
