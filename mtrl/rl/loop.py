"""The training loop: act, send, update while the simulators step, receive."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from mtrl.errors import InputError, RunError
from mtrl.rl.evaluation import Evaluator
from mtrl.rl.evaluation_queue import EvaluationProcess, EvaluationQueue, EvaluationThread
from mtrl.rl.protocols import Agent, Bools, Environments, Floats, Policy, Step
from mtrl.rl.watchdog import Watchdog
from mtrl.run.directory import RunDirectory
from mtrl.run.record import MEASURES, prefix_of
from mtrl.run.session import Session
from mtrl.text import counted, number

_PIECES = 10  # of the replay buffer between two checkpoints, so that none of them is long to write


@dataclass(frozen=True)
class Schedule:
    """When what happens, in vector steps (one environment step in every task).

    Attributes:
        steps: length of the run.
        warmup_steps: random actions and no updates before this step.
        catch_up_updates: updates made at once when the warm-up ends.
        updates_per_step: afterwards; 0.5 is one every other step.
        resets: the steps at which the agent begins anew with what it has seen.
        reset_updates: updates made at once then.
        metric: what policies are judged by, one of `mtrl.run.record.MEASURES`; None is the first that there is.
        eval_every: steps between evaluations; the end of the run is always evaluated.
        checkpoint_every: steps between checkpoints.
        log_every: steps between entries of training metrics, which average over them.
        insight_every: steps between measurements of gradient conflict; 0 is never.
        eval_episodes: episodes per task, goals and evaluation.
        eval_seeds: of the environments that policies are evaluated in, by the goals that are played there (see
            `mtrl.run.record.GOALS`). The first are those that policies are chosen by.
        eval_beside: play an evaluation while training goes on, in a process of its own, not before it goes on; the
            curves are the same.
    """

    steps: int
    warmup_steps: int
    catch_up_updates: int
    eval_every: int
    checkpoint_every: int
    log_every: int
    insight_every: int
    eval_episodes: int
    eval_seeds: dict[str, int]
    eval_beside: bool
    updates_per_step: float = 1.0
    resets: tuple[int, ...] = ()
    reset_updates: int = 0
    metric: str | None = None

    def updates_at(self, step: int) -> int:
        """How many updates are made while the simulators take this step (the first is number 0)."""
        before = max(0, step - self.warmup_steps) * self.updates_per_step
        after = max(0, step + 1 - self.warmup_steps) * self.updates_per_step
        return math.floor(after) - math.floor(before)


OnBest = Callable[[int, Policy], None]
"""Gets the step of a policy that is the best so far, and the policy."""


class Trainer:
    """Trains an agent, and goes on where an interrupted run left off; ``on_best`` is called before it goes on.

    Under ``eval_beside``, ``make_evaluation_environments`` is pickled, and called in the process of evaluation.

    Attributes:
        session: the run: steps done, seconds, checkpoints, metrics.
        updates: gradient updates done.
        measure: what policies are judged by; None before the first evaluation.
        evaluations: each evaluation's ``step``, and its means, such as ``success_mean``, and values by task, such as
            ``success``, on the goals that policies are chosen by; on others too where there are any, under their name.
    """

    def __init__(
        self,
        agent: Agent,
        environments: Environments,
        make_evaluation_environments: Callable[[], Environments],
        run: RunDirectory,
        schedule: Schedule,
        *,
        device: torch.device | None = None,
        show_progress: bool = True,
        on_best: OnBest | None = None,
    ) -> None:
        self._on_best = on_best
        self.agent, self.environments, self.schedule = agent, environments, schedule
        self.session = Session(run, schedule.steps, stream=agent.replay, device=device, show_progress=show_progress)
        self.session.counters["unstable_steps"] = 0
        self.updates = 0
        self.measure: str | None = schedule.metric
        self.evaluations: list[dict[str, Any]] = []
        self.watchdog = Watchdog(environments.tasks, schedule.eval_every)
        evaluation = schedule.eval_episodes, schedule.eval_seeds, schedule.metric
        evaluator = Evaluator(make_evaluation_environments, *evaluation)
        place = EvaluationProcess(evaluator) if schedule.eval_beside else EvaluationThread(evaluator)
        self._to_evaluate = EvaluationQueue(agent, place)
        self._observations: Floats
        self._actions: Floats | None = None  # chosen, but not sent yet
        self._updates_from = schedule.warmup_steps
        self._owed = 0  # updates that are to be made at once
        self._insight = False  # whether the next update is to look at conflict: its step may have had none
        self._meter = _Meter()

    def train(self) -> None:
        """Runs to the end of the schedule.

        The last checkpoint is one of a run that goes on: what the end of the schedule alone asks for, an entry of
        metrics and an evaluation, comes after it. From there a longer run goes on as if it had always been longer.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after writing a checkpoint.
            RunError: if the run cannot go on. After a non-finite update, the last checkpoint is from before it.
        """
        with closing(self._to_evaluate), self.session.running(self) as resumed:
            if not resumed:
                self._observations = self.environments.reset()
                self.session.begin()
            elif self.session.run.checkpoints.stream_dropped:
                self._refill()
            self._say_what_restarted()
            self._logged = self.session.step, self.updates, self.session.seconds
            self.session.progress.show(self._status())
            self._evaluate()
            while self.session.step < self.schedule.steps:
                self._advance()
                self._after_step()
                self._stop_if_asked()
            self._end()

    def summary(self) -> dict[str, Any]:
        """What a finished run came to, plain data."""
        key = f"{self.measure}_mean"
        best = max(self.evaluations, key=lambda evaluation: float(evaluation[key]))
        judged = {} if self.measure == "success" else {"measure": self.measure}
        return judged | {
            "tasks": list(self.environments.tasks),
            "steps": self.session.step,
            "transitions": self.session.step * len(self.environments.tasks),
            "updates": self.updates,
            "seconds": round(self.session.seconds, 1),
            "episodes_per_evaluation": self.schedule.eval_episodes,
            "evaluated_on": list(self.schedule.eval_seeds),
            "final": self.evaluations[-1],
            "best": {"step": best["step"], key: best[key]} | {"of_evaluations": len(self.evaluations)},
            "counters": self.session.counters | {"warnings": self.watchdog.counts},
        }

    # ----------------------------------------------------------------------------------------------- one step

    def _advance(self) -> None:
        """One step in every task; the gradient update is computed while the simulators run."""
        warm = self.session.step >= self.schedule.warmup_steps
        if self._actions is None:
            self._actions = self.agent.act(self._observations) if warm else self.agent.act_randomly()
        learns = self.session.step >= self._updates_from
        self._catch_up()
        self.environments.step_async(self._actions)
        failure: RunError | InputError | None = None
        if learns:
            try:
                every = self.schedule.insight_every
                self._insight |= every > 0 and (self.session.step + 1) % every == 0
                for remaining in reversed(range(self.schedule.updates_at(self.session.step))):
                    self._update(insight=self._insight and not remaining)
                    self._insight &= remaining > 0
            except (RunError, InputError) as error:
                failure = error
        step = self._received()
        self.agent.remember(self._observations, self._actions, step)
        self._meter.add_episodes(self.environments.tasks, step)
        self.session.counters["unstable_steps"] += int(step.unstable.sum())
        if warm:
            self.watchdog.observe(self._actions, step.rewards, step.terminated | step.truncated)
        self._observations, self._actions = step.current_observations, None
        self.session.step += 1
        if failure is not None:
            self._fail(failure)
        if self.session.step == self._updates_from:
            self._owed = max(0, self.schedule.catch_up_updates - self.updates)
        if self.session.step in self.schedule.resets:
            self.agent.reset()
            self._owed = self.schedule.reset_updates

    def _received(self) -> Step:
        """The step under way; an error of the environments tells how far training was."""
        try:
            return self.environments.step_wait()
        except RunError as error:
            saved = self.session.run.checkpoints.steps()
            where = f"the same command goes on from step {saved[-1]:,}" if saved else "there is no checkpoint yet"
            error.args = (f"{error} (vector step {self.session.step + 1:,}; {where})",)
            raise

    def _catch_up(self) -> None:
        """The updates that the warm-up had none of, or a reset asks for; a signal comes between two of them."""
        while self._owed:
            self.session.progress.show(f"catching up: {self._owed} updates to go")
            try:
                self._update(insight=False)
            except (RunError, InputError) as error:
                self._fail(error)
            self._owed -= 1
            if not self._owed:
                self.session.progress.show("")
            self._stop_if_asked()

    def _refill(self) -> None:
        """The replay buffer was dropped: what it takes to learn has to be seen again first."""
        steps = max(1, self.schedule.warmup_steps)
        self._updates_from = max(self.schedule.warmup_steps, self.session.step + steps)
        self.session.say(
            f"the replay buffer of this run was dropped: up to step {self._updates_from:,} it is filled again, without "
            "updates; from here on this is not the run that it would have been"
        )

    def _say_what_restarted(self) -> None:
        if restarted := self.environments.restarted:
            self.session.say(
                f"{counted(len(restarted), 'episode')} began anew, for these environments cannot tell their state "
                f"({', '.join(restarted)}): from here on this is not the run that it would have been"
            )

    def _update(self, *, insight: bool) -> None:
        metrics = self.session.count(self.agent.update(insight=insight))
        self.updates += 1
        self._meter.add_update({key: value for key, value in metrics.items() if key.startswith("train/")})
        if insight:  # logged with the step that is under way
            conflict = {key: value for key, value in metrics.items() if not key.startswith("train/")}
            self.session.metrics.write(self.session.step + 1, self.session.clock(), conflict)

    def _after_step(self) -> None:
        step = self.session.step
        self.session.progress.advance(step)
        if step % max(1, self.schedule.checkpoint_every // _PIECES) == 0:
            self.session.run.checkpoints.write_ahead(self.agent.replay)
        if self._due(self.schedule.log_every):
            self._log()
        if self._due(self.schedule.eval_every):
            self._to_evaluate.add(step, self.session.clock())
        self._evaluate()
        if self._due(self.schedule.checkpoint_every) or step == self.schedule.steps:
            self.session.checkpoint()

    def _due(self, every: int) -> bool:
        return self.session.step % every == 0

    def _end(self) -> None:
        """What a run ends with, where it is not due anyway: nothing that a longer run goes on from."""
        if not self._due(self.schedule.log_every):
            self._log()
        if not self._due(self.schedule.eval_every):
            self._to_evaluate.add(self.session.step, self.session.clock())
        self._evaluate(ended=True)
        self._stop_if_asked(save=False)
        self.session.run.checkpoints.amend()

    def _log(self) -> None:
        now = self.session.step, self.updates, self.session.clock()
        steps, updates, seconds = (after - before for after, before in zip(now, self._logged, strict=True))
        self._logged = now
        seconds = max(seconds, 1e-9)
        speed = {"speed/steps_per_s": steps / seconds, "speed/updates_per_s": updates / seconds}
        averages = self._meter.averages(self.environments.tasks, self.environments.tells_success)
        self._meter = _Meter()
        self.session.metrics.write(self.session.step, self.session.seconds, averages | speed)
        for warning in self.watchdog.check(self.session.step, averages):
            self.session.say(f"warning: {warning}")

    def _evaluate(self, *, ended: bool = False) -> None:
        """Logs what is evaluated: at once, or beside training up to the next step of evaluation or checkpoint.

        Either way, the step at which something is logged does not depend on how fast anything is.
        """
        at_once = ended or not self.schedule.eval_beside
        due = self._due(self.schedule.eval_every) or self._due(self.schedule.checkpoint_every)
        before = self.session.step + 1 if at_once else self.session.step if due else 0
        for evaluated, outcome in self._to_evaluate.outcomes(before, partial(self._while_evaluating, save=not ended)):
            step, seconds = evaluated["step"], evaluated["seconds"]
            measured: dict[str, float] = {}
            for goals, found in outcome.items():
                measured |= found.metrics(prefix_of(goals))
            self.session.metrics.write(step, seconds, measured)
            first, *others = outcome
            if self.measure is None:
                self.measure = next(measure for measure in MEASURES if measure in outcome[first].measured)
            self.watchdog.evaluated(step, outcome[first].by_task(self.measure))
            mean = outcome[first].mean(self.measure)
            best = all(mean > earlier[f"{self.measure}_mean"] for earlier in self.evaluations)  # the first of equals
            if best:
                self.session.run.checkpoints.add_policy(step, mean, evaluated["policy"])
            also = {goals: outcome[goals].summary() for goals in others}
            self.evaluations.append({"step": step, **outcome[first].summary(), **also})
            self.session.progress.report(self._status())
            if best and self._on_best is not None:
                self.session.progress.show(f"looking at the policy of step {step}")
                self._on_best(step, self.agent.policy(evaluated["policy"]))

    def _status(self) -> str:
        if not self.evaluations:
            return f"{self.measure or 'policy'} not evaluated yet"
        mean = float(self.evaluations[-1][f"{self.measure}_mean"])
        return f"{self.measure} {mean:.2f}" if self.measure == "success" else f"{self.measure} {number(mean)}"

    def _while_evaluating(self, status: str, *, save: bool) -> None:
        self.session.progress.show(status)
        self._stop_if_asked(save=save)

    # -------------------------------------------------------------------------------------- stopping, resuming

    def _stop_if_asked(self, *, save: bool = True) -> None:
        self.session.stop_if_asked(f"at step {self.session.step}", save=save)

    def _fail(self, error: RunError | InputError) -> NoReturn:
        self.session.checkpoint()
        where = f"at step {self.session.step}; a checkpoint from before that update is in"
        kind = RunError if isinstance(error, RunError) else InputError
        raise kind(f"{error} {where} {self.session.run.checkpoints.directory}") from error

    def state_dict(self) -> dict[str, Any]:
        """Everything that training goes on from, except for the replay buffer's entries."""
        return {
            "tasks": list(self.environments.tasks),
            "updates": self.updates,
            "measure": self.measure,
            "updates_from": self._updates_from,
            "owed": self._owed,
            "insight": self._insight,
            "evaluations": self.evaluations,
            "to_evaluate": self._to_evaluate.waiting,
            "watchdog": self.watchdog.state_dict(),
            "observations": torch.as_tensor(self._observations),
            "actions": None if self._actions is None else torch.as_tensor(self._actions),
            "meter": vars(self._meter),
            "agent": self.agent.state_dict(),
            "environments": self.environments.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.updates, self.evaluations = state["updates"], state["evaluations"]
        self.measure, self._updates_from = state["measure"], state["updates_from"]
        self._owed, self._insight = state["owed"], state["insight"]
        own = [evaluation["step"] for evaluation in self.evaluations]
        checkpoints = self.session.run.checkpoints
        checkpoints.policies = [entry for entry in checkpoints.policies if entry["step"] in own]
        self._to_evaluate.waiting = state["to_evaluate"]
        self.watchdog.load_state_dict(state["watchdog"])
        self._observations = state["observations"].numpy()
        self._actions = None if state["actions"] is None else state["actions"].numpy()
        self._meter = _Meter(**state["meter"])
        self.agent.load_state_dict(state["agent"])
        self.environments.load_state_dict(state["environments"])
        if restarted := self.environments.restarted:
            self.agent.abandon(restarted)
            self._observations = self.environments.current_observations
            before = self.session.counters.get("restarted_episodes", 0)
            self.session.counters["restarted_episodes"] = before + len(restarted)


@dataclass
class _Meter:
    """Sums over the steps between two log entries; those of updates stay on the device until they are asked for."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    updates: int = 0
    ended: dict[str, list[float]] = field(default_factory=dict)  # episodes by task: how many, returns, successes

    def add_update(self, metrics: dict[str, Any]) -> None:
        values = {key: torch.as_tensor(value) for key, value in metrics.items()}
        if self.sums:  # one launch for all of them
            sums = [self.sums[key].to(value) for key, value in values.items()]
            values = dict(zip(values, torch._foreach_add(sums, list(values.values())), strict=True))
        self.sums, self.updates = values, self.updates + 1

    def add_episodes(self, tasks: Sequence[str], step: Step) -> None:
        for i in np.flatnonzero(step.terminated | step.truncated).tolist():
            count, returns, successes = self.ended.get(tasks[i], (0, 0.0, 0))
            sums = count + 1, returns + float(step.episode_return[i]), successes + int(step.episode_success[i])
            self.ended[tasks[i]] = list(sums)

    def averages(self, tasks: Sequence[str], tells_success: Bools) -> dict[str, float]:
        values = {key: float(total) / self.updates for key, total in self.sums.items()}
        for task, tells in zip(tasks, tells_success, strict=True):
            if task not in self.ended:
                continue
            count, returns, successes = self.ended[task]
            values[f"train/episode_return/{task}"] = returns / count
            if tells:
                values[f"train/episode_success/{task}"] = successes / count
        return values
