"""How often the deterministic policy succeeds."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
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


class BackgroundEvaluation:
    """An evaluation in a thread beside training, of a policy that learning no longer changes.

    Args:
        policy: maps observations ``[T, O]`` to actions ``[T, A]``.
        environments: made for evaluation: nothing else steps them while it runs.
        episodes: per task.

    Attributes:
        finished: how many episodes every task has finished.
    """

    def __init__(self, policy: Callable[[Floats], Floats], environments: Environments, episodes: int) -> None:
        self.finished = 0
        self._cancelled = False
        with_one_thread = ThreadPoolExecutor(1, "evaluation")
        self._future = with_one_thread.submit(evaluate, policy, environments, episodes, self._on_step)
        with_one_thread.shutdown(wait=False)

    @property
    def done(self) -> bool:
        """Whether the outcome is there."""
        return self._future.done()

    def wait(self, seconds: float) -> None:
        """Waits until it is done, but no longer than so."""
        wait([self._future], seconds)

    def result(self) -> Evaluation:
        """Waits for the outcome, or for the error that ended it, which it raises."""
        return self._future.result()

    def cancel(self) -> None:
        """Ends it between two steps; returns when the environments are free."""
        self._cancelled = True
        wait([self._future])

    def _on_step(self, finished: Sequence[int]) -> None:
        self.finished = min(finished)
        if self._cancelled:
            raise InterruptedError("the evaluation was cancelled")
