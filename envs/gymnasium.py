"""Gymnasium environments as a family of tasks: any list of them, or what a function in a file of the user's makes."""

import functools
import importlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from envs.exact_state import Env, ExactState, Functions, Opaque, is_exact
from envs.shared import Outcome, Task, widened
from envs.vector import TaskVector
from mtrl.errors import InputError, RunError, unknown_name
from mtrl.plugins import load_file
from mtrl.ranges import Count, refuse_unknown

if TYPE_CHECKING:
    from envs.rendering import Film

Maker = Callable[..., Env]
MAKER = "make_environments"
_OWN_KEYS = "id", "name", "wrappers", "returns"
_SUCCESS = "success", "is_success"
_LONGEST_FILM = 2000


@dataclass(frozen=True)
class Gymnasium:
    """Gymnasium environments whose observations and actions are vectors of one size.

    Args:
        tasks: which of the environments, by name; by default all.
        envs: for each environment its id, or a mapping: its ``id``, and optionally its ``name``, its ``wrappers``
            (dotted names, or mappings of ``name`` and arguments), the ``returns`` of a random policy and of an expert;
            the rest goes to `gymnasium.make`.
        file: a Python file instead, with a function ``make_environments`` that gives a function for each name, which
            makes the environment; and optionally ``RETURNS``, by name, and functions ``get_state(env)`` and
            ``set_state(env, state)``.
        options: arguments of ``make_environments``.
        horizon: steps after which an episode is cut off, besides the environment's own limit.
        pad: fill observations of unequal size up with zeros.

    Raises:
        InputError: if something of it is not as described.
    """

    tasks: list[str] = field(default_factory=list)
    envs: Sequence[dict[str, Any] | str] = ()
    file: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    horizon: Count | None = None
    pad: bool = False
    reference_returns: Mapping[str, tuple[float, float]] = field(init=False)

    whole_episodes = True

    def __post_init__(self) -> None:
        """Refuses what cannot be told apart, and fills in the names."""
        makers = self.makers()
        for task in self.tasks:
            if task not in makers:
                raise unknown_name("task", task, makers)
        if len(set(self.tasks)) < len(self.tasks):
            raise InputError(f"tasks: one is listed twice in {self.tasks}")
        object.__setattr__(self, "tasks", self.tasks or list(makers))
        object.__setattr__(self, "reference_returns", self._returns())

    def makers(self) -> dict[str, Maker]:
        """What makes each environment, by name."""
        if self.file is None:
            return {name: functools.partial(_make, spec) for name, spec in _named(self.envs).items()}
        function = self._of_file(MAKER)
        if function is None:
            raise InputError(f"benchmark.file: '{self.file}' has no function {MAKER}")
        refuse_unknown("benchmark.file", self.options, function)
        try:
            makers = function(**self.options)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InputError(f"benchmark.file: {MAKER} in '{self.file}' fails: {reason}") from error
        good = isinstance(makers, Mapping) and all(isinstance(key, str) and callable(makers[key]) for key in makers)
        if not good or not makers:
            raise InputError(f"benchmark.file: {MAKER} in '{self.file}' must give a function for each name, in a dict")
        for name in makers:
            _check_name(name)
        return dict(makers)

    def _of_file(self, name: str) -> Any:
        return None if self.file is None else getattr(load_file("benchmark.file", self.file), name, None)

    def _returns(self) -> dict[str, tuple[float, float]]:
        """The reference returns of the tasks; of none where nothing is said."""
        if self.file is None:
            said = {name: spec["returns"] for name, spec in _named(self.envs).items() if "returns" in spec}
        else:
            said = self._of_file("RETURNS") or {}
        found: dict[str, tuple[float, float]] = {}
        for task in self.tasks if said else ():
            if task not in said:
                raise InputError(f"returns: '{task}' has none, but other tasks have")
            try:
                low, high = (float(value) for value in said[task])
            except (TypeError, ValueError):
                low = high = 0.0
            if not (np.isfinite([low, high]).all() and low != high):
                raise InputError(f"returns of '{task}': expected [of a random policy, of an expert], got {said[task]}")
            found[task] = low, high
        return found

    def evaluated(self, *, whole_episodes: bool) -> Self:
        """As evaluation plays it: as it is."""
        return self

    def sizes(self) -> tuple[int, int]:
        """See `envs.shared.Family`: by making all of them."""
        with TaskVector(self, seed=0) as vector:
            return vector.sizes

    def films(self, policy: Callable[[Any], Any], seed: int) -> Iterator["Film"]:
        """Plays the first episodes together, as an evaluation does, and renders each task's once more, by its actions.

        An episode is filmed for at most 2,000 steps. Raises `RunError` where an environment renders nothing.
        """
        tasks = [self.make(task, seed) for task in self.tasks]
        size = max(len(task.reset()) for task in tasks)
        actions: list[list[NDArray[np.float32]]] = [[] for _ in tasks]
        playing = dict(enumerate(tasks))
        while playing:
            observations = np.stack([widened(task.observation, size) for task in tasks])
            chosen = np.clip(np.asarray(policy(observations), np.float32), -1.0, 1.0)
            for row, task in list(playing.items()):
                actions[row].append(chosen[row])
                outcome = task.step(chosen[row])
                if outcome.terminated or outcome.truncated or len(actions[row]) == _LONGEST_FILM:
                    del playing[row]
        for name, own in zip(self.tasks, actions, strict=True):
            yield self._film(name, own, seed)

    def _film(self, task: str, actions: list[NDArray[np.float32]], seed: int) -> "Film":
        from PIL import Image, ImageOps

        from envs.rendering import MILLISECONDS, SIZE, Film

        make = functools.partial(self.make_env, task, render_mode="rgb_array")
        played = GymnasiumTask(task, make, seed, self.horizon, None)
        played.reset()
        every = max(1, round(played.env.metadata.get("render_fps", 20) * MILLISECONDS / 1000))
        frames = []
        try:
            for step, action in enumerate([None, *actions]):
                if action is not None:
                    played.step(action)
                if step % every == 0 or step == len(actions):
                    frame = np.asarray(played.env.render(), np.uint8)
                    image = ImageOps.pad(Image.fromarray(frame), (SIZE, SIZE), color="white")
                    frames.append(np.asarray(image))
        except Exception as error:
            raise RunError(f"task '{task}' cannot be filmed: {' '.join(str(error).split())}") from error
        finally:
            played.env.close()
        success = played.episode_success if played.tells_success else None
        return Film(task, frames, success, played.episode_length, played.episode_return)

    def make_env(self, task: str, **arguments: Any) -> Env:
        """Makes an environment; `InputError` with its reason where that fails."""
        maker = self.makers()[task]
        try:
            env = maker(**arguments)
        except Exception as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"environment '{task}' cannot be made: {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if not isinstance(env, gymnasium.Env):
            raise InputError(f"environment '{task}': expected a gymnasium.Env, got {type(env).__name__}")
        check_spaces(task, env)
        return env

    def make(self, task: str, seed: int) -> Task:
        """See `envs.shared.Family`."""
        return GymnasiumTask(task, functools.partial(self.make_env, task), seed, self.horizon, self._state_functions())

    def _state_functions(self) -> Functions | None:
        get, put = self._of_file("get_state"), self._of_file("set_state")
        return (get, put) if callable(get) and callable(put) else None

    def groups(self, num_groups: int) -> list[list[int]]:
        """See `envs.shared.Family`."""
        return [list(range(first, len(self.tasks), num_groups)) for first in range(num_groups)]

    def identity(self) -> dict[str, Any]:
        """See `envs.shared.Family`."""
        return {"horizon": self.horizon, "pad": self.pad}


