"""Methods side by side: which runs are compared, what may be said of them, and what else differs between them."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from mtrl.errors import InputError, unknown_name
from mtrl.report import statistics
from mtrl.report.runs import Run
from mtrl.report.statistics import Array, Estimate, PairedComparison, mean_over_seeds
from mtrl.run.directory import flatten
from mtrl.run.record import Machine
from mtrl.text import counted, in_order

_SPEED_ONLY = ("device", "num_workers", "threads")
_NO_INFLUENCE = ("run_dir", "progress", "wandb", "debug", "plugins", *_SPEED_ONLY)
_METHOD_KEYS = (
    *("combiner", "method", "agent", "optimizer", "wrt", "weights_from", "weights_how"),
    *("updates_per_step", "resets", "reset_updates", "batch_size", "precision", "rescale"),
)
_LONGEST_NAME = 48
_ENOUGH_SEEDS = max(statistics.COVERAGE)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Method:
    """The runs of one way of training.

    Attributes:
        name: the combiner's (or the method's that does without one), with the options of combiner, method, agent,
            optimizer and updates in which runs of the same name differ; without those that most ways of training with
            it have in common.
        every: all runs, unfinished ones too.
        seeds: ``[n]``, those of the compared runs, sorted, each once.
        scores: ``[n, T]``, what methods are compared by, higher is better; the mean over runs where a seed was run
            twice.
        reached: ``[n, ...]``, what else these runs came to, by name.
    """

    name: str
    every: list[Run]
    seeds: list[int]
    scores: Array
    reached: dict[str, Array]

    @cached_property
    def runs(self) -> list[Run]:
        """Those with at least one evaluation."""
        return [run for run in self.every if len(run.metrics.steps)]

    @property
    def durations(self) -> Array:
        """`Metrics.durations` of all runs."""
        return np.concatenate([np.empty(0), *(run.metrics.durations for run in self.runs)])

    def peak_memory(self, key: str) -> float | None:
        """The largest peak memory in GiB of any finished run; None where there is none."""
        return max(
            (run.summary.memory[key] for run in self.runs if run.summary and key in run.summary.memory), default=None
        )


@dataclass(frozen=True)
class Comparison:
    """What a report is made of.

    Attributes:
        score: what `Method.scores` are, in words.
        seed: of the resamples.
        baseline: the name of the method that the others are compared with.
        methods: the baseline first, the others by name.
        runs: every run, those without an evaluation too; one of all tasks first.
        compared: the runs that the scores are of.
        tuning_seeds: those of other runs, which chose the methods' options.
        remarks: what a reader has to know about these runs in particular, one line each.
        left_out: lines about what could not be read.
    """

    progress: ClassVar[str]
    """What `Metrics.steps` count, in words."""
    interval: ClassVar[str]
    """What `Metrics.durations` are the seconds of, in words."""

    score: str
    seed: int
    baseline: str
    methods: Sequence[Method]
    runs: Sequence[Run]
    compared: Sequence[Run]
    tuning_seeds: Sequence[int]
    remarks: Sequence[str]
    left_out: Sequence[str]

    @property
    def tasks(self) -> list[str]:
        """``[T]`` names."""
        return self.runs[0].tasks

    @property
    def parallel(self) -> int:
        """How many environment steps one of `Metrics.steps` is, in all tasks together; 1 where it is none."""
        return 1

    @property
    def scored(self) -> Sequence[Method]:
        """The methods that have scores."""
        return [method for method in self.methods if method.seeds]

    @cached_property
    def paired(self) -> list[PairedComparison]:
        """Each other method that has scores against the baseline."""
        scored = {method.name: (method.seeds, method.scores) for method in self.scored}
        return statistics.compare_with_baseline(scored, self.baseline, self.seed) if self.baseline in scored else []

    @property
    def machines(self) -> list[Machine]:
        """Where the finished runs were computed, as far as they say so."""
        return [run.summary.machine for run in self.runs if run.summary and run.summary.machine]

    @cached_property
    def configuration(self) -> dict[str, dict[str, str]]:
        """For each key in which runs differ (seed apart), its values by method."""
        return differences({method.name: method.every for method in self.methods})

    @cached_property
    def warnings(self) -> list[str]:
        """What a reader has to know, one line each."""
        return [
            *self.remarks,
            *_missing_warnings(self.runs),
            *_seed_warnings(self.methods, self.baseline),
            *_configuration_warnings(self.configuration),
            *_machine_warnings(self),
            *self.left_out,
        ]

    def estimate(self, values: Array, how: Callable[..., Estimate] = mean_over_seeds) -> Estimate:
        """An estimate with its interval, every one of the same resamples of seeds; NaN of no values.

        Rows with a value that is missing are left out.
        """
        values = values[np.isfinite(values.reshape(len(values), -1)).all(1)] if len(values) else values
        return how(values, np.random.default_rng(self.seed)) if len(values) else Estimate()

    def verdicts(self) -> list[str]:
        """What it says: of the methods other than the baseline, and how to read it."""
        if len(self.methods) == 1:
            return [f"Only {self.baseline} was run: there is nothing to compare it with."]
        sentences = statistics.verdict_sentences(self.paired)
        count = max((paired.comparisons for paired in self.paired), default=0)
        adjusted = f", adjusted for {count} comparisons (Holm, 1979)" if count > 1 else ""
        if any(paired.seeds for paired in self.paired):
            sentences.append(
                f"Differences are means over all tasks ({self.score}), with 95% intervals; p is that of a two-sided "
                f"sign-flip test over seeds{adjusted}; significant is p of at most {statistics.SIGNIFICANCE}. "
                "No significant difference is not evidence of equality: the interval says what is still possible."
            )
        return sentences


def runs_by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each method by its name, see `Method`."""
    by_name: dict[str, list[Run]] = defaultdict(list)
    for run, name in zip(runs, _method_names(runs), strict=True):
        by_name[name].append(run)
    return by_name


