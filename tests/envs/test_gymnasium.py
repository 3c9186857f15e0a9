"""Gymnasium environments as tasks: spaces, episodes, states, and what is said of environments that misbehave."""

import io
import threading
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.exact_state import ExactState, is_exact
from envs.gymnasium import Gymnasium, GymnasiumTask, check_spaces
from envs.vector import TaskVector, common_spaces
from mtrl.errors import InputError, RunError
from tests.envs.line import Line, make_environments

FILE = str(Path(__file__).with_name("line.py"))
PENDULUMS = [{"id": "Pendulum-v1", "g": 2.0}, {"id": "Pendulum-v1", "g": 10.0}]


def family(**options: Any) -> Gymnasium:
    return Gymnasium(file=FILE, options=options)


def task_of(env: Any = None, **options: Any) -> GymnasiumTask:
    """A task in this process."""
    return GymnasiumTask("line", (lambda: env) if env is not None else partial(Line, **options), 0, None, None)


def actions(tasks: int, steps: int, size: int = 1) -> Any:
    return np.random.default_rng(0).uniform(-1, 1, (steps, tasks, size)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------ spaces


@pytest.mark.parametrize(
    ("observations", "taken", "message"),
    [
        (Discrete(3), Box(-1, 1, (1,)), r"observations must be a Box of numbers, not Discrete\(3\)"),
        (Dict(a=Box(0, 1, (1,))), Box(-1, 1, (1,)), "observations must be a Box of numbers, not Dict"),
        (Box(0, 255, (8, 8, 3), np.uint8), Box(-1, 1, (1,)), r"not the shape \(8, 8, 3\); images are not supported"),
        (Box(0, 1, ()), Box(-1, 1, (1,)), r"observations must have one dimension, not the shape \(\)"),
        (Box(0, 1, (2,)), Discrete(2), r"actions must be a Box of numbers, not Discrete\(2\)"),
        (Box(0, 1, (2,)), Box(-1, np.inf, (1,)), "actions must be bounded on both sides"),
        (Box(0, 1, (2,)), Box(1, 1, (1,)), "actions must be bounded on both sides"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(observations: Any, taken: Any, message: str) -> None:
    env = Line()
    env.observation_space, env.action_space = observations, taken
    with pytest.raises(InputError, match=f"environment 'mine': .*{message}") as caught:
        check_spaces("mine", env)
    assert "\n" not in str(caught.value)


def test_sizes_are_common_or_refused_by_name() -> None:
    small, large, other = ((Box(0, 1, (o,)), Box(-1, 1, (a,))) for o, a in ((2, 1), (5, 1), (2, 3)))
    assert common_spaces({"a": small, "b": small}, pad=False) == (Box(0, 1, (2,)), Box(-1, 1, (1,)))
    with pytest.raises(InputError, match="observations must be of one size: 'a' has 2 numbers, 'b' 5; pad=true"):
        common_spaces({"a": small, "b": large}, pad=False)
    wide = Box(-3, 0.5, (5,)), Box(-1, 1, (1,))
    assert common_spaces({"a": small, "b": wide}, pad=True)[0] == Box(
        np.full(5, -3, np.float32), np.array([1, 1, 0.5, 0.5, 0.5], np.float32)
    )
    with pytest.raises(InputError, match="actions must be of one size: 'a' has 1 numbers, 'b' 3"):
        common_spaces({"a": small, "b": other}, pad=True)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 6),
    kind=st.sampled_from([np.float32, np.float64, np.int16]),
    bounds=st.lists(st.tuples(st.integers(-900, 900), st.integers(1, 900)), min_size=1, max_size=4),
    share=st.floats(-1, 1, width=32),
)
def test_actions_take_the_whole_of_any_space(size: int, kind: Any, bounds: list[tuple[int, int]], share: float) -> None:
    env = Line(size=size)
    low = np.array([first for first, _ in bounds], kind)
    high = np.array([first + width for first, width in bounds], kind)
    env.action_space = Box(low, high, dtype=kind)
    task, ones = task_of(env), np.ones(len(bounds), np.float32)
    assert np.array_equal(task._scaled(-ones), low)
    assert np.array_equal(task._scaled(ones), high)
    taken = task._scaled(share * ones)
    assert env.action_space.contains(taken)
    exact = low.astype(float) + (np.float64(np.float32(share)) + 1) / 2 * (high.astype(float) - low)
    assert np.abs(taken - exact).max() <= (0.5 if kind == np.int16 else 1e-3)
    assert task.reset().shape == (size,)


def test_an_action_space_of_one_to_minus_one_is_left_as_it_is() -> None:
    taken = actions(1, 50)[:, 0]
    task = task_of(low=-1.0, high=1.0)
    assert all(task._scaled(action).tobytes() == action.tobytes() for action in taken)


def test_gymnasiums_checker_finds_nothing_in_the_vector() -> None:
    class First(gymnasium.Env[Any, Any]):
        """The first task of a vector, by Gymnasium's interface."""

        def __init__(self) -> None:
            self.vector = TaskVector(Gymnasium(envs=PENDULUMS[:1]), seed=0, num_workers=1)
            self.observation_space = self.vector.single_observation_space
            self.action_space = self.vector.single_action_space
            self.spec = EnvSpec("First-v0", entry_point=lambda **options: First())

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return self.vector.reset(seed=seed)[0], {}

        def step(self, action: Any) -> Any:
            step = self.vector.step(action[None])
            flags = bool(step.terminated[0]), bool(step.truncated[0])
            return step.next_observations[0], float(step.rewards[0]), *flags, {}

        def close(self) -> None:
            self.vector.close()

    check_env(First())  # pytest makes its warnings errors


# ---------------------------------------------------------------------------------------------------- episodes


def test_episodes_are_those_of_the_environments_stepped_by_hand() -> None:
    taken = actions(2, 40)
    with TaskVector(family(), seed=3, num_workers=2) as vector:
        first = vector.reset()
        steps = [vector.step(action) for action in taken]
        assert vector.tells_success.all()
        assert vector.reference_returns == {"goal-4": (-30.0, -5.0), "goal-8": (-40.0, -10.0)}
    ended = [0, 0]
    for row, (name, make) in enumerate(make_environments().items()):
        task = GymnasiumTask(name, make, 3, None, None)  # for the seeds alone
        env, seen, total, success = make(), task.reset(), 0.0, False
        env.reset(seed=0)
        assert (first[row] == seen).all()
        for step, action in zip(steps, taken, strict=True):
            observation, reward, terminated, truncated, info = task.env.step(1.0 + 2.0 * action[row].astype(float))
            total, success = total + reward, success or info["success"]
            np.testing.assert_allclose(step.next_observations[row], observation, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose([step.rewards[row], step.episode_return[row]], [float(reward), total], rtol=1e-5)
            assert (step.terminated[row], step.truncated[row]) == (terminated, truncated)
            assert (step.success[row], step.episode_success[row]) == (info["success"], success)
            assert not step.unstable[row]
            if terminated or truncated:
                ended[row] += 1
                assert (step.current_observations[row] == task.reset()).all()
                assert (step.current_observations[row] != step.next_observations[row]).any()
                total, success = 0.0, False
            else:
                assert (step.current_observations[row] == step.next_observations[row]).all()
    assert min(ended) > 3


def test_other_tasks_workers_and_a_seeded_reset_change_nothing() -> None:
    taken, found = actions(2, 25), []
    for names, workers in ((["goal-4", "goal-8"], 1), (["goal-8", "goal-4"], 2), (["goal-4"], 1)):
        with TaskVector(Gymnasium(names, file=FILE), seed=5, num_workers=workers) as vector:
            row = names.index("goal-4")
            for _ in range(2):
                shown = [vector.reset(seed=5)[row]]
                for action in taken:
                    shown.append(vector.step(np.stack([action[0]] * len(names))).next_observations[row])
                found.append(np.array(shown).tobytes())
    assert len(set(found)) == 1


def test_a_horizon_cuts_off_and_padding_fills_up() -> None:
    task = GymnasiumTask("line", Line, 0, 3, None)
    task.reset()
    flags = [task.step(np.array([-1.0], np.float32))[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]
    pair = [{"id": "Pendulum-v1"}, {"id": "InvertedPendulum-v5"}]  # 3 and 4 numbers
    with TaskVector(Gymnasium(envs=pair, pad=True), seed=0, num_workers=1) as vector:
        shown = [vector.reset(), *(vector.step(action).next_observations for action in actions(2, 5))]
    assert np.array(shown).shape == (6, 2, 4)
    assert (np.array(shown)[:, 0, 3] == 0).all()
    assert (np.array(shown)[1:, :, :3] != 0).all()


# ------------------------------------------------------------------------------------------------------- names


def test_names_tell_environments_apart() -> None:
    made = Gymnasium(envs=[one | {"max_episode_steps": 5} for one in PENDULUMS])
    assert made.tasks == ["Pendulum-v1-g2.0", "Pendulum-v1-g10.0"]
    mixed: list[dict[str, Any]] = [
        {"id": "a/B-v0", "returns": [0, 1]},
        {"id": "C-v0", "name": "c", "returns": [3, 2.5]},
    ]
    assert Gymnasium(envs=mixed).tasks == ["a.B-v0", "c"]
    assert Gymnasium(envs=["Pendulum-v1", {"id": "Pendulum-v1", "g": 2.0}]).tasks == ["Pendulum-v1", "Pendulum-v1-g2.0"]
    assert Gymnasium(["c"], envs=mixed).reference_returns == {"c": (3.0, 2.5)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"needs envs, e.g. envs=\[\{id: Pendulum-v1"),
        ({"envs": [{"g": 2.0}]}, "envs: expected an id in each"),
        ({"envs": [3]}, "envs: expected an id in each.*got {'id': 3}"),
        ({"envs": [{"id": "Pendulum-v1"}] * 2}, "envs: two are called 'Pendulum-v1': give each a name"),
        ({"envs": [{"id": "Pendulum-v1", "name": "a/b"}]}, "environment 'a/b': expected a name without '/'"),
        ({"envs": PENDULUMS, "tasks": ["Pendulum-v1-g2"]}, "unknown task 'Pendulum-v1-g2': did you mean"),
        ({"envs": [{"id": "Pendulum-v1", "returns": [1, 1]}]}, "returns of 'Pendulum-v1': expected"),
        ({"envs": [{"id": "Pendulum-v1", "returns": "x"}]}, "returns of 'Pendulum-v1': expected"),
        ({"envs": [*PENDULUMS, {"id": "A", "returns": [0, 1]}]}, "returns: 'Pendulum-v1-g2.0' has none"),
        ({"file": "nowhere.py"}, "benchmark.file: there is no Python file 'nowhere.py'"),
        ({"file": __file__.replace("test_gymnasium", "test_workers")}, "has no function make_environments"),
        ({"file": FILE, "options": {"gaols": []}}, "unknown option of benchmark.file 'gaols': did you mean 'goals'"),
        ({"file": FILE, "options": {"goals": 3}}, "make_environments in '.*' fails: TypeError: 'int' object is not"),
    ],
)
def test_what_cannot_be_a_family_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Gymnasium(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"id": "Pendulm-v1"}, "environment 'Pendulm-v1' cannot be made: NameNotFound"),
        ({"id": "Pendulum-v1", "gravity": 2}, "environment 'Pendulum-v1' cannot be made: TypeError"),
        ({"id": "CartPole-v1"}, r"environment 'CartPole-v1': actions must be a Box of numbers, not Discrete\(2\)"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        TaskVector(Gymnasium(envs=[spec]), seed=0, num_workers=1)
    assert "\n" not in str(caught.value)


def test_wrappers_are_put_around() -> None:
    wrappers = ["TimeAwareObservation", {"name": "gymnasium.wrappers.ClipReward", "min_reward": -0.5}]
    made = Gymnasium(envs=[{"id": "Pendulum-v1", "max_episode_steps": 7, "wrappers": wrappers}])
    task = made.make("Pendulum-v1", 0)
    assert task.observation_space.shape == (4,)
    task.reset()
    outcomes = [task.step(np.zeros(1, np.float32)) for _ in range(7)]
    assert min(outcome.rewards for outcome in outcomes) == -0.5
    assert [outcome.truncated for outcome in outcomes] == [False] * 6 + [True]


# ------------------------------------------------------------------------------------------------ exact states


class Told(Line):
    """Tells its state itself; its attributes alone would not do."""

    def __init__(self) -> None:
        super().__init__(opaque=True)

    def get_state(self) -> Any:
        return {"place": self.place, "steps": [self.steps]}

    def set_state(self, state: Any) -> None:
        self.place, (self.steps,) = state["place"], state["steps"]


class Forgetful(Told):
    """Does not tell all of it."""

    def get_state(self) -> Any:
        return {"place": 0.0, "steps": [self.steps]}


def heavy() -> Any:
    """A Hopper whose model changes at every reset."""

    class Heavier(gymnasium.Wrapper[Any, Any, Any, Any]):
        def reset(self, **given: Any) -> Any:
            shown = self.env.reset(**given)
            self.env.unwrapped.model.body_mass[1] = 3 + self.env.unwrapped.np_random.random()  # type: ignore[attr-defined]
            return shown

    return Heavier(gymnasium.make("Hopper-v5"))


class NamedIndexStructs(NamedTuple):
    """As dm_control calls what shows a simulator's arrays by names."""

    data: object


NamedIndexStructs.__module__ = "dm_control.mujoco.engine"


class LikeDMControl(Line):
    """Draws as dm_control's tasks do, and has what its physics have."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.RandomState(3)
        self.lock, self.named = threading.Lock(), NamedIndexStructs(object())

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return observation + np.float32(self.random.randn()), *rest


EXACT: dict[str, Any] = {
    "own attributes": Line,
    "classic control": partial(gymnasium.make, "Pendulum-v1"),
    "classic control with a tuple": partial(gymnasium.make, "MountainCarContinuous-v0"),
    "MuJoCo": partial(gymnasium.make, "HalfCheetah-v5"),
    "MuJoCo that reads what is of the step before": partial(gymnasium.make, "Ant-v5"),
    "a model that changes": heavy,
    "a wrapper that learns": lambda: gymnasium.wrappers.NormalizeObservation(gymnasium.make("Pendulum-v1")),
    "a wrapper with a queue": lambda: gymnasium.wrappers.FlattenObservation(
        gymnasium.wrappers.FrameStackObservation(gymnasium.make("Pendulum-v1"), 3)
    ),
    "functions of its own": Told,
    "NumPy's old generator, a lock and a view": LikeDMControl,
}


class Slotted:
    """Keeps its one number outside a dictionary."""

    __slots__ = ("number",)


class SlottedBeside(Slotted):
    """And has a dictionary."""


class SlottedAlone:
    """The same without weak references, which is as large as an ordinary object of Python 3.11."""

    __slots__ = ("__dict__", "number")


class Holding(Line):
    """Has an object for an attribute."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held


INEXACT: dict[str, Any] = {
    "opaque": partial(Line, opaque=True),
    "forgetful": Forgetful,
    "slots": lambda: Holding(Slotted()),
    "slots beside attributes": lambda: Holding(SlottedBeside()),
    "slots as large as attributes": lambda: Holding(SlottedAlone()),
    "a bare object": lambda: Holding(object()),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_state_is_gone_on_with_bit_for_bit(name: str) -> None:
    make = EXACT[name]
    assert is_exact(lambda: (make(), None))
    one, two = (GymnasiumTask("x", make, seed, 20, None) for seed in (1, 2))
    taken = actions(1, 60, one.action_space.shape[0])[:, 0]
    for task, steps in ((one, 33), (two, 7)):
        task.reset()
        played(task, taken[:steps])
    file = io.BytesIO()
    torch.save(torch.utils._pytree.tree_map_only(np.ndarray, torch.from_numpy, one.state()), file)
    file.seek(0)
    state = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.numpy(), torch.load(file, weights_only=True)
    )
    two.load_state(state)
    assert not two.restarted
    assert two.observation.tobytes() == one.observation.tobytes()
    assert played(two, taken[33:]) == played(one, taken[33:])


def played(task: GymnasiumTask, taken: Any) -> list[Any]:
    shown: list[Any] = []
    for action in taken:
        outcome = task.step(action)
        shown.append((outcome.next_observations.tobytes(), *outcome[1:], task.episode_return, task.episode_length))
        if outcome.terminated or outcome.truncated:
            shown.append(np.asarray(task.reset()).tobytes())
    return shown


@pytest.mark.parametrize("name", INEXACT)
def test_a_state_that_cannot_be_told_begins_the_next_episode(name: str) -> None:
    assert not is_exact(lambda: (INEXACT[name](), None))
    one, two = (GymnasiumTask("x", INEXACT[name], 1, None, None) for _ in range(2))
    one.reset()
    one.step(np.zeros(1, np.float32))
    two.load_state(one.state())
    assert two.restarted
    assert (two.episode, two.episode_length, two.episode_return) == (1, 0, 0.0)
    assert np.array_equal(two.observation, one.reset())


def test_a_pair_of_functions_tells_the_state() -> None:
    def get(env: Any) -> Any:
        return [env.unwrapped.place, env.unwrapped.steps]

    def put(env: Any, state: Any) -> None:
        env.unwrapped.place, env.unwrapped.steps = state

    assert is_exact(lambda: (Line(opaque=True), (get, put)))
    state = ExactState(Line(opaque=True), (lambda env: object(), put))
    state.env.reset(seed=0)
    with pytest.raises(Exception, match="object"):
        state.capture()


def test_a_vector_goes_on_with_any_number_of_workers() -> None:
    taken = actions(2, 30)
    with TaskVector(Gymnasium(envs=PENDULUMS, horizon=11), seed=0, num_workers=1) as vector:
        vector.reset()
        for action in taken[:15]:
            vector.step(action)
        state = vector.state_dict()
        expected = [vector.step(action) for action in taken[15:]]
    with TaskVector(Gymnasium(envs=PENDULUMS, horizon=11), seed=0, num_workers=2) as vector:
        vector.load_state_dict(state)
        assert vector.restarted == []
        found = [vector.step(action) for action in taken[15:]]
    for one, other in zip(expected, found, strict=True):
        assert [field.tobytes() for field in one] == [field.tobytes() for field in other]
    with (
        TaskVector(Gymnasium(envs=PENDULUMS, horizon=12), seed=0, num_workers=1) as vector,
        pytest.raises(InputError, match="the saved task vector has horizon=11, this one has 12"),
    ):
        vector.load_state_dict(state)


# ------------------------------------------------------------------------------------- environments that misbehave


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "RuntimeError: the motor is hot"),
        ("nan", "the observation is not finite: number 1 is nan"),
        ("nan reward", "the reward is nan"),
        ("shape", r"the observation has shape \(1,\), not \(2,\)"),
        ("dtype", "the observation is of dtype complex128, not of numbers"),
        ("flag", "terminated is 'no', not True or False"),
        ("old", r"step gave 4 values, not \(observation, reward, terminated, truncated, info\)"),
    ],
)
def test_a_fault_is_named_with_its_step(fault: str, message: str) -> None:
    task = task_of(fault=fault)
    task.reset()
    for _ in range(3):
        task.step(np.zeros(1, np.float32))
    with pytest.raises(RuntimeError, match=message.replace("RuntimeError: the motor is", "the motor\nis")):
        task.step(np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "raises",
            r"worker 0 \(goal-4\) failed: task 'goal-4' at step 4 of its episode 1: RuntimeError: the motor",
        ),
        ("hangs", r"worker 0 \(goal-4\) does not answer: task 'goal-4' at step 4 of its episode 1 is not over after 1"),
    ],
)
def test_a_worker_names_the_task_and_its_step(fault: str, message: str) -> None:
    with TaskVector(family(goals=[4.0], fault=fault), seed=0, num_workers=1) as vector:
        vector.reset()
        for _ in range(3):
            vector.step([[-1.0]])
        vector.patience = 1 if fault == "hangs" else vector.patience
        with pytest.raises(RunError, match=message) as caught:
            vector.step([[-1.0]])
        assert "\n" not in str(caught.value)


def test_films_show_the_episode_that_was_played() -> None:
    films = list(family().films(lambda seen: np.array([[1], [-1]], np.float32), seed=0))
    assert [film.task for film in films] == ["goal-4", "goal-8"]
    assert films[0].success
    assert films[0].steps < films[1].steps
    assert not films[1].success
    assert len(films[0].frames) == films[0].steps + 1
    assert films[0].frames[0].shape == (240, 240, 3)
    assert films[1].episode_return is not None
