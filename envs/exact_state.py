"""The exact state of a Gymnasium environment in the middle of an episode, as plain data."""

import collections
import enum
import functools
import itertools
import random
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

Env = gymnasium.Env[Any, Any]
Functions = tuple[Callable[[Env], Any], Callable[[Env, Any], object]]
"""Of the user: what tells the state of an environment, and what restores it."""

_PLAIN = (type(None), bool, int, float, str)
_CONSTANT = (
    *(gymnasium.Space, EnvSpec, type, enum.Enum, PurePath, functools.partial, np.dtype, types.ModuleType),
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, np.ufunc, type(threading.Lock())),
)
_GENERATORS = np.random.Generator, np.random.RandomState, random.Random
_LEFT_OUT = {"env", "mujoco_renderer", "_previous_data"}  # the next layer; a film's; a checker's
_SAME = object()
"""Stands for what cannot change, or is told elsewhere."""
_KIND = "kind of"  # the key that marks what is more than plain
_STEPS = 8


class _PythonObject:
    """Has a dictionary of attributes, and nothing else."""


def _layout(kind: type) -> tuple[int, int, int]:
    """How objects lie in memory: whether they keep something outside their dictionary, in slots or unseen by Python."""
    return kind.__basicsize__, kind.__dictoffset__, kind.__weakrefoffset__


class Opaque(Exception):  # noqa: N818 - no error: such an environment begins another episode
    """Something in an environment cannot be told as plain data."""


