"""Warns of training that goes on without learning anything, which no exception ever tells."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.rl.protocols import Bools, Floats

ENTROPY_LIMIT = -5.0
"""Per dimension of the action, in nats, of a density on [-1, 1]; a uniform policy has 0.7, SAC's usual target is -1."""
SATURATED = 0.999
"""An action component of at least this size is at the edge of its range."""
SATURATION_LIMIT = 0.99
"""The share of such components from which a policy no longer explores."""
VALUE_LIMIT = 1e5
"""Of the mean target value: with rewards of unit variance and a discount of 0.99, values are 1e2 to 1e4."""
CONSTANT_STEPS = 10_000
"""Vector steps through which a task's rewards do not change at all before it is said."""
SHORT_EPISODES = 100
"""Episodes in a row of one step each before it is said."""
_STATE = (
    *("counts", "_evaluated", "_current", "_rewards", "_same", "_components", "_saturated", "_action_size"),
    *("_short", "_began"),
)


class Watchdog:
    """Looks at what training logs anyway, and says once what looks wrong, and again if it was better in between.

    Evaluations are ``evaluate_every`` steps apart. How often each kind of warning was given is in ``counts``.
    """

    def __init__(self, tasks: Sequence[str], evaluate_every: int) -> None:
        self.tasks, self.evaluate_every = list(tasks), evaluate_every
        self.counts = dict.fromkeys(("policy_collapse", "value_explosion", "constant_reward", "not_evaluated"), 0)
        self._evaluated = dict.fromkeys(self.tasks, 0)
        self._current: list[str] = []
        self._rewards = [math.nan] * len(self.tasks)
        self._same = [0] * len(self.tasks)  # steps in a row with that reward
        self._components = self._saturated = 0
        self._action_size = 1
        self._short = [0] * len(self.tasks)  # episodes in a row that ended at their first step
        self._began = [False] * len(self.tasks)  # whether the step before ended an episode

    def observe(self, actions: Floats, rewards: NDArray[np.float64], ended: Bools) -> None:
        """Takes in a vector step: the policy's actions ``[T, A]``, raw rewards and which episodes ended, ``[T]``."""
        # An episode that began with this step and goes on is a longer one.
        steps = zip(self._short, self._began, ended.tolist(), strict=True)
        self._short = [0 if began and not end else short + (began and end) for short, began, end in steps]
        self._began = ended.tolist()
        self._action_size = actions.shape[1]
        self._components += actions.size
        self._saturated += int((np.abs(actions) >= SATURATED).sum())
        self._same = np.where(rewards == self._rewards, np.add(self._same, 1), 0).tolist()
        self._rewards = rewards.tolist()

    def evaluated(self, step: int, success_rates: Mapping[str, float]) -> None:
        """Takes in an evaluation."""
        for task, rate in success_rates.items():
            if math.isfinite(rate):
                self._evaluated[task] = step

    def check(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """The warnings that are new at this step's log entry, of which ``train/entropy`` and ``train/target_value``."""
        found: dict[str, str] = {}
        entropy = metrics.get("train/entropy", math.inf)
        if entropy < ENTROPY_LIMIT * self._action_size:
            found["policy_collapse entropy"] = f"the policy has collapsed: its entropy is {entropy:.1f}"
        saturation = self._saturated / max(self._components, 1)
        if saturation > SATURATION_LIMIT:
            found["policy_collapse saturation"] = (
                f"the policy has collapsed: {saturation:.1%} of its action components are at the edge of their range"
            )
        value = metrics.get("train/target_value", 0.0)
        if abs(value) > VALUE_LIMIT:
            found["value_explosion"] = f"the action values explode: their mean target is {value:.3g}"
        found |= self._found_in_tasks(step)
        new = [kind for kind in found if kind not in self._current]
        for kind in new:
            key = kind.split()[0]
            self.counts[key] = self.counts.get(key, 0) + 1
        self._current = list(found)
        self._components = self._saturated = 0
        return [f"{found[kind]} (step {step:,})" for kind in new]

    def _found_in_tasks(self, step: int) -> dict[str, str]:
        found: dict[str, str] = {}
        for task, same, reward in zip(self.tasks, self._same, self._rewards, strict=True):
            if same >= CONSTANT_STEPS:
                found[f"constant_reward {task}"] = f"the reward of task '{task}' has been {reward:g} for {same:,} steps"
        for task, short in zip(self.tasks, self._short, strict=True):
            if short >= SHORT_EPISODES:
                found[f"short_episodes {task}"] = f"task '{task}' ends at once: its episodes have one step"
        for task, last in self._evaluated.items():
            if step - last > 2 * self.evaluate_every:
                found[f"not_evaluated {task}"] = f"task '{task}' has not been evaluated since step {last:,}"
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that later warnings depend on."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        for name in _STATE:
            setattr(self, name, state[name])
