"""The task vector: episodes, goals, repeatability, saved states. Real simulator, few and short episodes."""

import io
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from envs.metaworld import Options, benchmark_tasks, make_vector
from envs.metaworld.task import TaskEnv
from envs.metaworld.tasks import balanced_groups
from envs.vector import TaskVector
from mtrl.errors import InputError, RunError
from mtrl.rl.protocols import Step

TASKS = ["reach-v3", "drawer-close-v3", "push-v3"]


def actions_for(tasks: Sequence[str], steps: int) -> np.ndarray:
    """``[steps, T, 4]``, each task's own whatever the others are."""
    return np.stack(
        [np.random.default_rng(len(task)).uniform(-1, 1, (steps, 4)).astype(np.float32) for task in tasks], 1
    )


def play(vector: TaskVector, actions: np.ndarray) -> list[Step]:
    return [vector.step(action) for action in actions]


def rows(results: list[Step], index: int) -> list[bytes]:
    """All that one task returned."""
    return [field[index].tobytes() for result in results for field in result]


def plain_task(name: str, seed: int = 0, reward_version: str = "v2") -> TaskEnv:
    return TaskEnv(name, seed, Options(reward_version=reward_version, fast=False))


def test_benchmarks_are_in_their_own_order() -> None:
    mt10, mt50 = benchmark_tasks("mt10"), benchmark_tasks("mt50")
    assert len(mt10) == 10
    assert mt10[:3] == ["reach-v3", "push-v3", "pick-place-v3"]
    assert len(set(mt50)) == 50
    mt25 = benchmark_tasks("mt25")
    assert mt10 == mt25[:10]
    assert len(set(mt25) & set(mt50)) == 25
    assert mt50.index("hand-insert-v3") < mt50.index("drawer-close-v3")
    with pytest.raises(InputError, match="unknown benchmark 'mt11': did you mean 'mt10'"):
        benchmark_tasks("mt11")


def test_meta_world_that_cannot_be_imported_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    said = r"^Meta-World cannot be imported \(.*\): pip install 'metaworld>=3.1,<3.2'$"
    for use in (lambda: benchmark_tasks("mt10"), lambda: make_vector(["reach-v3"], seed=1)):
        with pytest.raises(InputError, match=said):
            use()


