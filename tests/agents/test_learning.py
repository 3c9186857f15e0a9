"""The agent learns what is known to be best, and starts as its configuration says."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.sac import MultiTaskSAC, SACConfig
from mtrl import combiners

GOALS = np.array([-0.6, 0.6, 0.0])
"""What each task wants first; it wants the opposite next."""
TASKS = ["left", "right", "middle"]
STEPS, BATCH = 800, 32


def make_agent(observation: int = 2, action: int = 1, seed: int = 0, **options: Any) -> MultiTaskSAC:
    defaults: dict[str, Any] = {"hidden_sizes": [32, 32], "learning_rate": 3e-3}
    return MultiTaskSAC(
        TASKS,
        observation,
        action,
        combiners.make("unitary", len(TASKS)),
        combiners.make("unitary", len(TASKS)),
        SACConfig(**(defaults | options)),
        batch_size=BATCH,
        capacity=2 * STEPS,
        seed=seed,
        device=torch.device("cpu"),
    )


def observed(clock: int, first: Any) -> Any:
    """``[T, 2]``: how many actions there were, and the first of them. Which task it is shows nowhere."""
    return np.stack([np.full(len(TASKS), clock), first], 1).astype(np.float32)


def transition(rewards: Any, reached: Any, done: bool) -> Any:
    count = len(TASKS)
    return SimpleNamespace(
        rewards=rewards,
        next_observations=reached,
        terminated=np.full(count, done),
        truncated=np.zeros(count, bool),
        unstable=np.zeros(count, bool),
    )


def train(agent: MultiTaskSAC) -> None:
    """Episodes of two actions, rewarded after the second: ``1 - (a_1 - goal)^2 - (a_2 + goal)^2``; no warm-up."""
    nothing = np.zeros(len(TASKS), np.float32)
    for _ in range(STEPS // 2):
        start = observed(0, nothing)
        first = agent.act(start)
        between = observed(1, first[:, 0])
        agent.remember(start, first, transition(np.zeros(len(TASKS)), between, done=False))
        second = agent.act(between)
        rewards = 1 - (first[:, 0] - GOALS) ** 2 - (second[:, 0] + GOALS) ** 2
        agent.remember(between, second, transition(rewards.astype(float), observed(2, nothing), done=True))
        for _ in range(2):
            agent.update()


def test_it_learns_what_each_task_wants() -> None:
    """Goals are opposite, so the task's identity is needed; the first action is good only for a later reward."""
    agent = make_agent(initial_temperature=0.2)
    train(agent)
    policy = agent.policy()
    first = policy(observed(0, np.zeros(len(TASKS))))[:, 0]
    second = policy(observed(1, first))[:, 0]
    assert np.abs(first - GOALS).max() < 0.15, first
    assert np.abs(second + GOALS).max() < 0.15, second


def test_it_explores_while_it_trains_and_not_in_evaluation() -> None:
    """Actions are ``tanh`` of a normal variable; evaluation takes its mean, which is 0 where all that is seen is 0."""
    agent = make_agent(task_encoding="none")
    nothing = np.zeros((3, 2), np.float32)
    raw = np.arctanh(np.stack([agent.act(nothing)[:, 0] for _ in range(2000)]).astype(float))
    assert raw.mean(0) == pytest.approx(0, abs=4 / math.sqrt(2000))
    assert raw.std(0) == pytest.approx(1, rel=0.1)
    assert np.abs(np.corrcoef(raw.T)[np.triu_indices(3, 1)]).max() < 0.1
    assert not agent.policy()(nothing).any()
    agent = make_agent()
    seen = observed(1, GOALS)
    raw = np.arctanh(np.stack([agent.act(seen)[:, 0] for _ in range(2000)]).astype(float))
    for task, mean in enumerate(np.arctanh(agent.policy()(seen)[:, 0])):
        assert raw[:, task].std() > 0.1
        assert raw[:, task].mean() == pytest.approx(float(mean), abs=4 * raw[:, task].std() / math.sqrt(2000))


def test_random_actions_are_uniform() -> None:
    agent = make_agent(action=2)
    actions = np.stack([agent.act_randomly() for _ in range(500)])
    assert actions.shape == (500, 3, 2)
    assert np.abs(actions).max() <= 1
    assert np.quantile(actions, [0.25, 0.5, 0.75]) == pytest.approx([-0.5, 0, 0.5], abs=0.06)


