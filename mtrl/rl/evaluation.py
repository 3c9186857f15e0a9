"""How often the deterministic policy succeeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtrl.rl.protocols import Environments, Floats


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    Attributes:
        tasks: the task names.
        success: ``[T, episodes]``, whether the episode was a success at any of its steps.
    """

    tasks: list[str]
    success: NDArray[np.bool_]

    @property
    def success_rates(self) -> dict[str, float]:
        """Each task's share of successful episodes, in [0, 1]."""
        return dict(zip(self.tasks, self.success.mean(1).tolist(), strict=True))

    @property
    def success_mean(self) -> float:
        """The mean over tasks of the success rates."""
        return float(self.success.mean())

    def metrics(self) -> dict[str, float]:
        """``eval/success_mean`` and one ``eval/success/<task>`` each."""
        rates = {f"eval/success/{task}": rate for task, rate in self.success_rates.items()}
        return {"eval/success_mean": self.success_mean, **rates}


def evaluate(
    policy: Callable[[Floats], Floats],
    environments: Environments,
    episodes: int,
    on_step: Callable[[Sequence[int]], None] | None = None,
) -> Evaluation:
    """Plays ``episodes`` episodes per task, the same ones at every call.

    The environments end an episode at its first success, which cannot change any-step success, and rest once
    their task has played all its episodes.

    Args:
        policy: maps observations ``[T, O]`` to actions ``[T, A]``.
        environments: made for evaluation: nothing else steps them.
        episodes: per task.
        on_step: called with the episodes finished per task, for a progress display.
    """
    tasks = environments.tasks
    success = np.zeros((len(tasks), episodes), bool)
    finished = np.zeros(len(tasks), int)
    observations = environments.reset(restart_goals=True)
    while (active := finished < episodes).any():
        environments.step_async(policy(observations), active)
        step = environments.step_wait()
        observations = step.observations
        for task in np.flatnonzero(active & (step.terminated | step.truncated)):
            success[task, finished[task]] = step.episode_success[task]
            finished[task] += 1
        if on_step is not None:
            on_step(finished.tolist())
    return Evaluation(list(tasks), success)