@pytest.mark.parametrize("num_groups", [1, 2, 7, 50])
def test_groups_hold_every_task_once_and_weigh_alike(num_groups: int) -> None:
    groups = balanced_groups(benchmark_tasks("mt50"), num_groups)
    assert sorted(index for group in groups for index in group) == list(range(50))
    assert max(map(len, groups)) - min(map(len, groups)) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["reach-v3", "pusj-v3"]}, "unknown task 'pusj-v3': did you mean 'push-v3'"),
        ({"tasks": ["reach-v3", "reach-v3"]}, "'reach-v3' is listed twice"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": "reach-v3"}, "must be a list"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ({"horizon": 0}, "horizon: expected an integer of at least 1"),
        ({"num_workers": 0}, "num_workers: expected an integer of at least 1"),
        ({"goals": "fixt"}, "unknown goals 'fixt': did you mean 'fixed'"),
        ({"reward_version": "v3"}, "unknown reward_version 'v3'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_vector(**dict[str, Any](tasks=["reach-v3"], seed=0) | arguments)
    assert "\n" not in str(caught.value)


def test_workers_order_and_other_tasks_do_not_change_a_task() -> None:
    results: dict[str, list[list[bytes]]] = {}
    for tasks, num_workers in ((TASKS, 1), (TASKS, 3), (TASKS[::-1], 2), (TASKS[2:], 1)):
        with make_vector(tasks, seed=5, num_workers=num_workers, horizon=6) as vector:
            first = vector.reset()
            played = play(vector, actions_for(tasks, 14))
        for index, task in enumerate(tasks):
            results.setdefault(task, []).append([first[index].tobytes(), *rows(played, index)])
    for task, same in results.items():
        assert all(each == same[0] for each in same), task


def test_seed_and_task_choose_the_goals() -> None:
    reach, push, other = plain_task("reach-v3"), plain_task("push-v3"), plain_task("reach-v3", seed=1)
    orders = [[task.goal_index(episode) for episode in range(200)] for task in (reach, push, other)]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert all(len(set(order)) == pytest.approx(50, abs=5) for order in orders)  # with replacement
    assert not np.isin(np.array(reach.goals), np.array(other.goals)).all(1).any()


@pytest.mark.parametrize("name", ["push-v3", "lever-pull-v3"])
def test_goals_are_those_of_the_package(name: str) -> None:
    import pickle

    import metaworld

    task = plain_task(name)
    benchmark = metaworld.MT1(name, seed=task.goal_seed)
    theirs = [pickle.loads(goal.data)["rand_vec"] for goal in benchmark.train_tasks]
    assert np.array(task.goals).tobytes() == np.array(theirs).tobytes()


def test_evaluation_visits_every_goal_once_and_restarts() -> None:
    with make_vector(TASKS[:2], seed=0, num_workers=1, horizon=1, goals="evaluation") as vector:
        first = [vector.reset()] + [result.current_observations for result in play(vector, np.zeros((60, 2, 4)))]
        again = [vector.reset(seed=0)]
        again += [result.current_observations for result in play(vector, np.zeros((20, 2, 4)))]
    for task in range(2):
        starts = np.array(first)[:, task]
        assert len(np.unique(starts[:50], axis=0)) == 50
        assert starts[50:].tobytes() == starts[:11].tobytes()
        assert np.array(again)[:, task].tobytes() == starts[:21].tobytes()


def test_fixed_goal_is_the_same_always_and_for_the_same_seed() -> None:
    starts = []
    for seed in (0, 0, 1):
        with make_vector(TASKS[:2], seed=seed, num_workers=1, horizon=2, goals="fixed") as vector:
            results = play_from_reset(vector, 5)
            assert (results[1].current_observations == results[3].current_observations).all()
            starts.append(results[1].current_observations)
    assert (starts[0] == starts[1]).all()
    assert (starts[0] != starts[2]).any(1).all()


def play_from_reset(vector: TaskVector, steps: int) -> list[Step]:
    vector.reset()
    return play(vector, actions_for(vector.tasks, steps))


@pytest.mark.parametrize("reward_version", ["v1", "v2"])
def test_horizon_truncates_and_final_observations_are_kept_apart(reward_version: str) -> None:
    """Against the untouched environment, stepped by hand."""
    horizon, actions = 5, actions_for(TASKS[:2], 12)
    with make_vector(TASKS[:2], seed=0, num_workers=1, horizon=horizon, reward_version=reward_version) as vector:
        observations = vector.reset()
        results = play(vector, actions)
    for index, name in enumerate(TASKS[:2]):
        task = plain_task(name, reward_version=reward_version)
        assert (observations[index] == task.reset().astype(np.float32)).all()
        total = 0.0
        for step, (result, action) in enumerate(zip(results, actions, strict=True)):
            outcome = task.env.step(action[index])
            total += float(outcome[1])
            assert result.next_observations[index].tobytes() == outcome[0].astype(np.float32).tobytes()
            assert result.rewards[index] == outcome[1]
            assert result.episode_return[index] == total
            assert result.truncated[index] == ((step + 1) % horizon == 0)
            if result.truncated[index]:
                total = 0.0
                assert result.current_observations[index].tobytes() == task.reset().astype(np.float32).tobytes()
                assert (result.current_observations[index] != result.next_observations[index]).any()
            else:
                assert (result.current_observations[index] == result.next_observations[index]).all()
        assert not any(result.terminated.any() or result.unstable.any() for result in results)


def test_reward_versions_differ() -> None:
    rewards = []
    for version in ("v1", "v2"):
        with make_vector(TASKS[:1], seed=0, reward_version=version) as vector:
            rewards.append([result.rewards[0] for result in play_from_reset(vector, 5)])
    assert np.all(np.not_equal(rewards[0], rewards[1]))


def test_fast_path_and_remembered_starts_change_nothing() -> None:
    recorded = []
    for fast in (True, False):
        with make_vector(TASKS, seed=0, num_workers=1, horizon=5, goals="fixed", fast=fast) as vector:
            results = play_from_reset(vector, 18)
            recorded.append([rows(results, index) for index in range(3)])
    assert recorded[0] == recorded[1]


def test_inactive_tasks_stay_where_they_are() -> None:
    active, actions = np.array([True, False, True]), actions_for(TASKS, 7)
    with make_vector(TASKS, seed=0, num_workers=2, horizon=4) as vector:
        start = vector.reset()
        full = play(vector, actions)
        vector.reset(seed=0)
        partial = [vector.step(action, active) for action in actions]
        resumed = play(vector, actions)
    assert rows(partial, 0) == rows(full, 0)
    assert rows(partial, 2) == rows(full, 2)
    assert rows(resumed, 1) == rows(full, 1)
    for result in partial:
        assert (result.current_observations[1] == start[1]).all()
        assert result.rewards[1] == 0
        assert not any(flags[1] for flags in (result.terminated, result.truncated, result.success))


def test_saved_state_goes_on_bit_for_bit_with_other_workers_and_other_speed() -> None:
    actions = actions_for(TASKS, 40)
    with make_vector(TASKS, seed=0, num_workers=1, horizon=15) as vector:
        vector.reset()
        play(vector, actions[:20])
        file = io.BytesIO()
        torch.save(vector.state_dict(), file)
        observations, uninterrupted = vector.current_observations, play(vector, actions[20:])
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for num_workers, fast in ((3, True), (1, False)):
        with make_vector(TASKS, seed=0, num_workers=num_workers, horizon=15, fast=fast) as vector:
            vector.load_state_dict(state)
            assert (vector.current_observations == observations).all()
            resumed = play(vector, actions[20:])
        for index in range(3):
            assert rows(resumed, index) == rows(uninterrupted, index)


def test_state_of_another_vector_is_refused() -> None:
    with make_vector(TASKS[:1], seed=0, horizon=15) as vector:
        vector.reset()
        state = vector.state_dict()
    with make_vector(TASKS[:1], seed=0, horizon=16) as vector:
        with pytest.raises(InputError, match="has horizon=15, this one has 16"):
            vector.load_state_dict(state)
        vector.reset()  # and nothing is broken


def test_unstable_simulation_ends_the_episode_and_says_so() -> None:
    zeros = np.zeros((1, 4))
    with make_vector(TASKS[:1], seed=0, horizon=10) as vector:
        start = vector.reset()
        vector.step(zeros)
        state = vector.state_dict()
        last = vector.current_observations
        physics = state["tasks"][TASKS[0]]["simulation"]["physics"]
        physics[20:] = 1e12  # positions come first, then velocities: far beyond what MuJoCo accepts
        vector.load_state_dict(state)
        broken = vector.step(zeros)
        assert broken.unstable[0]
        assert broken.truncated[0]
        assert not broken.terminated[0]
        assert broken.rewards[0] == 0
        assert (broken.next_observations == last).all()
        assert (broken.current_observations != start).any()
        following = vector.step(zeros)
        assert not following.unstable[0]
        assert not following.truncated[0]
        assert following.episode_return[0] == following.rewards[0]


def test_misuse_is_explained() -> None:
    with make_vector(TASKS[:2], seed=0) as vector:
        assert vector.observation_space.shape == (2, 39)
        assert vector.action_space.shape == (2, 4)
        with pytest.raises(RunError, match="must be reset before its first step"):
            vector.step(np.zeros((2, 4)))
        vector.reset()
        with pytest.raises(RunError, match="step_wait was called without step_async"):
            vector.step_wait()
        with pytest.raises(InputError, match=r"actions must have shape \(2, 4\), got \(4,\)"):
            vector.step(np.zeros(4))
        with pytest.raises(RunError, match="action for task 'drawer-close-v3' is not finite"):
            vector.step(np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]]))
        vector.step_async(np.zeros((2, 4)))
        with pytest.raises(RunError, match="step_wait must be called first"):
            vector.reset()
        vector.step_wait()
    vector.close()
    with pytest.raises(RunError, match="closed"):
        vector.reset()


def test_importing_the_package_loads_no_simulator() -> None:
    code = "import sys, envs; assert not {'mujoco', 'metaworld', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
