"""The training loop: act, send, update while the simulators step, receive."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from mtrl.errors import RunError
from mtrl.rl.evaluation import BackgroundEvaluation
from mtrl.rl.protocols import Agent, Environments, Floats, Step
from mtrl.rl.watchdog import Watchdog
from mtrl.run.checkpoints import restoring
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import MetricsWriter
from mtrl.run.progress import TrainingProgress
from mtrl.run.signals import interruption, on_stop_request

_PIECES = 10  # of the replay buffer between two checkpoints, so that none of them is long to write


@dataclass(frozen=True)
class Schedule:
    """When what happens, in vector steps (one environment step in every task).

    Attributes:
        steps: length of the run.
        warmup_steps: random actions and no updates before this step.
        catch_up_updates: updates made at once when the warm-up ends.
        eval_every: steps between evaluations; the end of the run is always evaluated.
        checkpoint_every: steps between checkpoints.
        log_every: steps between entries of training metrics, which average over them.
        insight_every: steps between measurements of gradient conflict; 0 is never.
        eval_episodes: episodes per task and evaluation.
        eval_beside: play an evaluation while training goes on, not before it goes on; the curves are the same.
    """

    steps: int
    warmup_steps: int
    catch_up_updates: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    insight_every: int
    eval_episodes: int
    eval_beside: bool


class Trainer:
    """Trains an agent, and goes on where an interrupted run left off.

    Args:
        agent: what learns.
        environments: made for training.
        make_evaluation_environments: makes the environments of evaluation, at the first one.
        run: the run's directory.
        schedule: when what happens.
        show_progress: draw a progress bar.
    """

    def __init__(
        self,
        agent: Agent,
        environments: Environments,
        make_evaluation_environments: Callable[[], Environments],
        run: RunDirectory,
        schedule: Schedule,
        *,
        show_progress: bool = True,
    ) -> None:
        self.agent, self.environments, self.run, self.schedule = agent, environments, run, schedule
        self.step = 0
        self.updates = 0
        self.seconds = 0.0
        """Seconds of training, those before a restart included."""
        self.evaluations: list[dict[str, Any]] = []
        """Each evaluation's ``step``, ``success_mean`` and ``success`` by task."""
        self.counters = dict.fromkeys(
            ("unstable_steps", "resumes", "checkpoints_passed_over", "metrics_dropped", "metrics_missing"), 0
        )
        """What was dropped or repaired so far, for `summary`."""
        self.watchdog = Watchdog(environments.tasks, schedule.eval_every)
        self._make_evaluation_environments = make_evaluation_environments
        self._evaluation_environments: Environments | None = None
        self._evaluation: BackgroundEvaluation | None = None
        self._to_evaluate: list[dict[str, Any]] = []
        """What is not evaluated yet, oldest first: ``step``, ``seconds`` and ``policy``. The first is being played."""
        self._observations: Floats
        self._actions: Floats | None = None  # chosen, but not sent yet
        self._meter = _Meter(environments.tasks)
        self._signal: int | None = None
        self._show_progress = show_progress

    def train(self) -> None:
        """Runs to the end of the schedule.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after writing a checkpoint.
            RunError: if the run cannot go on. After a non-finite update, the last checkpoint is from before it.
        """
        loaded = self.run.checkpoints.load(self.agent.replay)
        entries = 0
        if loaded is None:
            self._observations = self.environments.reset()
        else:
            with restoring(self.run.checkpoints.directory):
                entries = self._load_state_dict(loaded[1])
            self.run.checkpoints.discard_after(self.step)
        self._metrics = MetricsWriter(self.run.path, self.step, entries)
        self._progress = TrainingProgress(self.schedule.steps, self.step, enabled=self._show_progress)
        self._started = time.monotonic() - self.seconds
        self._logged = self.step, self.updates, self.seconds
        self.counters["metrics_dropped"] += self._metrics.dropped
        self.counters["metrics_missing"] += self._metrics.missing
        try:
            with on_stop_request(self._stop), self._progress:
                if loaded is not None:
                    self.counters["resumes"] += 1
                    self.counters["checkpoints_passed_over"] += self.run.checkpoints.passed_over
                    self._checkpoint()  # what was counted lasts, should this part not reach the next one
                if self.evaluations:
                    self._progress.show(f"success {self.evaluations[-1]['success_mean']:.2f}")
                self._evaluate()
                while self.step < self.schedule.steps:
                    self._advance()
                    self._after_step()
                    if self._signal is not None:
                        self._interrupt()
        finally:
            self._metrics.close()
            if self._evaluation is not None:
                self._evaluation.cancel()
            if self._evaluation_environments is not None:
                self._evaluation_environments.close()

    def summary(self) -> dict[str, Any]:
        """What a finished run came to, plain data."""
        last = self.evaluations[-1]
        best = max(self.evaluations, key=lambda evaluation: float(evaluation["success_mean"]))
        return {
            "tasks": list(self.environments.tasks),
            "steps": self.step,
            "transitions": self.step * len(self.environments.tasks),
            "updates": self.updates,
            "seconds": round(self.seconds, 1),
            "episodes_per_evaluation": self.schedule.eval_episodes,
            "final": last,
            "best": {
                "step": best["step"],
                "success_mean": best["success_mean"],
                "of_evaluations": len(self.evaluations),
            },
            "counters": self.counters | {"warnings": self.watchdog.counts},
        }

    # ----------------------------------------------------------------------------------------------- one step

    def _advance(self) -> None:
        """One step in every task; the gradient update is computed while the simulators run."""
        warm = self.step >= self.schedule.warmup_steps
        if self._actions is None:
            self._actions = self.agent.act(self._observations) if warm else self.agent.act_randomly()
        if self.step == self.schedule.warmup_steps:
            self._catch_up()
        self.environments.step_async(self._actions)
        failure = None
        if warm:
            try:
                self._update()
            except RunError as error:
                failure = error
        step = self.environments.step_wait()
        self.agent.remember(self._observations, self._actions, step)
        self._meter.add_episodes(step)
        self.counters["unstable_steps"] += int(step.unstable.sum())
        if warm:
            self.watchdog.observe(self._actions, step.rewards)
        self._observations, self._actions = step.observations, None
        self.step += 1
        if failure is not None:
            self._fail(failure)

    def _catch_up(self) -> None:
        """The updates that the warm-up had none of; a signal interrupts them, and the run goes on between two."""
        while self.updates < self.schedule.catch_up_updates:
            self._progress.show(f"catching up: {self.updates}/{self.schedule.catch_up_updates} updates")
            try:
                self._meter.add_update(self.agent.update())
            except RunError as error:
                self._fail(error)
            self.updates += 1
            if self._signal is not None:
                self._interrupt()

    def _update(self) -> None:
        step = self.step + 1  # the one under way
        insight = self.schedule.insight_every > 0 and step % self.schedule.insight_every == 0
        metrics = self.agent.update(insight=insight)
        self.updates += 1
        self._meter.add_update({key: value for key, value in metrics.items() if key.startswith("train/")})
        if insight:
            conflict = {key: value for key, value in metrics.items() if not key.startswith("train/")}
            self._metrics.write(step, self._clock(), conflict)

    def _after_step(self) -> None:
        self._progress.advance(self.step)
        if self.step % max(1, self.schedule.checkpoint_every // _PIECES) == 0:
            self.run.checkpoints.write_ahead(self.agent.replay)
        if self._due(self.schedule.log_every):
            self._log()
        if self._due(self.schedule.eval_every):
            now = {"step": self.step, "seconds": self._clock(), "policy": self.agent.policy_state()}
            self._to_evaluate.append(now)
        self._evaluate()
        if self._due(self.schedule.checkpoint_every):
            self._checkpoint()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.schedule.steps

    def _clock(self) -> float:
        self.seconds = time.monotonic() - self._started
        return self.seconds

    def _log(self) -> None:
        now = self._clock()
        step, updates, seconds = self._logged
        speed = {
            "speed/steps_per_s": (self.step - step) / max(now - seconds, 1e-9),
            "speed/updates_per_s": (self.updates - updates) / max(now - seconds, 1e-9),
        }
        averages = self._meter.averages()
        self._metrics.write(self.step, now, averages | speed)
        for warning in self.watchdog.check(self.step, averages):
            self._progress.console.print(f"warning: {warning}", soft_wrap=True, highlight=False, markup=False)
        self._logged = self.step, self.updates, now
        self._meter = _Meter(self.environments.tasks)

    def _evaluate(self) -> None:
        """Plays what is to be evaluated, and logs it: at once, or beside training up to the next step of this kind.

        Either way, the step at which something is logged does not depend on how fast anything is.
        """
        due = self._due(self.schedule.eval_every) or self._due(self.schedule.checkpoint_every)
        while self._to_evaluate:
            if self._evaluation is None:
                self._evaluation = self._play(self._to_evaluate[0]["policy"])
            fresh = self._to_evaluate[0]["step"] == self.step
            if self.schedule.eval_beside and self.step < self.schedule.steps and (fresh or not due):
                return
            self._end_evaluation(self._evaluation)

    def _play(self, policy: dict[str, Any]) -> BackgroundEvaluation:
        if self._evaluation_environments is None:
            self._evaluation_environments = self._make_evaluation_environments()
        episodes = self.schedule.eval_episodes
        return BackgroundEvaluation(self.agent.policy(policy), self._evaluation_environments, episodes)

    def _end_evaluation(self, playing: BackgroundEvaluation) -> None:
        """Waits for it and logs it; a signal gives it up, to be made up for when the run goes on."""
        while not playing.done:
            self._progress.show(f"evaluating {playing.finished}/{self.schedule.eval_episodes} episodes")
            playing.wait(seconds=0.1)
            if self._signal is not None:
                self._interrupt()
        evaluation = playing.result()
        evaluated, self._evaluation = self._to_evaluate.pop(0), None
        step: int = evaluated["step"]
        self.watchdog.evaluated(step, evaluation.success_rates)
        self._metrics.write(step, evaluated["seconds"], evaluation.metrics())
        self.evaluations.append(
            {"step": step, "success_mean": evaluation.success_mean, "success": evaluation.success_rates}
        )
        self._progress.report(f"success {evaluation.success_mean:.2f}")

    # -------------------------------------------------------------------------------------- stopping, resuming

    def _stop(self, signal_number: int) -> None:
        self._signal = signal_number

    def _interrupt(self) -> None:
        assert self._signal is not None
        self._checkpoint()
        raise interruption(self._signal, f" at step {self.step}")

    def _fail(self, error: RunError) -> NoReturn:
        self._checkpoint()
        raise RunError(
            f"{error} at step {self.step}; a checkpoint from before that update is in {self.run.checkpoints.directory}"
        ) from error

    def _checkpoint(self) -> None:
        self._clock()
        self._metrics.flush()
        self.run.checkpoints.save(self.step, self._state_dict(), self.agent.replay)

    def _state_dict(self) -> dict[str, Any]:
        return {
            "tasks": list(self.environments.tasks),
            "step": self.step,
            "updates": self.updates,
            "seconds": self.seconds,
            "evaluations": self.evaluations,
            "to_evaluate": self._to_evaluate,
            "counters": self.counters,
            "watchdog": self.watchdog.state_dict(),
            "metrics_entries": self._metrics.entries,
            "observations": torch.as_tensor(self._observations),
            "actions": None if self._actions is None else torch.as_tensor(self._actions),
            "meter": self._meter.state_dict(),
            "agent": self.agent.state_dict(),
            "environments": self.environments.state_dict(),
        }

    def _load_state_dict(self, state: dict[str, Any]) -> int:
        """Restores what `_state_dict` gave; returns how many entries of metrics there were."""
        self.step, self.updates, self.seconds = state["step"], state["updates"], state["seconds"]
        self.evaluations, self._to_evaluate = state["evaluations"], state["to_evaluate"]
        self.counters = dict(state["counters"])
        self.watchdog.load_state_dict(state["watchdog"])
        self._observations = state["observations"].numpy()
        self._actions = None if state["actions"] is None else state["actions"].numpy()
        self._meter.load_state_dict(state["meter"])
        self.agent.load_state_dict(state["agent"])
        self.environments.load_state_dict(state["environments"])
        return int(state["metrics_entries"])


class _Meter:
    """Averages over the steps between two log entries; sums stay on the device until they are asked for."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self._tasks = tasks
        self._sums: dict[str, Tensor] = {}
        self._updates = 0
        self._episodes = torch.zeros(3, len(tasks), dtype=torch.float64)  # how many, returns, successes

    def add_update(self, metrics: dict[str, Any]) -> None:
        for key, value in metrics.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else torch.as_tensor(value)
        self._updates += 1

    def add_episodes(self, step: Step) -> None:
        ended = step.terminated | step.truncated
        if ended.any():
            self._episodes += torch.as_tensor(
                np.stack([ended, ended * step.episode_return, ended & step.episode_success])
            )

    def averages(self) -> dict[str, float]:
        values = {key: float(total) / self._updates for key, total in self._sums.items()}
        count, returns, successes = self._episodes
        for i, task in enumerate(self._tasks):
            if count[i]:
                values[f"train/episode_return/{task}"] = float(returns[i] / count[i])
                values[f"train/episode_success/{task}"] = float(successes[i] / count[i])
        return values

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "updates": self._updates, "episodes": self._episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._updates, self._episodes = state["sums"], state["updates"], state["episodes"]