def _named(envs: Sequence[dict[str, Any] | str]) -> dict[str, dict[str, Any]]:
    """Specifications by name: their own, or the environment's with the arguments where that alone is not unique."""
    if not envs:
        raise InputError(
            "benchmark=gymnasium needs envs, e.g. envs=[{id: Pendulum-v1, g: 2.0}, {id: Pendulum-v1, g: 10.0}]"
        )
    named: dict[str, dict[str, Any]] = {}
    specs = [spec if isinstance(spec, Mapping) else {"id": spec} for spec in envs]
    for spec in specs:
        if not isinstance(spec.get("id"), str):
            raise InputError(f"envs: expected an id in each, e.g. {{id: Pendulum-v1}}, got {spec}")
        name = spec.get("name")
        if name is None:
            name = spec["id"].rpartition(":")[2].replace("/", ".")  # before a colon stands the module to import
            like = [other for other in specs if other.get("id") == spec["id"] and "name" not in other]
            differing = [key for key in spec if any(other.get(key) != spec[key] for other in like)]
            name = "-".join([name, *(f"{key}{spec[key]}" for key in differing if key not in _OWN_KEYS)])
        _check_name(name)
        if name in named:
            raise InputError(f"envs: two are called '{name}': give each a name, e.g. {{id: {spec['id']}, name: mine}}")
        named[name] = dict(spec)
    return named


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
        raise InputError(f"environment {name!r}: expected a name without '/', which keys and files are called by")