def test_what_is_remembered_is_what_was_seen_done_and_reached() -> None:
    agent = make_agent()
    seen, actions = observed(3, GOALS), np.array([[0.1], [0.2], [0.3]], np.float32)
    agent.remember(seen, actions, transition(np.array([1.0, 2.0, 3.0]), observed(4, -GOALS), done=True))
    stored = agent.replay.slice(0, 1)
    expected = {
        "observations": seen,
        "actions": actions,
        "rewards": np.array([1.0, 2.0, 3.0]),
        "next_observations": observed(4, -GOALS),
        "terminated": np.ones(3),
        "begins": np.ones(3),
    }
    assert stored.keys() == expected.keys()
    for key, value in expected.items():
        assert stored[key].reshape(value.shape).tolist() == value.astype(np.float32).tolist(), key


# ------------------------------------------------------------------------------------------------- how it starts


@pytest.mark.parametrize("per_task", [False, True])
def test_the_temperature_starts_where_it_is_told_to(per_task: bool) -> None:
    agent = make_agent(initial_temperature=0.25, per_task_temperature=per_task)
    assert agent.log_alpha.exp().tolist() == pytest.approx([0.25] * (3 if per_task else 1))
    train_once(agent)
    assert agent.log_alpha.exp().tolist() != pytest.approx([0.25] * (3 if per_task else 1), rel=1e-4)
    assert make_agent().log_alpha.tolist() == [0.0]  # of 1


def train_once(agent: MultiTaskSAC) -> dict[str, Any]:
    for clock in range(8):
        seen = observed(clock, GOALS)
        agent.remember(seen, agent.act(seen), transition(GOALS, observed(clock + 1, GOALS), done=False))
    return agent.update()


def test_an_update_logs_the_temperature_that_it_used() -> None:
    assert float(train_once(make_agent(initial_temperature=0.25))["train/temperature"]) == pytest.approx(0.25)


@pytest.mark.parametrize(("action", "told", "expected"), [(1, None, -1.0), (4, None, -4.0), (4, -2.5, -2.5)])
def test_the_target_entropy_is_minus_the_number_of_action_dimensions(
    action: int, told: float | None, expected: float
) -> None:
    assert make_agent(action=action, target_entropy=told).target_entropy == expected


def test_the_temperature_moves_towards_the_target_entropy() -> None:
    """Adam's first step is one learning rate: up where the entropy is below the target, and down above it."""
    for told, sign in ((100.0, 1), (-100.0, -1)):
        agent = make_agent(target_entropy=told)
        train_once(agent)
        assert agent.log_alpha.tolist() == pytest.approx([sign * 3e-3], rel=1e-3)


def assert_xavier(weight: Tensor) -> None:
    """Uniform up to ``sqrt(6 / (inputs + outputs))`` (Glorot & Bengio, 2010, equation 16)."""
    outputs, inputs = weight.shape
    bound = math.sqrt(6 / (inputs + outputs))
    assert 0.9 * bound < weight.abs().max() <= bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_actor_and_critics_start_with_xavier_weights_and_no_bias() -> None:
    agent = make_agent(observation=20, action=4, hidden_sizes=[60, 50])
    actor = [(name, value.detach()) for name, value in agent.actor.named_parameters()]
    critic = [(name, value.detach()) for name, value in agent.critic.named_parameters()]
    assert [tuple(value.shape) for _, value in actor] == [(60, 23), (60,), (50, 60), (50,), (8, 50), (8,)]
    for name, value in actor:
        if name.endswith("weight"):
            assert_xavier(value)
        else:
            assert not value.any()
    weights = [value for name, value in critic if name.endswith("weight")]
    assert [sorted(value.shape) for value in weights] == [[2, 27, 60], [2, 50, 60], [1, 2, 50]]
    for member in (member for value in weights[:-1] for member in value):
        assert_xavier(member)
    assert 0.9 * math.sqrt(6 / 51) < weights[-1].abs().max() <= math.sqrt(6 / 51)  # too few to tell their spread
    assert not any(value.any() for name, value in critic if name.endswith("bias"))


def test_critics_differ_from_each_other_and_not_from_their_targets() -> None:
    agent = make_agent()
    for name, value in agent.critic.named_parameters():
        if name.endswith("weight"):
            assert not torch.isclose(value[0], value[1]).any()
    targets = dict(agent.target_critic.named_parameters())
    assert all(torch.equal(value, targets[name]) for name, value in agent.critic.named_parameters())
    assert not any(value.requires_grad for value in targets.values())
    train_once(agent)
    assert not all(torch.equal(value, targets[name]) for name, value in agent.critic.named_parameters())
