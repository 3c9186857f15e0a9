"""What a run directory says of its run, typed: the contract between training and those who read what it came to."""

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mtrl.errors import InputError
from mtrl.run.directory import read_config, read_summary

_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", list: "a list"}


@dataclass(frozen=True)
class Machine:
    """Where a run was computed: hardware, and the version of each package."""

    versions: dict[str, str] = field(default_factory=dict)
    processor: str = "unknown processor"
    cores: int | None = None
    gpu: str | None = None

    @property
    def hardware(self) -> str:
        """Processor, cores and GPU in words."""
        cores = [] if self.cores is None else [f"{self.cores} cores"]
        return ", ".join([self.processor, *cores, *([self.gpu] if self.gpu else [])])


@dataclass(frozen=True)
class Metric:
    """What a supervised task is judged by."""

    name: str
    higher_is_better: bool


PREFIXES = {"training": "eval/", "held_out": "eval/held_out/"}
"""Of metrics' keys, by the goals that are played: those of training, which is Meta-World's protocol, or others."""
GOALS = {"training": "goals of training", "held_out": "held-out goals", "seeded": "seeded episodes"}
"""What the goals that are played are called."""
MEASURES = "success", "score", "return"
"""What agents can be judged by, higher is better: success rates, returns on the scale from a random policy's to an
expert's, returns. The first that evaluations have is what they are judged by."""


def prefix_of(goals: str) -> str:
    """That of metrics' keys, for one of `GOALS`; where tasks have no goals, episodes of one seed stand alone."""
    return PREFIXES.get(goals, "eval/")


def goals_of(metric: str) -> str | None:
    """Which goals a metric is measured on, one of `PREFIXES`; None where its key says nothing of them."""
    kinds = [kind for kind, prefix in PREFIXES.items() if metric.startswith(prefix)]
    return max(kinds, key=lambda kind: len(PREFIXES[kind]), default=None)


@dataclass(frozen=True)
class Selection:
    """How a supervised run chose its models on the validation split: each one's score, by what it was chosen for."""

    by: str
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Final:
    """The last evaluation of an agent, the mean over tasks and by task: what was measured of it.

    That is of success rates in [0, 1], returns, scores (returns on the scale from a random policy's to an expert's) and
    lengths of episodes. They are of the first goals that it was evaluated on; of held-out ones too, where those were
    not the first. Raises `InputError` if there is nothing.
    """

    success_mean: float | None = None
    success: dict[str, float] = field(default_factory=dict)
    score_mean: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    return_mean: float | None = None
    returns: dict[str, float] = field(default_factory=dict)
    length_mean: float | None = None
    lengths: dict[str, float] = field(default_factory=dict)
    held_out: "Final | None" = None

    def __post_init__(self) -> None:
        """Refuses what measures nothing."""
        if self.success_mean is self.score_mean is self.return_mean is None:
            raise InputError("there is no 'success_mean', 'score_mean' or 'return_mean'")


@dataclass(frozen=True)
class Best:
    """The best evaluation of an agent, the step it is of, and of how many it is the best: the mean of one measure."""

    step: int
    of_evaluations: int
    success_mean: float | None = None
    score_mean: float | None = None
    return_mean: float | None = None

    @property
    def value(self) -> float:
        """The mean."""
        return next(value for value in (self.success_mean, self.score_mean, self.return_mean) if value is not None)


@dataclass(frozen=True)
class Summary:
    """What a finished run came to; a part that a run lacks is empty, 0 or None.

    Attributes:
        seconds: of training.
        memory: peak memory in GiB: ``process_gib`` and, where there was one, ``gpu_gib``.
        machine: where it was computed last.
        command: what was typed, the script first.
        steps: vector steps; this and the next four are of reinforcement learning.
        transitions: environment steps in all tasks together.
        episodes_per_evaluation: of each task, on each kind of goals.
        evaluated_on: the kinds of goals, see `GOALS`; policies are chosen by the first.
        measure: what policies are chosen by: ``success``, ``score`` or ``return``.
        epochs: this and the rest are of supervised runs.
        metrics: what tasks are judged by, by metric key.
        test: what the selected models reach on the test split, by metric key; None where it was not read.
        validation: the same on the validation split.
    """

    seconds: float = 0.0
    updates: int = 0
    memory: dict[str, float] = field(default_factory=dict)
    machine: Machine | None = None
    command: list[str] | None = None
    steps: int = 0
    transitions: int = 0
    episodes_per_evaluation: int = 0
    evaluated_on: list[str] = field(default_factory=lambda: ["held_out"])
    measure: str = "success"
    final: Final | None = None
    best: Best | None = None
    epochs: int = 0
    metrics: dict[str, Metric] = field(default_factory=dict)
    test: dict[str, float] | None = None
    validation: dict[str, float] = field(default_factory=dict)
    selection: Selection | None = None


