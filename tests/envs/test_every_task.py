"""What has to hold for each of the 50 tasks, on the real simulator."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

from envs.metaworld import Options, fast
from envs.metaworld.task import TaskEnv

STEPS = 75  # enough for every expert to touch its object with one finger, then with both


@pytest.fixture(scope="module", params=list(ALL_V3_ENVIRONMENTS))
def task(request: pytest.FixtureRequest) -> Iterator[TaskEnv]:
    task = TaskEnv(request.param, 3, Options(fast=False))
    yield task
    task.env.close()


def random_actions(steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, 4)).astype(np.float32)


def expert_actions(task: TaskEnv) -> np.ndarray:
    """What the scripted expert does in this task's next episode, with some noise."""
    policies: dict[str, Any] = ENV_POLICY_MAP
    policy, noise = policies[task.name](), np.random.default_rng(1)
    observation, actions = task.reset(), []
    for _ in range(STEPS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "environments clip": the experts overdo it, on purpose
            action = policy.get_action(observation)
        actions.append(np.clip(action + 0.1 * noise.standard_normal(4), -1, 1).astype(np.float32))
        observation = task.step(actions[-1]).next_observations
    return np.array(actions)


def episode(task: TaskEnv, actions: np.ndarray) -> list[Any]:
    """Everything that Meta-World's environment returns in the first episode, as bytes."""
    recorded: list[Any] = [task.reset(seed=task.seed).tobytes()]
    for action in actions:
        observation, reward, terminated, truncated, info = task.env.step(action)
        numbers = np.array([reward, *info.values()], np.float64)
        recorded.append((observation.tobytes(), numbers.tobytes(), list(info), bool(terminated), bool(truncated)))
    return recorded


@pytest.mark.parametrize("reward_version", ["v1", "v2"])
def test_fast_path_gives_the_same_bytes(task: TaskEnv, reward_version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task.env, "reward_function_version", reward_version)
    task.episode = -1
    for actions in (random_actions(STEPS), expert_actions(task)):
        original = episode(task, actions)
        with monkeypatch.context() as patches:
            for owner, name, replacement in fast.replacements():
                patches.setattr(owner, name, replacement, raising=False)
            assert episode(task, actions) == original


def test_goes_on_from_a_saved_state_bit_for_bit(task: TaskEnv) -> None:
    actions = random_actions(50)

    def run() -> list[bytes]:
        recorded = []
        for index, action in enumerate(actions[20:]):
            outcome = task.step(action)
            recorded += [outcome.next_observations.tobytes(), np.float64(outcome.rewards).tobytes()]
            if index == 15:
                recorded.append(task.reset().tobytes())
        return [*recorded, np.float64(task.episode_return).tobytes()]

    task.reset()
    for action in actions[:20]:
        task.step(action)
    state = task.state()
    uninterrupted = run()
    task.load_state(state)
    assert run() == uninterrupted
    other = TaskEnv(task.name, 3, task.options)
    other.load_state(state)
    task = other
    assert run() == uninterrupted


def test_reset_depends_on_the_goal_alone(task: TaskEnv) -> None:
    first = task.reset(seed=task.seed)
    state = task.state()["simulation"]["physics"]
    for action in random_actions(10):
        task.step(action)
    task.reset()
    again = task.reset(seed=task.seed)
    assert again.tobytes() == first.tobytes()
    assert task.state()["simulation"]["physics"].tobytes() == state.tobytes()