def _make(spec: Mapping[str, Any], **arguments: Any) -> Env:
    given = {key: value for key, value in spec.items() if key not in _OWN_KEYS}
    env: Env = gymnasium.make(spec["id"], disable_env_checker=True, **given | arguments)
    for wrapper in spec.get("wrappers") or ():
        options = dict(wrapper) if isinstance(wrapper, Mapping) else {"name": wrapper}
        module, _, name = str(options.pop("name", "")).rpartition(".")
        env = getattr(importlib.import_module(module or "gymnasium.wrappers"), name)(env, **options)
    return env


def check_spaces(task: str, env: Env) -> None:
    """Refuses an environment whose observations or actions are no vectors of numbers, or whose actions have no bounds.

    Raises:
        InputError: which says what it has.
    """
    for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, Box):
            raise InputError(f"environment '{task}': {what} must be a Box of numbers, not {space}")
        if len(space.shape) != 1 or not space.shape[0]:
            raise InputError(
                f"environment '{task}': {what} must have one dimension, not the shape {space.shape}"
                + ("; images are not supported" if len(space.shape) > 1 else "")
            )
    assert isinstance(env.action_space, Box)
    if not (env.action_space.is_bounded() and (env.action_space.low < env.action_space.high).all()):
        raise InputError(f"environment '{task}': actions must be bounded on both sides, not {env.action_space}")


