"""How well the deterministic policy does: successes, returns, lengths of episodes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.errors import RunError
from mtrl.rl.protocols import Environments, Policy


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation."""

    tasks: list[str]
    measured: Mapping[str, NDArray[Any]]
    """By measure, ``[T, episodes]``: ``success``, whether any step of the episode was one; and where episodes were
    played to their end ``return``, ``score`` (the return, of which a random policy's is 0 and an expert's 1) and
    ``length``."""

    def by_task(self, measure: str) -> dict[str, float]:
        """Each task's mean of a measure, such as its share of successful episodes, in [0, 1]."""
        return dict(zip(self.tasks, self.measured[measure].mean(1).tolist(), strict=True))

    def mean(self, measure: str) -> float:
        """The mean over tasks."""
        return float(self.measured[measure].mean())

    def metrics(self, prefix: str) -> dict[str, float]:
        """For each measure ``<prefix><measure>_mean`` and one ``<prefix><measure>/<task>`` each."""
        found: dict[str, float] = {}
        for measure in self.measured:
            found[f"{prefix}{measure}_mean"] = self.mean(measure)
            found |= {f"{prefix}{measure}/{task}": value for task, value in self.by_task(measure).items()}
        return found

    def summary(self) -> dict[str, Any]:
        """The same as plain data, as `mtrl.run.record.Final` has it."""
        found: dict[str, Any] = {}
        for measure in self.measured:
            plural = measure if measure == "success" else f"{measure}s"
            found |= {f"{measure}_mean": self.mean(measure), plural: self.by_task(measure)}
        return found


def evaluate(
    policy: Policy,
    environments: Environments,
    episodes: int,
    seed: int,
    on_step: Callable[[Sequence[int]], None] = lambda finished: None,
    *,
    metric: str | None = None,
) -> Evaluation:
    """Plays ``episodes`` episodes per task: the first of this seed, the same ones at every call.

    The environments, which nothing else may step, may end an episode at its first success, which cannot change any-step
    success, and rest once their task has played all its episodes. The policy maps observations ``[T, O]`` to actions
    ``[T, A]``. ``on_step`` is called with the episodes finished per task, for a progress display. There is success
    where every task says whether a step was one, or ``metric`` is ``success``: then a step that does not say is none.

    Raises:
        RunError: if an episode does not end.
    """
    tasks = environments.tasks
    success = np.zeros((len(tasks), episodes), bool)
    returns, lengths = np.zeros((2, len(tasks), episodes))
    finished, length = np.zeros((2, len(tasks)), int)
    observations = environments.reset(seed=seed)
    while (active := finished < episodes).any():
        environments.step_async(policy(observations), active)
        step = environments.step_wait()
        observations = step.current_observations
        length += active
        for task in np.flatnonzero(active & (step.terminated | step.truncated)):
            success[task, finished[task]] = step.episode_success[task]
            returns[task, finished[task]] = step.episode_return[task]
            lengths[task, finished[task]] = length[task]
            length[task] = 0
            finished[task] += 1
        if length.max() > LONGEST_EPISODE:
            raise RunError(
                f"an episode of task '{tasks[int(length.argmax())]}' has not ended after {LONGEST_EPISODE:,} steps of "
                "evaluation: benchmark.horizon=STEPS cuts episodes off"
            )
        on_step(finished.tolist())
    measured: dict[str, NDArray[Any]] = {}
    if metric == "success" or environments.tells_success.all():
        measured["success"] = success
    if environments.whole_episodes:
        if references := environments.reference_returns:
            random, expert = np.array([references[task] for task in tasks]).T[:, :, None]
            measured["score"] = (returns - random) / (expert - random)
        measured |= {"return": returns, "length": lengths}
    return Evaluation(list(tasks), measured)


LONGEST_EPISODE = 100_000
"""Steps after which an episode of an evaluation is taken for one that never ends."""


Outcome = dict[str, Evaluation]
"""One policy's evaluations, by the goals that were played."""


@dataclass(frozen=True)
class Evaluator:
    """Plays policies, each in the same episodes.

    Attributes:
        make_environments: makes what `play` is given.
        episodes: per task and goals.
        seeds: of the environments, by the goals that are played, see `mtrl.run.record.GOALS`.
        metric: see `evaluate`.
    """

    make_environments: Callable[[], Environments]
    episodes: int
    seeds: Mapping[str, int]
    metric: str | None = None

    @property
    def total(self) -> int:
        """Episodes per task."""
        return self.episodes * len(self.seeds)

    def play(self, policy: Policy, environments: Environments, on_step: Callable[[int], None]) -> Outcome:
        """Plays a policy; ``on_step`` is called with how many of the `total` every task has finished."""
        found: Outcome = {}
        for goals, seed in self.seeds.items():
            before = len(found) * self.episodes

            def count(finished: Sequence[int], before: int = before) -> None:
                on_step(before + min(finished))

            found[goals] = evaluate(policy, environments, self.episodes, seed, count, metric=self.metric)
        return found