def baseline_first(by_name: Mapping[str, Item], baseline: str) -> dict[str, Item]:
    """The baseline, then the other methods by name.

    Raises:
        InputError: if there is no such baseline.
    """
    if baseline not in by_name:
        if ways := sorted(name for name in by_name if name.startswith(f"{baseline} ")):
            raise InputError(f"{baseline} was run in {len(ways)} ways: choose one as baseline, e.g. '{ways[0]}'")
        raise unknown_name("baseline", baseline, by_name)
    return {name: by_name[name] for name in sorted(by_name, key=lambda name: (name != baseline, in_order(name)))}


def _method_names(runs: Sequence[Run]) -> list[str]:
    """Each run's method, with those of its options in which runs of the same method differ.

    An option that most of the configurations share is not named, unless most of all methods' have another: where one
    is switched at a time, names tell which. Nor is a precision that every run of a seed has, whatever its method: seeds
    were shared out among machines then. Long names (of many options, or of lists) become the preset that was typed,
    ``agent=NAME``, or a number where that does not tell them apart; the table of configurations says what it is.
    """
    of_seeds = {json.dumps([run.seed, run.config.get("precision")]) for run in runs}
    by_seed = len(of_seeds) == len({run.seed for run in runs})
    keys_of_methods = [key for key in _METHOD_KEYS if key != "precision" or not by_seed]
    options = [
        {key: value for key, value in own.items() if key.split(".")[0] in keys_of_methods} for own in _settings(runs)
    ]
    distinct: dict[str, list[dict[str, str]]] = defaultdict(list)
    for run, own in zip(runs, options, strict=True):
        if own not in distinct[run.method]:
            distinct[run.method].append(own)
    everywhere = [own for every in distinct.values() for own in every]
    told: dict[str, dict[str, tuple[str, str | None]]] = {}
    for name, same in distinct.items():
        keys = dict.fromkeys(key for own in same for key in sorted(own))
        differing = [key for key in keys if len({own.get(key, "absent") for own in same}) > 1]
        unnamed = [_unnamed(key, same, everywhere) for key in differing]
        told[name] = dict(zip(differing, zip(_short(differing, keys), unnamed, strict=True), strict=True))
    names = []
    for run, own in zip(runs, options, strict=True):
        values = [(label, own.get(key, "absent"), unnamed) for key, (label, unnamed) in told[run.method].items()]
        named = [f"{label}={value}" for label, value, unnamed in values if value != unnamed]
        names.append(" ".join([run.method, *named]))
    long = [name for name in dict.fromkeys(names) if len(name) > _LONGEST_NAME]
    typed = [{_preset(run) for run, own in zip(runs, names, strict=True) if own == name} for name in long]
    methods = [name.split()[0][:_LONGEST_NAME] for name in long]
    short = [f"{method} {' '.join(presets)}" for method, presets in zip(methods, typed, strict=True)]
    unique = len({*short, *names}) == len(short) + len({*names})
    if not unique or any(len(presets) > 1 or "" in presets for presets in typed):
        short = [f"{method} #{number}" for number, method in enumerate(methods, 1)]
    renamed = dict(zip(long, short, strict=True))
    return [renamed.get(name, name) for name in names]