class ExactState:
    """Tells and restores the state of an environment, its wrappers' and its random numbers' included.

    Of the environment itself it is what the user's functions tell, or its own ``get_state()`` and ``set_state(state)``,
    or else all its attributes: numbers, text, arrays, random generators, MuJoCo's model and data, containers, and
    objects of such attributes. What cannot change, such as a space or a function, is left out.
    """

    def __init__(self, env: Env, functions: Functions | None = None) -> None:
        self.env, self._functions = env, functions or _own_functions(env)
        models = (value for layer in _layers(env) for value in vars(layer).values() if _is_mujoco(value, "MjModel"))
        self._models = {id(model): _arrays(model) for model in models}
        """MuJoCo's models as they were made: what differs later is part of the state."""

    def capture(self) -> dict[str, Any]:
        """The state: numbers, text, arrays, and containers of them; `Opaque` where it cannot be told."""
        seen: set[int] = set()
        layers = [self._attributes(layer, seen) for layer in self._told_by_attributes()]
        if self._functions is None:
            return {"layers": layers}
        own = self._pack(self.env.unwrapped.np_random, seen), self._pack(self._functions[0](self.env), seen)
        if _SAME in own:
            raise Opaque("get_state gives what cannot be saved")
        return {"layers": layers, "own": list(own)}

    def restore(self, state: dict[str, Any]) -> None:
        """Brings back what `capture` gave; the environment must have been reset before."""
        for layer, saved in zip(self._told_by_attributes(), state["layers"], strict=True):
            self._set_attributes(layer, saved)
        if self._functions is not None:
            generator, own = state["own"]
            self._unpack(generator, self.env.unwrapped.np_random)
            self._functions[1](self.env, self._unpack(own, None))

    def _told_by_attributes(self) -> list[Env]:
        return [layer for layer in _layers(self.env) if self._functions is None or layer is not self.env.unwrapped]

    def _attributes(self, owner: Any, seen: set[int]) -> dict[str, Any]:
        seen.add(id(owner))
        packed = {
            name: self._pack(value, seen)
            for name, value in vars(owner).items()
            if not (isinstance(owner, gymnasium.Env) and name in _LEFT_OUT)
        }
        return {name: value for name, value in packed.items() if value is not _SAME}

    def _set_attributes(self, owner: Any, saved: dict[str, Any]) -> None:
        for name, value in saved.items():
            setattr(owner, name, self._unpack(value, vars(owner).get(name)))

    def _pack(self, value: Any, seen: set[int]) -> Any:
        """A value as plain data."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, np.ndarray | np.generic):
            return _packed_array(value)
        if isinstance(value, _CONSTANT) or id(value) in seen or _is_dm_control_view(value):
            return _SAME
        if _is_mujoco(value, "MjModel"):
            made = self._models.get(id(value), {})
            changed = {name: array for name, array in _arrays(value).items() if not _equal(array, made.get(name))}
            return {_KIND: "model", "changed": changed}
        if _is_mujoco(value, "MjData"):
            return {_KIND: "data"} | _physics(value)
        if isinstance(value, _GENERATORS):
            return {_KIND: "generator", "state": self._pack(_state_of(value), seen)}
        if type(value) in (list, tuple, dict, set, collections.deque, collections.OrderedDict):
            return self._packed_container(value, seen)
        if _layout(type(value)) == _layout(_PythonObject):
            return {_KIND: type(value).__qualname__, "attributes": self._attributes(value, seen)}
        raise Opaque(f"{type(value).__module__}.{type(value).__qualname__}")

    def _packed_container(self, value: Any, seen: set[int]) -> Any:
        keys = list(value) if isinstance(value, dict) else []
        if not all(isinstance(key, str | int) for key in keys):
            raise Opaque("a dictionary with keys other than text and integers")
        entries = [self._pack(entry, seen) for entry in (value.values() if keys else value)]
        if entries and all(entry is _SAME for entry in entries):
            return _SAME
        if any(entry is _SAME for entry in entries):
            raise Opaque("a container of what can be told and what cannot")
        if type(value) in (list, tuple):
            return type(value)(entries)
        return {_KIND: type(value).__name__, "keys": keys, "entries": entries, "most": getattr(value, "maxlen", None)}

    def _unpack(self, saved: Any, now: Any) -> Any:
        """A value from plain data; ``now`` is what stands in its place, which objects are restored in."""
        if isinstance(saved, np.ndarray):
            return saved.copy() if saved.ndim else saved[()]
        if isinstance(saved, list | tuple):
            beside = now if isinstance(now, list | tuple) else ()
            return type(saved)(self._unpack(*pair) for pair in itertools.zip_longest(saved, beside[: len(saved)]))
        if not isinstance(saved, dict):
            return saved
        if "entries" in saved:
            return self._unpacked_container(saved, now)
        self._set_object(saved, now)
        return now

    def _unpacked_container(self, saved: dict[str, Any], now: Any) -> Any:
        keys = saved["keys"] or range(len(saved["entries"]))
        beside = now if isinstance(now, dict) else dict(enumerate(now or ()))
        entries = [self._unpack(entry, beside.get(key)) for key, entry in zip(keys, saved["entries"], strict=True)]
        if saved[_KIND] in ("dict", "OrderedDict"):
            return (collections.OrderedDict if saved[_KIND] == "OrderedDict" else dict)(zip(keys, entries, strict=True))
        return set(entries) if saved[_KIND] == "set" else collections.deque(entries, saved["most"])

    def _set_object(self, saved: dict[str, Any], now: Any) -> None:
        kind = saved[_KIND]
        if kind == "generator" and isinstance(now, _GENERATORS):
            _set_state_of(now, self._unpack(saved["state"], None))
        elif kind == "model" and _is_mujoco(now, "MjModel"):
            for name, array in (self._models.get(id(now), {}) | saved["changed"]).items():
                getattr(now, name)[:] = array
        elif kind == "data" and _is_mujoco(now, "MjData"):
            _set_physics(now, saved)
        elif kind == type(now).__qualname__:
            self._set_attributes(now, saved["attributes"])
        else:
            raise Opaque(f"{kind} in place of {type(now).__qualname__}")


def is_exact(make: Callable[[], tuple[Env, Functions | None]]) -> bool:
    """Whether an environment goes on from a saved state bit for bit: tried for a few steps, on two new ones."""
    made = [make() for _ in range(2)]
    try:
        (first, functions), (second, _) = made
        state, other = ExactState(first, functions), ExactState(second, functions)
        shares = np.random.default_rng(0).random((2 * _STEPS, *(first.action_space.shape or ())))
        low, high = (getattr(first.action_space, bound) for bound in ("low", "high"))
        actions = [(low + share * (high - low)).astype(first.action_space.dtype) for share in shares]
        first.reset(seed=0)
        _played(first, actions[:_STEPS])
        saved = state.capture()
        goes_on = _played(first, actions[_STEPS:])
        second.reset(seed=1)
        other.restore(saved)
        return goes_on == _played(second, actions[_STEPS:])
    except Exception:  # whatever an environment, or a function of the user's, may raise
        return False
    finally:
        for env, _ in made:
            with suppress(Exception):
                env.close()


def _played(env: Env, actions: list[NDArray[Any]]) -> list[Any]:
    """What an environment shows, to the byte."""
    shown: list[Any] = []
    for number, action in enumerate(actions):
        observation, reward, terminated, truncated, _ = env.step(action)
        shown.append((np.asarray(observation).tobytes(), float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            shown.append(np.asarray(env.reset(seed=number)[0]).tobytes())
    return shown


def _layers(env: Env) -> Iterator[Env]:
    """The environment within its wrappers, the outermost first."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env