class GymnasiumTask:
    """One environment; see `envs.shared.Task`.

    The n-th episode is seeded by the seed, the task's name and n. An action in [-1, 1] is taken to the bounds of the
    environment's space. Success is what ``info`` calls ``success`` or ``is_success``, at any step that says so.

    Raises:
        RunError: from `reset` and `step`, if the environment gives something else than it should, or no finite number.
    """

    def __init__(
        self, name: str, make: Callable[[], Env], seed: int, horizon: int | None, functions: Functions | None
    ) -> None:
        self.name, self.seed, self.horizon = name, seed, horizon
        self.env, self._make, self._functions = make(), make, functions
        self._state = ExactState(self.env, functions)
        self._exact: bool | None = None  # not tried yet
        assert isinstance(self.env.observation_space, Box)
        assert isinstance(self.env.action_space, Box)
        self.observation_space: Box[Any] = self.env.observation_space
        self.action_space: Box[Any] = self.env.action_space
        self._low, self._high = (bound.astype(np.float64) for bound in (self.action_space.low, self.action_space.high))
        self.episode, self.episode_length, self.episode_return, self.episode_success = -1, 0, 0.0, False
        self.tells_success = self.restarted = False
        self.observation: NDArray[np.float32] = np.zeros(self.observation_space.shape, np.float32)

    def reset(self, *, seed: int | None = None) -> NDArray[np.float32]:
        """See `envs.shared.Task`."""
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode += 1
        self.episode_length, self.episode_return, self.episode_success = 0, 0.0, False
        stream = np.random.SeedSequence([self.seed, zlib.crc32(self.name.encode()), self.episode])
        given = self.env.reset(seed=int(stream.generate_state(1)[0] >> 1))
        if not isinstance(given, tuple) or len(given) != 2:
            raise RunError(f"reset gave {_kind(given)}, not (observation, info)")
        self.observation = self._checked(given[0])
        return self.observation

    def step(self, action: NDArray[np.float32]) -> Outcome:
        """See `envs.shared.Task`."""
        given: Any = self.env.step(self._scaled(action))
        if not isinstance(given, tuple) or len(given) != 5:
            raise RunError(f"step gave {_kind(given)}, not (observation, reward, terminated, truncated, info)")
        observation = self._checked(given[0])
        reward = _number("reward", given[1])
        terminated, truncated = (_flag(*pair) for pair in zip(("terminated", "truncated"), given[2:4], strict=True))
        told = next((given[4][key] for key in _SUCCESS if given[4].get(key) is not None), None)
        success = told is not None and _number("success", told) > 0
        self.observation = observation
        self.tells_success |= told is not None
        self.episode_length += 1
        self.episode_return += reward
        self.episode_success |= success
        truncated |= self.horizon is not None and self.episode_length >= self.horizon
        return Outcome(observation, reward, terminated, truncated, success, False)

    def _scaled(self, action: NDArray[np.float32]) -> NDArray[Any]:
        """An action in [-1, 1] on the scale of the environment's."""
        share = (action.astype(np.float64) + 1) / 2
        scaled = np.clip(self._low + share * (self._high - self._low), self._low, self._high)
        kind = np.dtype(self.action_space.dtype)
        return (scaled if kind.kind == "f" else np.rint(scaled)).astype(kind)

    def _checked(self, given: Any) -> NDArray[np.float32]:
        """A copy of an observation, if it is one."""
        observation = np.asarray(given)
        if observation.shape != self.observation_space.shape:
            raise RunError(f"the observation has shape {observation.shape}, not {self.observation_space.shape}")
        if observation.dtype.kind not in "biuf":
            raise RunError(f"the observation is of dtype {observation.dtype}, not of numbers")
        with np.errstate(over="ignore"):
            converted = observation.astype(np.float32)
        if not np.isfinite(converted).all():
            place = int(np.isfinite(converted).argmin())
            raise RunError(f"the observation is not finite: number {place + 1} is {observation[place]}")
        return converted

    def state(self) -> dict[str, Any]:
        """See `envs.shared.Task`; ``simulation`` is None where it cannot be told."""
        if self._exact is None:
            self._exact = is_exact(lambda: (self._make(), self._functions))
        simulation = None
        if self._exact and self.episode >= 0:
            with suppress(Opaque):
                simulation = self._state.capture()
        own = {name: getattr(self, name) for name in (*_PROGRESS, "tells_success")}
        return own | {"observation": self.observation.copy(), "simulation": simulation}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `envs.shared.Task`."""
        self.seed, self.episode, self.tells_success = state["seed"], state["episode"], state["tells_success"]
        self.restarted = state["simulation"] is None
        self.reset()
        if state["simulation"] is not None:
            self._state.restore(state["simulation"])
            self.observation = state["observation"].copy()
            for name in _PROGRESS:
                setattr(self, name, state[name])


_PROGRESS = "seed", "episode", "episode_length", "episode_return", "episode_success"


def _kind(given: Any) -> str:
    return f"{len(given)} values" if isinstance(given, tuple) else type(given).__name__


def _number(what: str, given: Any) -> float:
    value = np.asarray(given)
    if value.size != 1 or value.dtype.kind not in "biuf":
        raise RunError(f"the {what} is {given!r:.40}, not a number")
    if not np.isfinite(value).all():
        raise RunError(f"the {what} is {given}")
    return float(value.item())


def _flag(what: str, given: Any) -> bool:
    if not isinstance(given, bool | np.bool_):
        raise RunError(f"{what} is {given!r:.40}, not True or False")
    return bool(given)
