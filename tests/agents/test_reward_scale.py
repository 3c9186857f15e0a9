"""What rewards are divided by: against naive recomputations."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from agents.replay import ReplayBuffer
from agents.reward_scale import CollectedScale, DeviationScale, MeanScale, ReturnScale, RewardScale

CPU, TASKS, GAMMA, ENTROPY, LIMIT = torch.device("cpu"), 3, 0.9, -4.0, 10.0
WARM = torch.tensor([0.5])


def step(rewards: Any, terminated: Any = False, truncated: Any = False, unstable: Any = False) -> Any:
    flags = (np.broadcast_to(np.asarray(flag), (TASKS,)) for flag in (terminated, truncated, unstable))
    return SimpleNamespace(
        rewards=np.broadcast_to(np.asarray(rewards, float), (TASKS,)),
        **dict(zip(("terminated", "truncated", "unstable"), flags, strict=True)),
    )


def buffer(rewards: torch.Tensor) -> ReplayBuffer:
    """A ring of 20 that has seen ``[TASKS, N]``."""
    replay = ReplayBuffer(TASKS, 20, 1, 1, CPU, discount=GAMMA)
    nothing, never = torch.zeros(TASKS, 1), torch.zeros(TASKS)
    for column in rewards.T:
        replay.add(nothing, nothing, column, nothing, never, ended=never)
    return replay


def make() -> ReturnScale:
    return ReturnScale(TASKS, GAMMA, ENTROPY, LIMIT, CPU)


def discounted(rewards: list[float], *, bootstrap: float) -> float:
    """The largest return by its definition: every sum written out."""
    returns = [
        sum(GAMMA**k * r for k, r in enumerate(rewards[t:])) + GAMMA ** (len(rewards) - t) * bootstrap
        for t in range(len(rewards))
    ]
    return max(map(abs, returns))


def test_moments_are_of_what_the_buffer_holds() -> None:
    rewards = torch.randn(TASKS, 50, generator=torch.Generator().manual_seed(0)) + torch.tensor([[0.0], [2.0], [-5.0]])
    replay, held = buffer(rewards), rewards[:, -20:].double()
    torch.testing.assert_close(DeviationScale().divisor(replay, WARM), held.std(1, unbiased=False))
    means = held.mean(1).clamp_min(0.01)
    torch.testing.assert_close(MeanScale().divisor(replay, WARM), means / means.max())
    assert RewardScale().divisor(replay, WARM) is None


def test_the_largest_return_of_finished_episodes() -> None:
    scale, random = make(), np.random.default_rng(0)
    largest = [0.0] * TASKS
    for length, ending in [(5, "terminated"), (9, "truncated"), (1, "truncated"), (7, "terminated")]:
        rewards = random.normal(size=(length, TASKS))
        for i, row in enumerate(rewards):
            scale.collected(step(row, **({ending: True} if i == length - 1 else {})))
        for task in range(TASKS):
            own = rewards[:, task].tolist()
            bootstrap = float(np.mean(own)) / (1 - GAMMA) if ending == "truncated" else 0.0
            largest[task] = max(largest[task], discounted(own, bootstrap=bootstrap))
    assert scale.largest.tolist() == pytest.approx(largest, rel=1e-5)
    expected = [(g + 0.5 / (1 - GAMMA) * 2.0) / LIMIT for g in largest]
    assert scale.divisor(buffer(torch.ones(TASKS, 4)), WARM).tolist() == pytest.approx(expected, rel=1e-5)


def test_tasks_end_their_episodes_alone() -> None:
    scale = make()
    scale.collected(step([1, 2, 3], terminated=[True, False, False]))
    scale.collected(step([5, 5, 5], terminated=[False, True, False]))
    assert scale.largest.tolist() == pytest.approx([1.0, 2 + GAMMA * 5, 0.0])


def test_before_the_first_episode_is_over_the_buffers_mean_stands_for_it() -> None:
    scale = make()
    found = scale.divisor(buffer(torch.tensor([[2.0], [0.0], [-3.0]]).expand(TASKS, 8)), torch.zeros(1))
    # Without rewards nor temperature there is no scale yet
    assert found.tolist() == pytest.approx([2 / (1 - GAMMA) / LIMIT, 1.0, 3 / (1 - GAMMA) / LIMIT])


def test_an_unstable_step_has_no_reward() -> None:
    scale = make()
    scale.collected(step(1.0))
    scale.collected(step(1e9, truncated=True, unstable=True))
    assert scale.largest.tolist() == pytest.approx([1 + GAMMA * 1 / (1 - GAMMA)] * TASKS)
    scale.collected(step(1e9, truncated=True, unstable=True))  # an episode of nothing else
    assert float(scale.largest.max()) < 100


def test_it_goes_on_from_its_state_in_the_middle_of_an_episode() -> None:
    one, other = make(), make()
    one.collected(step([1, 2, 3]))
    other.load_state_dict(one.state_dict())
    for scale in (one, other):
        scale.collected(step([4, 5, 6], truncated=True))
    assert torch.equal(one.largest, other.largest)
    assert one.state_dict()["rewards"] == other.state_dict()["rewards"]


def test_an_episode_that_does_not_go_on_is_no_part_of_the_next() -> None:
    scale = make()
    scale.collected(step(1000.0))
    scale.abandon([0, 2])
    scale.collected(step([1, 2, 3], terminated=True))
    assert scale.largest.tolist() == pytest.approx([1.0, 1000 + GAMMA * 2, 3.0])


def test_collected_rewards_are_divided_by_their_running_deviation() -> None:
    """One by one, by its definition; a step that broke changes nothing, and a state goes on."""
    random, scale = np.random.default_rng(0), CollectedScale(TASKS)
    mean, variance = [0.0] * TASKS, [1.0] * TASKS
    for i in range(200):
        rewards, unstable = random.normal([0.0, 3.0, -50.0], 2.0), random.random(TASKS) < 0.1
        kept = scale.collected(step(np.where(unstable, np.nan, rewards), unstable=unstable))
        for task in np.flatnonzero(~unstable):
            mean[task] = 0.999 * mean[task] + 0.001 * rewards[task]
            variance[task] = 0.999 * variance[task] + 0.001 * (rewards[task] - mean[task]) ** 2
            assert kept[task] == pytest.approx(rewards[task] / (math.sqrt(variance[task]) + 1e-8), rel=1e-12)
        if i == 100:
            other = CollectedScale(TASKS)
            other.load_state_dict(scale.state_dict())
            scale = other
    assert scale.divisor(buffer(torch.zeros(TASKS, 3)), WARM) is None
