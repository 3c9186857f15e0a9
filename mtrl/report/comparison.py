"""Methods side by side: which runs are compared, at which step, and what differs between them besides the method."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrl.report.runs import Run
from mtrl.report.statistics import Floats, PairedComparison, compare_with_baseline
from mtrl.errors import InputError, unknown_name
from mtrl.run.directory import flatten

_SPEED_ONLY = ("device", "num_workers", "threads")
_NO_INFLUENCE = ("run_dir", "progress", "wandb", "debug", "plugins", *_SPEED_ONLY)
_METHOD_KEYS = ("combiner", "method", "agent", "optimizer", "wrt", "weights_from", "weights_how")
_LONGEST_NAME = 48


@dataclass(frozen=True)
class Method:
    """The runs of one way of training.

    Attributes:
        name: the combiner's (or the method's that does without one), with the options of combiner, method, agent and
            optimizer in which runs of the same name differ.
        runs: all with at least one evaluation, unfinished ones too.
        seeds: ``[n]``, those of the compared runs, sorted, each once.
        scores: ``[n, T]``, what methods are compared by, higher is better; the mean over runs where a seed was run
            twice.
    """

    name: str
    runs: list[Run]
    seeds: list[int]
    scores: Floats


@dataclass(frozen=True)
class Comparison:
    """What a report is made of.

    Attributes:
        benchmark: its name.
        tasks: ``[T]`` names.
        score: what `Method.scores` are, in words.
        progress: what `Metrics.steps` count, in words.
        interval: what `Metrics.durations` are the seconds of, in words.
        seed: of the resamples.
        baseline: the name of the method that the others are compared with.
        methods: the baseline first, the others by name.
        runs: every run, those without an evaluation too.
        compared: the runs that the scores are of.
        paired: each other method against the baseline.
        configuration: for each key in which runs differ (seed apart), its values by method.
        warnings: what a reader has to know, one line each.
    """

    benchmark: str
    tasks: list[str]
    score: str
    progress: str
    interval: str
    seed: int
    baseline: str
    methods: Sequence[Method]
    runs: list[Run]
    compared: list[Run]
    paired: list[PairedComparison]
    configuration: dict[str, dict[str, str]]
    warnings: list[str]


@dataclass(frozen=True)
class TrainedMethod(Method):
    """The runs of one way of training an agent; `scores` are means over the last evaluations up to the common step.

    Attributes:
        final: ``[n, T]``, scores at the step of comparison.
        best: ``[n, T]``, scores at the evaluation, up to that step, with the best mean over tasks.
    """

    final: Floats
    best: Floats


@dataclass(frozen=True)
class TrainingComparison(Comparison):
    """A comparison of runs of reinforcement learning.

    Attributes:
        metric: the key of the metric.
        step: where the methods are compared: the last evaluation that every compared run reached.
        last_k: over how many evaluations `Method.scores` are taken.
        evaluations: of how many evaluations the best is taken; the most of any run.
    """

    methods: Sequence[TrainedMethod]
    metric: str
    step: int
    last_k: int
    evaluations: int


def compare(
    runs: Sequence[Run],
    *,
    metric: str,
    baseline: str,
    seed: int,
    last_k: int,
    left_out: Sequence[str] = (),
) -> TrainingComparison:
    """Compares the methods of a set of runs of reinforcement learning.

    Where any run is finished, finished runs alone are scored; otherwise every run is. All are scored at the last
    evaluation that each of them reached, so that a longer run has no advantage.

    Args:
        runs: of one benchmark.
        metric: what `Metrics.scores` holds.
        baseline: the name of the method that the others are compared with.
        seed: of the resamples.
        last_k: how many evaluations count as the last.
        left_out: lines about what could not be read, for the reader.

    Raises:
        InputError: if no run has an evaluation, or there is no such baseline.
    """
    evaluated = [run for run in runs if len(run.metrics.steps)]
    if not evaluated:
        raise InputError(f"none of the {len(runs)} runs has an evaluation ('{metric}') yet")
    compared = [run for run in evaluated if run.summary is not None] or evaluated
    step = min(run.metrics.steps[-1] for run in compared)
    by_name = runs_by_method(runs, baseline)
    methods = [_method(name, own, compared, step, last_k, len(runs[0].tasks)) for name, own in by_name.items()]
    configuration = differences(by_name)
    return TrainingComparison(
        benchmark=runs[0].benchmark,
        tasks=runs[0].tasks,
        score=f"{metric_label(metric)}, mean of the last {last_k} evaluations",
        progress="vector steps (one environment step in every task)",
        interval="10,000 updates",
        metric=metric,
        step=int(step),
        last_k=last_k,
        evaluations=max(int((run.metrics.steps <= step).sum()) for run in compared),
        seed=seed,
        baseline=baseline,
        methods=methods,
        runs=list(runs),
        compared=compared,
        paired=pair(methods, baseline, seed),
        configuration=configuration,
        warnings=[
            *_run_warnings(runs, compared, int(step)),
            *method_warnings(methods, baseline),
            *configuration_warnings(configuration),
            *machine_warnings(runs),
            *left_out,
        ],
    )


def metric_label(metric: str) -> str:
    """What an axis calls a metric."""
    return "success rate" if metric == "eval/success_mean" else metric


def runs_by_method(runs: Sequence[Run], baseline: str) -> dict[str, list[Run]]:
    """The runs of each method by its name, the baseline first, the others by name.

    Raises:
        InputError: if there is no such baseline.
    """
    by_name: dict[str, list[Run]] = defaultdict(list)
    for run, name in zip(runs, method_names(runs), strict=True):
        by_name[name].append(run)
    if baseline not in by_name:
        raise unknown_name("baseline", baseline, by_name)
    return {name: by_name[name] for name in sorted(by_name, key=lambda name: (name != baseline, name))}


def pair(methods: Sequence[Method], baseline: str, seed: int) -> list[PairedComparison]:
    """Each method that has scores against the baseline."""
    scored = {method.name: (method.seeds, method.scores) for method in methods if method.seeds}
    return compare_with_baseline(scored, baseline, seed) if baseline in scored else []


def method_names(runs: Sequence[Run]) -> list[str]:
    """Each run's method, with those of its options in which runs of the same method differ."""
    options = [_texts({key: run.config[key] for key in _METHOD_KEYS if key in run.config}) for run in runs]
    labels: dict[str, dict[str, str]] = {}
    for name in {run.method for run in runs}:
        same = [own for run, own in zip(runs, options, strict=True) if run.method == name]
        keys = dict.fromkeys(key for own in same for key in sorted(own))
        last_parts = Counter(key.rpartition(".")[2] for key in keys)
        labels[name] = {
            key: last if last_parts[last := key.rpartition(".")[2]] == 1 else key
            for key in keys
            if len({own.get(key, "absent") for own in same}) > 1
        }
    names = []
    for run, own in zip(runs, options, strict=True):
        differing = (f"{label}={own.get(key, 'absent')}" for key, label in labels[run.method].items())
        names.append(" ".join([run.method, *differing]))
    return _shortened(names)