def _own_functions(env: Env) -> Functions | None:
    """The environment's own functions, where it has both."""
    own = env.unwrapped
    if not (callable(getattr(own, "get_state", None)) and callable(getattr(own, "set_state", None))):
        return None
    if _is_mujoco(getattr(own, "data", None), "MjData"):  # whose set_state takes positions and velocities alone
        return None
    return (lambda env: env.unwrapped.get_state()), (lambda env, state: env.unwrapped.set_state(state))


def _packed_array(value: NDArray[Any] | np.generic) -> Any:
    base = value
    while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
        base = base.base
    if isinstance(base, np.ndarray) and base.base is not None:
        return _SAME  # memory of somebody else's, such as the simulator's
    if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
        raise Opaque(f"an array of {value.dtype}")
    return np.array(value)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state(legacy=False)


def _set_state_of(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _is_mujoco(value: Any, name: str) -> bool:
    return type(value).__name__ == name and type(value).__module__.startswith("mujoco")


def _is_dm_control_view(value: Any) -> bool:
    """Whether it is what shows dm_control's users the arrays of a model and its data by the names of their rows."""
    return type(value).__name__ == "NamedIndexStructs" and type(value).__module__.startswith("dm_control")


def _arrays(owner: Any) -> dict[str, NDArray[Any]]:
    """Copies of all arrays of numbers of one of MuJoCo's objects."""
    named = ((name, getattr(owner, name, None)) for name in dir(owner) if not name.startswith("_"))
    return {name: value.copy() for name, value in named if isinstance(value, np.ndarray) and value.size}


def _equal(array: NDArray[Any], other: NDArray[Any] | None) -> bool:
    return other is not None and array.tobytes() == other.tobytes()


def _physics(data: Any) -> dict[str, Any]:
    """What MuJoCo goes on from, and all that is derived from it, which is of the step before, not of this state."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    physics = np.empty(mujoco.mj_stateSize(data.model, kind))
    mujoco.mj_getState(data.model, data, physics, kind)
    fixed = _arrays(mujoco.MjData(data.model))  # contacts are not: they vary in number
    derived = {name: array for name, array in _arrays(data).items() if name in fixed}
    return {"physics": physics, "derived": derived}


def _set_physics(data: Any, saved: dict[str, Any]) -> None:
    import mujoco

    mujoco.mj_resetData(data.model, data)
    mujoco.mj_setState(data.model, data, saved["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_forward(data.model, data)
    for name, array in saved["derived"].items():
        getattr(data, name)[:] = array
