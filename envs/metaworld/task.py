"""One Meta-World task: its goals, its episodes and its exact state. Used inside the workers only."""

import math
import pickle
import zlib
from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.types import Task as Goal
from numpy.typing import NDArray

from envs.metaworld.options import ACTION_SIZE, OBSERVATION_SIZE, Options
from envs.shared import Outcome

NUM_GOALS = 50

PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
_STATE = ("episode", "episode_return", "episode_success", "observation")
_MODEL_FIELDS = ("body_pos", "site_pos")  # all that the tasks change in their models
_BAD_STATE = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)


class TaskEnv:
    """One Meta-World task with 50 goals of its own.

    Everything random is a function of the seed, the task's name and the number of the episode, so it depends
    neither on the other tasks nor on who runs them. The goals are those of
    ``metaworld.MT1(name, seed=self.goal_seed)``.

    Attributes:
        seed: the present one, which `reset` can change.
        episode: number of the current episode, counted from 0.
        episode_return: the sum of its rewards so far.
        episode_success: whether any of its steps was a success.
        observation: ``[39]``, what to act on next.
    """

    observation_space = Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float32)
    action_space = Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)
    tells_success = True
    restarted = False

    def __init__(self, name: str, seed: int, options: Options) -> None:
        self.name, self.options = name, options
        self.env = ALL_V3_ENVIRONMENTS[name](reward_function_version=options.reward_version)
        self.env.max_path_length = options.horizon
        self._goals: dict[int, list[NDArray[np.float64]]] = {}  # by seed
        self._starts: dict[tuple[int, int], tuple[NDArray[np.float64], dict[str, Any]]] = {}
        self._seed_with(seed)
        self._set_goal(0)
        self._warnings = self.env.data.warning.number[_BAD_STATE]
        self.episode, self.episode_return, self.episode_success = -1, 0.0, False
        self.observation = np.zeros(OBSERVATION_SIZE)

    @property
    def episode_length(self) -> int:
        """Steps of the current episode so far."""
        return int(self.env.curr_path_length)

    @property
    def goals(self) -> list[NDArray[np.float64]]:
        """The 50 goals of the present seed."""
        return self._goals[self.seed]

    def _seed_with(self, seed: int) -> None:
        stream = np.random.SeedSequence([seed, zlib.crc32(self.name.encode())])
        self.goal_seed, self._order_seed = (int(seed) for seed in stream.generate_state(2))
        self.seed = seed
        if seed not in self._goals:
            self._goals[seed] = _draw_goals(self.env, self.goal_seed)

    def goal_index(self, episode: int) -> int:
        """Which of the goals an episode has."""
        if self.options.goals == "fixed":
            return 0
        if self.options.goals == "evaluation":
            return episode % NUM_GOALS
        return int(np.random.default_rng([self._order_seed, episode]).integers(NUM_GOALS))

    def reset(self, *, seed: int | None = None) -> NDArray[np.float64]:
        """Starts the next episode, or with a seed the first one of that seed; returns its first observation, ``[39]``.

        Meta-World simulates 500 substeps to reset a task, but the outcome depends on the goal alone, whatever
        happened before. So the fast path does it once a goal and then goes back to the state it led to.
        """
        if seed is not None:
            self._seed_with(seed)
            self.episode = -1
        self.episode += 1
        self.episode_return, self.episode_success = 0.0, False
        goal = self.goal_index(self.episode)
        if (start := (self.seed, goal)) in self._starts:
            self.observation, state = self._starts[start]
            self._load_simulation(state)
        else:
            self._set_goal(goal)
            self.observation, _ = self.env.reset()
            if self.options.fast:
                self._starts[start] = self.observation, self._simulation()
        # Meta-World leaves that of the episode before, which a run that goes on need not have seen.
        self.env._last_stable_obs = self.observation
        return self.observation

    def step(self, action: NDArray[np.float32]) -> Outcome:
        """One step, which `episode_return` and `episode_success` include until the next `reset`.

        When the simulation becomes unstable, MuJoCo starts it anew by itself and warns. Such a step gives the last
        good observation and no reward, as Meta-World's own path for it does, and cuts the episode off.
        """
        try:
            observation, reward, _, truncated, info = self.env.step(action)
        except Exception:
            if not np.count_nonzero(self._warnings):  # it was not the rewards that could not take an unstable state
                raise
        else:
            if math.isfinite(reward) and not np.count_nonzero(self._warnings):
                success = bool(info["success"] > 0)
                self.observation = observation
                self.episode_return += float(reward)
                self.episode_success |= success
                terminated = self.options.terminate_on_success and success
                return Outcome(observation, float(reward), terminated, truncated, success, False)
        return Outcome(self.observation, 0.0, False, True, False, True)

    def state(self) -> dict[str, Any]:
        """Everything that the future depends on, as numbers, arrays, and dictionaries and lists of them."""
        own = {name: getattr(self, name) for name in ("seed", *_STATE)}
        return own | {"simulation": self._simulation()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from a `state` of the same task."""
        self._seed_with(state["seed"])
        for name in _STATE:
            setattr(self, name, state[name])
        self._load_simulation(state["simulation"])

    def _simulation(self) -> dict[str, Any]:
        """The state of Meta-World's environment: physics, model, and attributes.

        Some attributes are views of the simulator's data and change with it; these are stored as references.
        """
        attributes: dict[str, Any] = {}
        views: dict[str, list[Any]] = {}
        for name, value in vars(self.env).items():
            if isinstance(value, np.ndarray) and not _owned(value):
                views[name] = _locate(self.env.data, value)
            elif isinstance(value, np.ndarray | np.generic):
                attributes[name] = np.array(value)
            elif value is None or isinstance(value, int | float):
                attributes[name] = value
        return {
            "physics": physics_of(self.env),
            "model": {field: getattr(self.env.model, field).copy() for field in _MODEL_FIELDS},
            "attributes": attributes,
            "views": views,
        }

    def _load_simulation(self, state: dict[str, Any]) -> None:
        model, data = self.env.model, self.env.data
        mujoco.mj_resetData(model, data)
        for field, values in state["model"].items():
            getattr(model, field)[:] = values
        mujoco.mj_setState(model, data, state["physics"], PHYSICS)
        mujoco.mj_forward(model, data)
        # Again, for mj_forward stores where the solver of the next step starts.
        mujoco.mj_setState(model, data, state["physics"], PHYSICS)
        for name, value in state["attributes"].items():
            setattr(self.env, name, np.array(value)[()] if isinstance(value, np.ndarray) else value)
        for name, (field, row) in state["views"].items():
            setattr(self.env, name, getattr(data, field)[row])

    def _set_goal(self, index: int) -> None:
        data = {"rand_vec": self.goals[index], "env_cls": type(self.env), "partially_observable": False}
        self.env.set_task(Goal(self.name, pickle.dumps(data)))


def physics_of(env: Any) -> NDArray[np.float64]:
    """All that MuJoCo goes on from, of one of Meta-World's environments."""
    physics = np.empty(mujoco.mj_stateSize(env.model, PHYSICS))
    mujoco.mj_getState(env.model, env.data, physics, PHYSICS)
    return physics


def _draw_goals(env: Any, seed: int) -> list[NDArray[np.float64]]:
    """The goals that Meta-World's benchmarks draw after ``np.random.seed(seed)``.

    They are what resets draw (uniform, and again while the object is too close to its goal). That does not depend
    on the arm, so its simulation, which is nearly all of a reset, is left out.
    """
    saved = np.random.get_state()
    np.random.seed(seed)
    env._set_task_called, env._freeze_rand_vec = True, False
    env.do_simulation = lambda *_: mujoco.mj_kinematics(env.model, env.data)
    goals = []
    for _ in range(NUM_GOALS):
        env.reset()
        goals.append(env._last_rand_vec.copy())
    del env.do_simulation
    np.random.set_state(saved)
    return goals


def _owned(array: NDArray[Any]) -> bool:
    """Whether an array's memory belongs to NumPy, not to the simulator."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is None


def _locate(data: Any, view: NDArray[Any]) -> list[Any]:
    """The field of the simulator's data, and the row of it, that an array is a view of."""
    address = view.__array_interface__["data"][0]
    for field in ("xpos", "site_xpos", "geom_xpos"):
        rows = getattr(data, field)
        row, rest = divmod(address - rows.__array_interface__["data"][0], rows.strides[0])
        if rest == 0 and 0 <= row < len(rows) and view.shape == rows.shape[1:]:
            return [field, row]
    raise RuntimeError(f"cannot tell which data of the simulator an array of shape {view.shape} shows")