def _shortened(names: list[str]) -> list[str]:
    """Long names (options that are lists) become a number; the table of configurations says what it stands for."""
    long = [name for name in dict.fromkeys(names) if len(name) > _LONGEST_NAME]
    short = {name: f"{name.split()[0][:_LONGEST_NAME]} #{number}" for number, name in enumerate(long, 1)}
    return [short.get(name, name) for name in names]


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration as one level of dotted keys, its values as text."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(config).items()}


def _method(name: str, runs: list[Run], compared: list[Run], step: float, last_k: int, tasks: int) -> TrainedMethod:
    rows: dict[int, list[Floats]] = defaultdict(list)
    directories = {run.directory for run in compared}
    for run in runs:
        if run.directory in directories:
            until = int((run.metrics.steps <= step).sum())
            means, scores = run.metrics.scores[:until], run.metrics.task_scores[:until]
            rows[run.seed].append(np.stack([scores[-1], scores[-last_k:].mean(0), scores[means.argmax()]]))
    seeds = sorted(rows)
    empty = np.zeros((3, 0, tasks))
    final, last, best = np.stack([np.mean(rows[seed], 0) for seed in seeds], 1) if seeds else empty
    evaluated = [run for run in runs if len(run.metrics.steps)]
    return TrainedMethod(name, evaluated, seeds, scores=last, final=final, best=best)


def differences(methods: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, str]]:
    """The values by method of each key in which runs differ, other than the seed and where they were computed."""
    values: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    flat = {name: [_texts(run.config) for run in runs] for name, runs in methods.items()}
    keys = dict.fromkeys(key for configs in flat.values() for config in configs for key in config)
    for key in keys:
        if key != "seed" and key.split(".")[0] not in _NO_INFLUENCE:
            for name, configs in flat.items():
                for config in configs:
                    values[key][name][config.get(key, "absent")] += 1
    return {
        key: {name: _value(found) for name, found in by_method.items()}
        for key, by_method in values.items()
        if len({value for found in by_method.values() for value in found}) > 1
    }