def _preset(run: Run) -> str:
    """The agent's preset as it was typed, e.g. ``agent=cpu``; nothing where none was, or the run is not finished."""
    command = run.summary.command if run.summary and run.summary.command else []
    return next((word for word in command if word.startswith("agent=")), "")


def _unnamed(key: str, same: Iterable[Mapping[str, str]], everywhere: Iterable[Mapping[str, str]]) -> str | None:
    """The value of an option that a method's name leaves out; combiners have their own options, so no common value."""
    usual = _usual(key, same)
    if key.startswith("combiner.") or _usual(key, everywhere) in (usual, None):
        return usual
    return None


def _usual(key: str, configurations: Iterable[Mapping[str, str]]) -> str | None:
    """The value of an option in more than half of the configurations, if there is one."""
    counts = Counter(own.get(key, "absent") for own in configurations)
    value, count = counts.most_common(1)[0]
    return value if 2 * count > counts.total() else None


def _short(keys: Sequence[str], among: Iterable[str]) -> list[str]:
    """As much of the end of each dotted key as tells it from all others."""
    ends = Counter(end for key in among for end in _ends(key))
    return [next((end for end in _ends(key) if ends[end] == 1), key) for key in keys]


def _ends(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def _settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Each run's configuration, see `_settings_of`; a key that came after a run, and is null in others, is so in it."""
    settings = [_settings_of(run) for run in runs]
    items = [item for own in settings for item in own.items() if item[1] == "null"]
    unset = {key: value for key, value in items if not key.startswith("combiner.")}  # of which each has its own options
    return [own | unset | own for own in settings]


def _settings_of(run: Run) -> dict[str, str]:
    """A run's configuration as one level of dotted keys, its values as text.

    Fixed weights that another run had (``weights_from``) are told by that run's name without the seed: there are others
    for each seed, and the method is the same.
    """
    settings = {
        key: value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in flatten(run.config).items()
    }
    if source := run.config.get("weights_from"):
        own_weights = [key for key in settings if key.startswith("combiner.") and key.endswith(".weights")]
        settings |= dict.fromkeys(own_weights, "extracted")
        settings["weights_from"] = Path(str(source)).name.replace(f"-seed{run.seed}", "")
    return settings


def differences(methods: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, str]]:
    """The values by method of each key in which runs differ, other than the seed and where they were computed."""
    settings = iter(_settings([run for runs in methods.values() for run in runs]))
    flat = {name: [next(settings) for _ in runs] for name, runs in methods.items()}
    differing = {}
    for key in dict.fromkeys(key for configs in flat.values() for config in configs for key in config):
        if key != "seed" and key.split(".")[0] not in _NO_INFLUENCE:
            found = {name: Counter(own.get(key, "absent") for own in configs) for name, configs in flat.items()}
            if len(set[str]().union(*found.values())) > 1:
                differing[key] = {name: _value(values) for name, values in found.items()}
    return differing


def _value(found: Mapping[str, int]) -> str:
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{value} ({counted(count, 'run')})" for value, count in found.items())


