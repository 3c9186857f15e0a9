"""How often the deterministic policy succeeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mtrl.rl.protocols import Agent, Bools, Environments, Floats


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation."""

    tasks: list[str]
    success: Bools
    """``[T, episodes]``, whether the episode was a success at any of its steps."""

    @property
    def success_rates(self) -> dict[str, float]:
        """Each task's share of successful episodes, in [0, 1]."""
        return dict(zip(self.tasks, self.success.mean(1).tolist(), strict=True))

    @property
    def success_mean(self) -> float:
        """The mean over tasks of the success rates."""
        return float(self.success.mean())

    def metrics(self, prefix: str) -> dict[str, float]:
        """``<prefix>success_mean`` and one ``<prefix>success/<task>`` each."""
        rates = {f"{prefix}success/{task}": rate for task, rate in self.success_rates.items()}
        return {f"{prefix}success_mean": self.success_mean, **rates}

    def summary(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"success_mean": self.success_mean, "success": self.success_rates}


def evaluate(
    policy: Callable[[Floats], Floats],
    environments: Environments,
    episodes: int,
    seed: int,
    on_step: Callable[[Sequence[int]], None] = lambda finished: None,
) -> Evaluation:
    """Plays ``episodes`` episodes per task: the first of this seed, the same ones at every call.

    The environments, which nothing else may step, end an episode at its first success, which cannot change any-step
    success, and rest once their task has played all its episodes. The policy maps observations ``[T, O]`` to actions
    ``[T, A]``. ``on_step`` is called with the episodes finished per task, for a progress display.
    """
    tasks = environments.tasks
    success = np.zeros((len(tasks), episodes), bool)
    finished = np.zeros(len(tasks), int)
    observations = environments.reset(seed=seed)
    while (active := finished < episodes).any():
        environments.step_async(policy(observations), active)
        step = environments.step_wait()
        observations = step.current_observations
        for task in np.flatnonzero(active & (step.terminated | step.truncated)):
            success[task, finished[task]] = step.episode_success[task]
            finished[task] += 1
        on_step(finished.tolist())
    return Evaluation(list(tasks), success)


Outcome = dict[str, Evaluation]
"""One policy's evaluations, by the goals that were played."""


class EvaluationQueue:
    """Policies that wait to be evaluated; the oldest is being played in a thread, which training goes on beside.

    Learning no longer changes them, so when they are played makes no difference to what comes of it.

    Args:
        agent: whose policies.
        make_environments: called at the first evaluation.
        episodes: per task and goals.
        seeds: of the environments, by the goals that are played, see `mtrl.run.record.PREFIXES`.
    """

    def __init__(
        self,
        agent: Agent,
        make_environments: Callable[[], Environments],
        episodes: int,
        seeds: Mapping[str, int],
    ) -> None:
        self.environments: Environments | None = None
        """Where policies are played; None before the first."""
        self.waiting: list[dict[str, Any]] = []
        """What is not evaluated yet, oldest first, for a checkpoint: ``step``, ``seconds`` and ``policy``."""
        self._agent, self._make_environments = agent, make_environments
        self._episodes, self._seeds = episodes, seeds
        self._thread = ThreadPoolExecutor(1, "evaluation")
        self._playing: Future[Outcome] | None = None
        self._finished = 0  # episodes of every task
        self._cancelled = False

    def add(self, step: int, seconds: float) -> None:
        """Has the agent's policy of this moment evaluated: of this step, after so many seconds of training."""
        self.waiting.append({"step": step, "seconds": seconds, "policy": self._agent.policy_state()})

    def outcomes(self, before: int, on_wait: Callable[[str], None]) -> Iterator[tuple[dict[str, Any], Outcome]]:
        """Waits for the evaluations of the steps before this one, oldest first; starts the one after them.

        Yields what was `waiting`, and the outcome by goals. ``on_wait`` is called with how far an evaluation is, again
        and again while it is waited for; an error that it raises leaves the evaluation in the queue.
        """
        while self.waiting:
            first = self.waiting[0]
            if self._playing is None:
                if self.environments is None:
                    self.environments = self._make_environments()
                policy = self._agent.policy(first["policy"])
                self._playing = self._thread.submit(self._play, policy, self.environments)
            if first["step"] >= before:
                return
            while not self._playing.done():
                on_wait(f"evaluating {self._finished}/{self._episodes * len(self._seeds)} episodes")
                wait([self._playing], 0.1)
            outcome, self._playing = self._playing.result(), None
            del self.waiting[0]
            yield first, outcome

    def _play(self, policy: Callable[[Floats], Floats], environments: Environments) -> Outcome:
        found: Outcome = {}
        for goals, seed in self._seeds.items():
            before = len(found) * self._episodes
            found[goals] = evaluate(policy, environments, self._episodes, seed, partial(self._on_step, before))
        return found

    def _on_step(self, before: int, finished: Sequence[int]) -> None:
        self._finished = before + min(finished)
        if self._cancelled:
            raise InterruptedError("the evaluation was cancelled")

    def close(self) -> None:
        """Gives up what is being played, between two steps, and closes the environments."""
        self._cancelled = True
        self._thread.shutdown()
        if self.environments is not None:
            self.environments.close()
