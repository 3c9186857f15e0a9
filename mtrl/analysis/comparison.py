"""Methods side by side: which runs are compared, at which step, and what differs between them besides the method."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrl.analysis.runs import Run
from mtrl.analysis.statistics import Floats, PairedComparison, compare_with_baseline
from mtrl.errors import InputError, unknown_name
from mtrl.experiment.run_directory import flatten

_SPEED_ONLY = ("device", "num_workers", "threads")
_NO_INFLUENCE = ("run_dir", "progress", "debug", *_SPEED_ONLY)
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Method:
    """The runs of one way of combining gradients.

    Attributes:
        name: the combiner's, with the options in which runs of the same combiner differ.
        runs: all with at least one evaluation, unfinished ones too.
        seeds: ``[n]``, those of the compared runs, sorted, each once.
        final: ``[n, T]``, scores at the step of comparison; the mean over runs where a seed was run twice.
        last: ``[n, T]``, means over the last evaluations up to that step.
        best: ``[n, T]``, scores at the evaluation, up to that step, with the best mean over tasks.
    """

    name: str
    runs: list[Run]
    seeds: list[int]
    final: Floats
    last: Floats
    best: Floats


@dataclass(frozen=True)
class Comparison:
    """What a report is made of.

    Attributes:
        benchmark: its name.
        tasks: ``[T]`` names.
        metric: the key of the metric.
        step: where the methods are compared: the last evaluation that every compared run reached.
        last_k: over how many evaluations `Method.last` is taken.
        evaluations: of how many evaluations the best is taken; the most of any run.
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
    metric: str
    step: int
    last_k: int
    evaluations: int
    seed: int
    baseline: str
    methods: list[Method]
    runs: list[Run]
    compared: list[Run]
    paired: list[PairedComparison]
    configuration: dict[str, dict[str, str]]
    warnings: list[str]


def compare(
    runs: Sequence[Run],
    *,
    metric: str,
    baseline: str,
    seed: int,
    last_k: int,
    left_out: Sequence[str] = (),
) -> Comparison:
    """Compares the methods of a set of runs.

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
    names = method_names(runs)
    evaluated = [run for run in runs if len(run.metrics.steps)]
    if not evaluated:
        raise InputError(f"none of the {len(runs)} runs has an evaluation ('{metric}') yet")
    compared = [run for run in evaluated if run.summary is not None] or evaluated
    step = min(run.metrics.steps[-1] for run in compared)
    by_name: dict[str, list[Run]] = defaultdict(list)
    for run, name in zip(runs, names, strict=True):
        by_name[name].append(run)
    if baseline not in by_name:
        raise unknown_name("baseline", baseline, by_name)
    order = sorted(by_name, key=lambda name: (name != baseline, name))
    methods = [_method(name, by_name[name], compared, step, last_k, len(runs[0].tasks)) for name in order]
    scored = {method.name: (method.seeds, method.last) for method in methods if method.seeds}
    configuration = _differences({name: by_name[name] for name in order})
    return Comparison(
        benchmark=runs[0].benchmark,
        tasks=runs[0].tasks,
        metric=metric,
        step=int(step),
        last_k=last_k,
        evaluations=max(int((run.metrics.steps <= step).sum()) for run in compared),
        seed=seed,
        baseline=baseline,
        methods=methods,
        runs=list(runs),
        compared=compared,
        paired=compare_with_baseline(scored, baseline, seed) if baseline in scored else [],
        configuration=configuration,
        warnings=[
            *_run_warnings(runs, compared, int(step)),
            *_method_warnings(methods, baseline),
            *_configuration_warnings(configuration),
            *_machine_warnings(runs),
            *left_out,
        ],
    )


def method_names(runs: Sequence[Run]) -> list[str]:
    """Each run's combiner, with those of its options in which runs of the same combiner differ."""
    options = [_texts(run.config["combiner"]) for run in runs]
    values: dict[str, dict[str, set[str]]] = {}
    for name in {own["name"] for own in options}:
        same = [own for own in options if own["name"] == name]
        values[name] = {key: {own.get(key, "absent") for own in same} for own in same for key in sorted(own)}
    names = []
    for own in options:
        differing = [key for key, found in values[own["name"]].items() if len(found) > 1]
        names.append(" ".join([own["name"], *(f"{key}={own.get(key, 'absent')}" for key in differing)]))
    return _shortened(names)


def _shortened(names: list[str]) -> list[str]:
    """Long names (options that are lists) become a number; the table of configurations says what it stands for."""
    long = [name for name in dict.fromkeys(names) if len(name) > _LONGEST_NAME]
    short = {name: f"{name.split()[0][:_LONGEST_NAME]} #{number}" for number, name in enumerate(long, 1)}
    return [short.get(name, name) for name in names]


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration as one level of dotted keys, its values as text."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(config).items()}


def _method(name: str, runs: list[Run], compared: list[Run], step: float, last_k: int, tasks: int) -> Method:
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
    return Method(name, evaluated, seeds, final, last, best)


def _differences(methods: Mapping[str, list[Run]]) -> dict[str, dict[str, str]]:
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
        warnings.append(
            f"{len(unfinished)} of {len(runs)} runs are not finished and not scored: {_named(unfinished)}. "
            "If a method's own failures stopped them, its scores are of the lucky runs alone."
        )
    elif unfinished:
        warnings.append(f"No run is finished: all are scored at step {step:,}, the last that each of them reached.")
        if unevaluated:
            warnings.append(f"Runs without an evaluation yet: {_named(unevaluated)}.")
    longest = max(run.metrics.steps[-1] for run in compared)
    if step < longest:
        shortest = [run for run in compared if run.metrics.steps[-1] == step]
        warnings.append(
            f"Compared runs have different lengths: all are scored at step {step:,}, the end of {_named(shortest)}; "
            f"the longest goes on to {int(longest):,}."
        )
    return warnings


def _method_warnings(methods: Sequence[Method], baseline: str) -> list[str]:
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


def _configuration_warnings(configuration: Mapping[str, Mapping[str, str]]) -> list[str]:
    others = {key: values for key, values in configuration.items() if not key.startswith("combiner.")}
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


def _machine_warnings(runs: Sequence[Run]) -> list[str]:
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


def _named(runs: Sequence[Run]) -> str:
    return _cut(", ".join(run.directory.name for run in runs))


def _cut(text: str, length: int = 300) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