def unscored_warnings(runs: Sequence[Run], unscored: Sequence[Run], why: str) -> list[str]:
    """Names those of the runs that are not scored, for a reason in words; nothing where there are none."""
    if not unscored:
        return []
    are = "is" if len(unscored) == 1 else "are"
    return [
        f"{len(unscored)} of {counted(len(runs), 'run')} {are} {why} and not scored: {named(unscored)}. "
        "If a method's own failures are the reason, its scores are of the lucky runs alone."
    ]


def _missing_warnings(runs: Sequence[Run]) -> list[str]:
    lacking = [run for run in runs if run.metrics.missing]
    if not lacking:
        return []
    keys = _cut(", ".join(dict.fromkeys(key for run in lacking for key in run.metrics.missing)))
    return [f"Values that are missing (null, or not finite) are left out, in {named(lacking)}: of {keys}."]


def _seed_warnings(methods: Sequence[Method], baseline: str) -> list[str]:
    warnings = []
    for method in methods:
        run = Counter(run.seed for run in method.runs)
        if not method.seeds:
            role = "the baseline, so that nothing can be compared with it," if method.name == baseline else method.name
            warnings.append(f"No run of {role} can be scored yet.")
        if twice := ", ".join(str(seed) for seed in method.seeds if run[seed] > 1):
            warnings.append(f"{method.name} has several runs of seed {twice}: each seed counts once, as their mean.")
    fewest = min((len(method.seeds) for method in methods if len(method.seeds) > 1), default=0)
    if 0 < fewest < _ENOUGH_SEEDS:
        held, usual = statistics.COVERAGE[fewest], statistics.COVERAGE[_ENOUGH_SEEDS]
        warnings.append(
            f"Intervals of few seeds are too narrow: of {fewest}, a 95% bootstrap interval holds the true mean in "
            f"about {held} of 100 cases (of {_ENOUGH_SEEDS}: {usual})."
        )
    if len({tuple(method.seeds) for method in methods if method.seeds}) > 1:
        warnings.append("Methods were run with different seeds; the paired differences use those in common.")
    return warnings


def _configuration_warnings(configuration: Mapping[str, Mapping[str, str]]) -> list[str]:
    others = {key: values for key, values in configuration.items() if key.split(".")[0] not in ("combiner", "method")}
    if len(others) > 3:
        keys = _cut(", ".join(others))
        return [f"Runs differ in more than combiner and seed, in {keys}: see the differences in configuration."]
    warnings = []
    for key, values in others.items():
        where: dict[str, list[str]] = {}
        for name, value in values.items():
            where.setdefault(value, []).append(name)
        found = [(value, ", ".join(own) if len(own) < 4 else f"{len(own)} methods") for value, own in where.items()]
        listed = _cut(", ".join(f"{value} in {own}" for value, own in found))
        warnings.append(f"Runs differ in more than combiner and seed: {key} is {listed}.")
    return warnings


def _machine_warnings(comparison: Comparison) -> list[str]:
    machines = comparison.machines
    warnings: list[str] = []
    for package in dict.fromkeys(package for machine in machines for package in machine.versions):
        versions = (machine.versions.get(package, "none") for machine in machines)
        warnings += _differing(f"Runs were made with different versions of {package}", versions)
    hardware = (machine.hardware for machine in machines)
    warnings += _differing("Runs were made on different hardware, so that their times differ", hardware, "; ")
    for key in _SPEED_ONLY:
        values = (json.dumps(run.config.get(key), default=str) for run in comparison.runs)
        warnings += _differing(f"Runs differ in {key}, so that their times differ", values)
    return warnings


def _differing(what: str, values: Iterable[str], separator: str = ", ") -> list[str]:
    found = dict.fromkeys(values)
    return [f"{what}: {separator.join(found)}."] if len(found) > 1 else []


def named(runs: Sequence[Run]) -> str:
    """The names of runs, cut where they are many."""
    return _cut(", ".join(run.directory.name for run in runs))


def _cut(text: str, length: int = 300) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