def _value(found: Mapping[str, int]) -> str:
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{value} ({count} runs)" if count > 1 else f"{value} (1 run)" for value, count in found.items())


# ------------------------------------------------------------------------------------------------------ warnings


def _run_warnings(runs: Sequence[Run], compared: Sequence[Run], step: int) -> list[str]:
    warnings = []
    unfinished = [run for run in runs if run.summary is None]
    unevaluated = [run for run in runs if not len(run.metrics.steps)]
    if len(compared) < len(runs) and len(unfinished) < len(runs):
        warnings.append(unscored_warning(runs))
    elif unfinished:
        warnings.append(f"No run is finished: all are scored at step {step:,}, the last that each of them reached.")
        if unevaluated:
            warnings.append(f"Runs without an evaluation yet: {named(unevaluated)}.")
    longest = max(run.metrics.steps[-1] for run in compared)
    if step < longest:
        shortest = [run for run in compared if run.metrics.steps[-1] == step]
        warnings.append(
            f"Compared runs have different lengths: all are scored at step {step:,}, the end of {named(shortest)}; "
            f"the longest goes on to {int(longest):,}."
        )
    return warnings


def unscored_warning(runs: Sequence[Run]) -> str:
    """Names the unfinished among the runs."""
    unfinished = [run for run in runs if run.summary is None]
    return (
        f"{len(unfinished)} of {len(runs)} runs are not finished and not scored: {named(unfinished)}. "
        "If a method's own failures stopped them, its scores are of the lucky runs alone."
    )


def method_warnings(methods: Sequence[Method], baseline: str) -> list[str]:
    """What is to be known of the methods' seeds."""
    warnings = []
    seeds = {tuple(method.seeds) for method in methods if method.seeds}
    for method in methods:
        compared_twice = [seed for seed in method.seeds if [run.seed for run in method.runs].count(seed) > 1]
        if not method.seeds:
            role = "the baseline, so that nothing can be compared with it," if method.name == baseline else method.name
            warnings.append(f"No run of {role} can be scored yet.")
        if compared_twice:
            listed = ", ".join(map(str, compared_twice))
            warnings.append(f"{method.name} has several runs of seed {listed}: each seed counts once, as their mean.")
    if len(seeds) > 1:
        warnings.append("Methods were run with different seeds; the paired differences use those in common.")
    return warnings


def configuration_warnings(configuration: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Says where runs differ in more than combiner (or method) and seed."""
    others = {key: values for key, values in configuration.items() if key.split(".")[0] not in ("combiner", "method")}
    if len(others) > 3:
        keys = _cut(", ".join(others))
        return [f"Runs differ in more than combiner and seed, in {keys}: see the differences in configuration."]
    warnings = []
    for key, values in others.items():
        where = {value: [name for name in values if values[name] == value] for value in values.values()}
        listed = ", ".join(
            f"{value} in {', '.join(names) if len(names) < 4 else f'{len(names)} methods'}"
            for value, names in where.items()
        )
        warnings.append(f"Runs differ in more than combiner and seed: {key} is {_cut(listed)}.")
    return warnings


def machine_warnings(runs: Sequence[Run]) -> list[str]:
    """Says where runs were made on different machines, or with different versions."""
    machines = [run.summary["machine"] for run in runs if run.summary and "machine" in run.summary]
    warnings = []
    packages = dict.fromkeys(package for machine in machines for package in machine["versions"])
    for package in packages:
        versions = dict.fromkeys(machine["versions"].get(package, "none") for machine in machines)
        if len(versions) > 1:
            warnings.append(f"Runs were made with different versions of {package}: {', '.join(versions)}.")
    hardware = dict.fromkeys(hardware_of(machine) for machine in machines)
    if len(hardware) > 1:
        warnings.append(f"Runs were made on different hardware, so that their times differ: {'; '.join(hardware)}.")
    for key in _SPEED_ONLY:
        values = dict.fromkeys(json.dumps(run.config.get(key)) for run in runs)
        if len(values) > 1:
            warnings.append(f"Runs differ in {key}, so that their times differ: {', '.join(values)}.")
    return warnings


def hardware_of(machine: Mapping[str, Any]) -> str:
    """A machine of a ``summary.json`` in words."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return f"{machine['processor']}, {machine['cores']} cores{gpu}"


def named(runs: Sequence[Run]) -> str:
    """The names of runs, cut where they are many."""
    return _cut(", ".join(run.directory.name for run in runs))


def _cut(text: str, length: int = 300) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
