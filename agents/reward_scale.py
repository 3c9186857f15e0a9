"""What each task's rewards are divided by: when a mini-batch is sampled, or, as others do, when they are collected."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.replay import ReplayBuffer
from mtrl.rl.protocols import Step


class RewardScale:
    """Leaves rewards as they are; the others say what they divide by."""

    def divisor(self, replay: ReplayBuffer, temperature: Tensor) -> Tensor | None:
        """What rewards are divided by, ``[T]`` (None is 1), given each task's temperature (``[T]`` or ``[1]``)."""
        return None

    def collected(self, step: Step) -> NDArray[np.float64]:
        """The rewards ``[T]`` that the buffer keeps of a vector step; sees every one once, in order."""
        return step.rewards

    def abandon(self, tasks: Iterable[int]) -> None:
        """Is told that the episodes under way in these tasks are not played to an end: others begin."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that it goes on from."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave."""


class DeviationScale(RewardScale):
    """The standard deviation of the rewards that the buffer holds (Kurin et al., 2022, section 4.2)."""

    def divisor(self, replay: ReplayBuffer, temperature: Tensor) -> Tensor:
        """See `RewardScale`; 1 for a task whose rewards do not vary."""
        return replay.reward_std()


class MeanScale(RewardScale):
    """The mean of the rewards that the buffer holds, relative to the largest of all tasks (ARS: Cho et al., 2025)."""

    def divisor(self, replay: ReplayBuffer, temperature: Tensor) -> Tensor:
        """See `RewardScale`; a task counts with at least 0.01 as its mean."""
        means = replay.reward_mean().clamp_min(0.01)
        return means / means.amax()


class CollectedScale(RewardScale):
    """Their running deviation when they are collected (Sodhani et al., 2021), so that the buffer's are of many scales.

    ``mu <- mu + rate (r - mu)``, ``v <- v + rate ((r - mu)^2 - v)`` at the rate 0.001 of their environments' wrapper;
    the buffer keeps ``r / (sqrt(v) + 1e-8)``; ``mu`` begins at 0 and ``v`` at 1. A step that broke is not counted.
    """

    RATE = 0.001

    def __init__(self, num_tasks: int) -> None:
        self.mean, self.variance = np.zeros(num_tasks), np.ones(num_tasks)

    def collected(self, step: Step) -> NDArray[np.float64]:
        """See `RewardScale`."""
        mean = self.mean + self.RATE * (step.rewards - self.mean)
        variance = self.variance + self.RATE * ((step.rewards - mean) ** 2 - self.variance)
        self.mean = np.where(step.unstable, self.mean, mean)
        self.variance = np.where(step.unstable, self.variance, variance)
        return step.rewards / (np.sqrt(self.variance) + 1e-8)

    def state_dict(self) -> dict[str, Any]:
        """See `RewardScale`."""
        return {"mean": self.mean.tolist(), "variance": self.variance.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `RewardScale`."""
        self.mean, self.variance = np.array(state["mean"]), np.array(state["variance"])


class ReturnScale(RewardScale):
    """The largest return so far: then action values lie within a limit (BRC: Nauman et al., 2025).

    ``(max_t |G_t| + alpha / (1 - gamma) |H| / 2) / limit``, where ``G_t`` are the discounted returns from every step of
    a task's finished episodes and ``H`` is the target entropy. An episode that was cut off counts as going on for ever
    with its mean reward; before a task's first episode is over, so does what the buffer holds of it.

    Args:
        num_tasks: T.
        discount: gamma, below 1.
        target_entropy: H, which the temperature alpha weighs.
        limit: of action values.
        device: where mini-batches are.
    """

    def __init__(
        self, num_tasks: int, discount: float, target_entropy: float, limit: float, device: torch.device
    ) -> None:
        self.discount, self.limit = discount, limit
        self.entropy = abs(target_entropy) / 2
        self.largest = torch.zeros(num_tasks, device=device)
        """``max_t |G_t|`` of each task, 0 before its first episode is over."""
        self._rewards: list[list[float]] = [[] for _ in range(num_tasks)]  # of the episode that is under way

    def divisor(self, replay: ReplayBuffer, temperature: Tensor) -> Tensor:
        """See `RewardScale`."""
        horizon = 1 / (1 - self.discount)
        expected = replay.reward_mean().abs().to(self.largest) * horizon
        largest = torch.where(self.largest > 0, self.largest, expected)
        scale = (largest + temperature * horizon * self.entropy) / self.limit
        return torch.where(scale > 0, scale, 1.0)

    def collected(self, step: Step) -> NDArray[np.float64]:
        """See `RewardScale`."""
        ended = step.terminated | step.truncated
        for task, rewards in enumerate(self._rewards):
            if not step.unstable[task]:
                rewards.append(float(step.rewards[task]))
            if ended[task] and rewards:
                largest = np.abs(self.returns(np.array(rewards), cut_off=not step.terminated[task])).max()
                self.largest[task].clamp_(min=float(largest))
            if ended[task]:
                rewards.clear()
        return step.rewards

    def abandon(self, tasks: Iterable[int]) -> None:
        """See `RewardScale`: such an episode has no return."""
        for task in tasks:
            self._rewards[task].clear()

    def returns(self, rewards: NDArray[np.float64], *, cut_off: bool) -> NDArray[np.float64]:
        """The discounted return from each step of an episode, ``[steps]`` to ``[steps]``."""
        following = rewards.mean() / (1 - self.discount) if cut_off else 0.0
        returns = np.empty_like(rewards)
        for i in reversed(range(len(rewards))):
            following = returns[i] = rewards[i] + self.discount * following
        return returns

    def state_dict(self) -> dict[str, Any]:
        """See `RewardScale`."""
        return {"largest": self.largest, "rewards": [list(rewards) for rewards in self._rewards]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `RewardScale`."""
        self.largest.copy_(state["largest"])
        self._rewards = [list(rewards) for rewards in state["rewards"]]