@dataclass(frozen=True)
class RunRecord:
    """A run: how it was configured (benchmark, tasks and method by name), and what it came to."""

    directory: Path
    kind: Literal["rl", "supervised"]
    benchmark: str
    tasks: list[str]
    method: str
    """The combiner's name, or that of the method that does without one."""
    seed: int
    config: dict[str, Any]
    """All of it, plain data."""
    summary: Summary | None
    """None for a run that is not finished."""

    @property
    def has_goals(self) -> bool:
        """Whether its tasks have goals of training and others, as Meta-World's have."""
        return not (self.config.get("envs") or self.config["benchmark"].get("file"))


def read_record(directory: Path) -> RunRecord:
    """The record of a run, finished or not; `InputError` if it is not one, or something in it cannot be read."""
    try:
        config = read_config(directory)
        json.dumps(config, default=str)  # plain, and of finite depth
        came_to = read_summary(directory)
        summary = None if came_to is None else _typed(Summary, came_to, f"{directory / 'summary.json'}: ")
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"'{directory}' cannot be read: something in it is nested too deeply") from error
    except (OSError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"'{directory}' cannot be read: {' '.join(str(error).split())}") from error
    if not _is_run(config):
        raise InputError(f"{directory / 'config.yaml'} is not a run's configuration")
    own = config.get("method") or {"name": "combined"}
    return RunRecord(
        directory,
        kind="rl" if "agent" in config else "supervised",
        benchmark=_benchmark(config["benchmark"]),
        tasks=config["tasks"],
        method=combiner_name(config["combiner"]) if own["name"] == "combined" else own["name"],
        seed=config["seed"],
        config=config,
        summary=summary,
    )


def combiner_name(combiner: Mapping[str, Any]) -> str:
    """What a configuration's combiner is called: ``CRITIC+ACTOR`` where its two sides have different ones."""
    sides = [combiner.get(side) or combiner for side in ("critic", "actor")]
    names = [str(side["name"]) if isinstance(side, Mapping) else str(side) for side in sides]
    return names[0] if names[0] == names[1] else "+".join(names)


def _benchmark(options: dict[str, Any]) -> str:
    """A benchmark's name; with that of its file where it is the user's own."""
    file = options.get("file")
    return f"{options['name']} {Path(file).name}" if isinstance(file, str) else str(options["name"])


def _is_run(config: dict[str, Any]) -> bool:
    tasks = config.get("tasks")
    named = [config.get("benchmark"), config.get("combiner"), config.get("method") or {"name": ""}]
    return (
        isinstance(config.get("seed"), int)
        and isinstance(tasks, list)
        and all(isinstance(task, str) for task in tasks)
        and len(set(tasks)) == len(tasks) > 0
        and all(isinstance(part, dict) and isinstance(part.get("name"), str) for part in named)
    )


def _typed_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    for one in dataclasses.fields(kind):
        if one.name not in value and one.default is one.default_factory is dataclasses.MISSING:
            raise InputError(f"{where[:-1]}: there is no '{one.name}'")
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in value}
    typed = {name: _typed(hint, value[name], f"{where}{name}.") for name, hint in hints.items()}
    try:
        return kind(**typed)
    except InputError as error:
        raise InputError(f"{where[:-1]}: {error}") from error


def _typed(kind: Any, value: Any, where: str) -> Any:
    """Plain data as a type says: dataclasses by field (what they do not name is left), dictionaries, lists, values."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _typed(arguments[0], value, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _typed_fields(kind, value, where)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], entry, f"{where}{key}.") for key, entry in value.items()}
    if origin is list and isinstance(value, list):
        return [_typed(arguments[0], entry, where) for entry in value]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        if kind is float and not math.isfinite(value):
            raise InputError(f"{where[:-1]}: expected a finite number")
        return value
    raise InputError(f"{where[:-1]}: expected {_KINDS.get(origin or kind, 'an object')}, got {value!r:.40}")
