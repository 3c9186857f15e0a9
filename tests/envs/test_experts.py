"""Meta-World's scripted experts drive all tasks through the vector and succeed as on the plain environments."""

import warnings
from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from envs.metaworld import Options, benchmark_tasks, make_vector
from envs.metaworld.task import TaskEnv

SEED = 2
POLICIES: dict[str, Any] = ENV_POLICY_MAP


def expert_action(policy: Any, observation: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "environments clip": some experts ask for more than 1
        action = policy.get_action(observation.astype(np.float64))
    return np.clip(action, -1, 1).astype(np.float32)


def plain_episode(name: str) -> tuple[bool, int, float]:
    """Success, length and return of one episode on Meta-World's own environment, until it succeeds."""
    task, policy = TaskEnv(name, SEED, Options(goals="fixed", fast=False)), POLICIES[name]()
    observation = task.reset()
    total = 0.0
    for length in range(1, 501):
        action = expert_action(policy, observation.astype(np.float32))
        observation, reward, _, _, info = task.env.step(action)
        total += float(reward)
        if info["success"] > 0:
            return True, length, total
    return False, length, total


def test_experts_succeed_as_on_the_plain_environments() -> None:
    tasks = benchmark_tasks("mt50")
    policies = [POLICIES[task]() for task in tasks]
    outcomes: dict[str, tuple[bool, int, float]] = {}
    with make_vector(tasks, seed=SEED, terminate_on_success=True, goals="fixed") as vector:
        observations = vector.reset()
        active = np.ones(len(tasks), bool)
        for length in range(1, 501):
            actions = np.zeros((len(tasks), 4), np.float32)
            for row in np.flatnonzero(active):
                actions[row] = expert_action(policies[row], observations[row])
            result = vector.step(actions, active)
            for row in np.flatnonzero(active & (result.terminated | result.truncated)):
                success = bool(result.episode_success[row])
                assert success == result.terminated[row]
                outcomes[tasks[row]] = success, length, float(result.episode_return[row])
                active[row] = False
            observations = result.current_observations
            if not active.any():
                break
    assert all(success for success, _, _ in outcomes.values())
    for task in tasks:
        assert outcomes[task] == plain_episode(task), task


def test_actions_are_clipped() -> None:
    """Near the object, v1 rewards closing the gripper, without a limit of its own."""
    with make_vector(["pick-place-v3"], seed=SEED, reward_version="v1") as vector:
        policy, observations = POLICIES["pick-place-v3"](), vector.reset()
        for _ in range(25):
            observations = vector.step(expert_action(policy, observations[0])[None]).current_observations
        state, rewards = vector.state_dict(), []
        for effort in (0.5, 1.0, 7.5):
            vector.load_state_dict(state)
            rewards.append(vector.step(np.array([[0, 0, 0, effort]])).rewards[0])
    assert rewards[0] < rewards[1] == rewards[2]
