"""The training loop: act, send, update while the simulators step, receive."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl.errors import Interrupted, RunError
from mtrl.experiment.metrics import MetricsWriter
from mtrl.experiment.progress import TrainingProgress
from mtrl.experiment.run_directory import RunDirectory
from mtrl.experiment.signals import on_stop_request
from mtrl.rl.evaluation import evaluate
from mtrl.rl.protocols import Agent, Environments, Floats, Step


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
    """

    steps: int
    warmup_steps: int
    catch_up_updates: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    insight_every: int
    eval_episodes: int


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
        self.unstable_steps = 0
        self._make_evaluation_environments = make_evaluation_environments
        self._evaluation_environments: Environments | None = None
        self._evaluation_pending = False
        self._observations: Floats
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
        if loaded is None:
            self._observations = self.environments.reset()
        else:
            self._load_state_dict(loaded[1])
            self.run.checkpoints.discard_after(self.step)
        self._metrics = MetricsWriter(self.run.path, self.step)
        self._progress = TrainingProgress(self.schedule.steps, self.step, enabled=self._show_progress)
        self._started = time.monotonic() - self.seconds
        self._logged = self.step, self.updates, self.seconds
        try:
            with on_stop_request(self._stop), self._progress:
                if self.evaluations:
                    self._progress.show(f"success {self.evaluations[-1]['success_mean']:.2f}")
                if self._evaluation_pending:
                    self._evaluate()
                while self.step < self.schedule.steps:
                    self._advance()
                    self._after_step()
                    if self._signal is not None:
                        self._interrupt()
        finally:
            self._metrics.close()
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
            "counters": {"unstable_steps": self.unstable_steps},
        }

    # ----------------------------------------------------------------------------------------------- one step

    def _advance(self) -> None:
        """One step in every task; the gradient update is computed while the simulators run."""
        warm = self.step >= self.schedule.warmup_steps
        actions = self.agent.act(self._observations) if warm else self.agent.act_randomly()
        self.environments.step_async(actions)
        failure = None
        if warm:
            try:
                self._update()
            except RunError as error:
                failure = error
        step = self.environments.step_wait()
        self.agent.remember(self._observations, actions, step)
        self._meter.add_episodes(step)
        self.unstable_steps += int(step.unstable.sum())
        self._observations = step.observations
        self.step += 1
        if failure is not None:
            self._checkpoint()
            raise RunError(
                f"{failure} at step {self.step}; "
                f"a checkpoint from before that update is in {self.run.checkpoints.directory}"
            ) from failure

    def _update(self) -> None:
        if self.step == self.schedule.warmup_steps:
            for done in range(self.schedule.catch_up_updates):
                self._progress.show(f"catching up: {done}/{self.schedule.catch_up_updates} updates")
                self._meter.add_update(self.agent.update())
                self.updates += 1
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
        if self._due(self.schedule.log_every):
            self._log()
        if self._due(self.schedule.eval_every):
            self._evaluation_pending = True
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
        self._metrics.write(self.step, now, self._meter.averages() | speed)
        self._logged = self.step, self.updates, now
        self._meter = _Meter(self.environments.tasks)

    def _evaluate(self) -> None:
        """Evaluates the current policy; a signal gives it up, to be made up for when the run goes on."""
        if self._evaluation_environments is None:
            self._evaluation_environments = self._make_evaluation_environments()

        def on_step(finished: Sequence[int]) -> None:
            self._progress.show(f"evaluating {min(finished)}/{self.schedule.eval_episodes} episodes")
            if self._signal is not None:
                self._interrupt()

        evaluation = evaluate(
            self.agent.act_deterministically,
            self._evaluation_environments,
            self.schedule.eval_episodes,
            on_step,
        )
        self._evaluation_pending = False
        self._metrics.write(self.step, self._clock(), evaluation.metrics())
        self.evaluations.append(
            {"step": self.step, "success_mean": evaluation.success_mean, "success": evaluation.success_rates}
        )
        self._progress.report(f"success {evaluation.success_mean:.2f}")

    # -------------------------------------------------------------------------------------- stopping, resuming

    def _stop(self, signal_number: int) -> None:
        self._signal = signal_number

    def _interrupt(self) -> None:
        assert self._signal is not None
        self._checkpoint()
        name = signal.Signals(self._signal).name
        raise Interrupted(self._signal, f"stopped by {name} at step {self.step}; the same command goes on from there")

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
            "evaluation_pending": self._evaluation_pending,
            "unstable_steps": self.unstable_steps,
            "observations": torch.as_tensor(self._observations),
            "meter": self._meter.state_dict(),
            "agent": self.agent.state_dict(),
            "environments": self.environments.state_dict(),
        }

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.updates, self.seconds = state["step"], state["updates"], state["seconds"]
        self.evaluations, self._evaluation_pending = state["evaluations"], state["evaluation_pending"]
        self.unstable_steps = state["unstable_steps"]
        self._observations = state["observations"].numpy()
        self._meter.load_state_dict(state["meter"])
        self.agent.load_state_dict(state["agent"])
        self.environments.load_state_dict(state["environments"])


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
