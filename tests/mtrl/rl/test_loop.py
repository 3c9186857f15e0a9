"""The training loop on environments that count and an agent that takes notes: all that it does can be told by hand."""

import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mtrl
from mtrl.errors import InputError, Interrupted, RunError
from mtrl.rl import loop
from mtrl.rl.evaluation_queue import EvaluationThread
from mtrl.rl.loop import Schedule, Trainer
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.directory import RunDirectory, read_config
from mtrl.run.machine import conditions
from mtrl.run.metrics import read_metrics

TASKS = ["a", "b"]
LENGTHS = [4, 5]
"""Steps of each task's episodes: those of b never end when those of a do, but for every 20th step."""
EPISODES = 13
HARDER = 9
"""The seed of environments in which every task succeeds once less."""
SCHEDULE: dict[str, Any] = {
    "steps": 43,
    "warmup_steps": 10,
    "catch_up_updates": 5,
    "eval_every": 15,
    "checkpoint_every": 20,
    "log_every": 10,
    "insight_every": 6,
    "eval_episodes": EPISODES,
    "eval_seeds": {"training": 5, "held_out": HARDER},
    "eval_beside": False,
}
Calls = Callable[[str], None]


def updates_after(step: int) -> int:
    """None in the warm-up of ten steps; then five at once, and one a step."""
    return 0 if step <= 10 else 5 + step - 10


def quality(updates: int) -> int:
    """How many of 13 episodes the policy after so many updates succeeds in: it goes up and down."""
    return updates * 8 % 14


class Counting:
    """Task i shows ``[i, episode, clock]``; the reward is ``100 i + action``; episode and parity say what succeeds."""

    whole_episodes = False
    tells_success = np.ones(2, bool)

    def __init__(self, lengths: list[int], called: Calls = lambda what: None) -> None:
        self.tasks, self.lengths, self._called = list(TASKS), lengths, called
        self.episode, self.clock, self.total = np.zeros(2, int), np.zeros(2, int), np.zeros(2)
        self.reference_returns: dict[str, tuple[float, float]] = {}
        self.restarted: list[str] = []
        self.sent: list[Any] = []
        self.closed = False

    @property
    def current_observations(self) -> Any:
        return self._shown()

    def _shown(self) -> Any:
        return np.stack([np.arange(2), self.episode, self.clock], 1).astype(np.float32)

    def reset(self, *, seed: int | None = None) -> Any:
        self.episode, self.clock, self.total = np.zeros(2, int), np.zeros(2, int), np.zeros(2)
        return self._shown()

    def step_async(self, actions: Any, active: Any = None) -> None:
        self._called("step")
        self.sent.append(actions.copy())
        self._active = np.ones(2, bool) if active is None else active

    def _succeeds(self) -> Any:
        return self.episode % 2 == 1  # the second, the fourth ...

    def step_wait(self) -> Any:
        self._called("wait")
        self.clock += self._active
        rewards = 100.0 * np.arange(2) + self.sent[-1][:, 0]
        self.total += rewards
        reached, ended = self._shown(), self._active & (self.clock == self.lengths)
        returned, succeeded = self.total.copy(), self._succeeds()
        self.episode += ended
        self.clock[ended] = self.total[ended] = 0
        return SimpleNamespace(
            current_observations=self._shown(),
            next_observations=reached,
            rewards=rewards,
            terminated=ended & (np.arange(2) == 0),
            truncated=ended & (np.arange(2) == 1),
            episode_return=returned,
            episode_success=succeeded,
            unstable=np.array([False, bool(ended[1] and self.episode[1] == 3)]),
        )

    def state_dict(self) -> dict[str, Any]:
        return {key: torch.as_tensor(getattr(self, key).copy()) for key in ("episode", "clock", "total")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value.numpy().copy())

    def close(self) -> None:
        self.closed = True


class Examining(Counting):
    """Episodes of one step; so many of the first ones succeed as the action says, and two fewer of task b."""

    seed: int | None = None

    def reset(self, *, seed: int | None = None) -> Any:
        self.seed = seed
        return super().reset()

    def __init__(self, called: Calls = lambda what: None) -> None:
        super().__init__([1, 1], lambda what: called(f"evaluation's {what}"))

    def _succeeds(self) -> Any:
        return self.episode < self.sent[-1][:, 0] - [0, 2] - (self.seed == HARDER)


class Notes:
    """An agent that remembers what it was told: it acts by the number of its updates, at random by -1."""

    def __init__(self, called: Calls = lambda what: None) -> None:
        self._called = called
        self.updates = 0
        self.acted_on: list[Any] = []
        self.insights: list[int] = []  # the updates that were asked for it
        self.resets: list[int] = []  # the updates before each
        self.abandoned: list[str] = []
        self.stored: list[Any] = []
        self.replay = self
        self.added, self.capacity = 0, 1000

    def act(self, observations: Any) -> Any:
        self._called("act")
        self.acted_on.append(observations.copy())
        return np.full((2, 1), self.updates, np.float32)

    def act_randomly(self) -> Any:
        self._called("act randomly")
        return np.full((2, 1), -1, np.float32)

    def policy_state(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def policy(self, state: dict[str, Any] | None = None) -> Any:
        self._called("policy")
        known = quality((state or self.policy_state())["updates"])
        return lambda observations: np.full((2, 1), known, np.float32)

    def remember(self, observations: Any, actions: Any, step: Any) -> None:
        self._called("remember")
        reached = (step.next_observations, step.rewards[:, None], step.terminated[:, None])
        self.stored.append(np.concatenate([observations, actions, *reached], 1))
        self.added += 1

    def abandon(self, tasks: Any) -> None:
        self.abandoned += tasks

    def reset(self) -> None:
        self._called("reset")
        self.resets.append(self.updates)

    def update(self, *, insight: bool = False) -> dict[str, Any]:
        self._called("update")
        self.updates += 1
        if insight:
            self.insights.append(self.updates)
        conflict = {"conflict/mean": self.updates / 100, "conflict/cosines": [[1.0, self.updates / 100]]}
        return {"train/loss": torch.tensor(float(self.updates))} | (conflict if insight else {})

    def slice(self, start: int, stop: int) -> dict[str, Any]:
        return {"transitions": torch.as_tensor(np.stack(self.stored[start:stop]))}

    def restore(self, start: int, entries: dict[str, Any]) -> None:
        assert len(self.stored) == start
        self.stored += list(entries["transitions"].numpy())
        self.added = len(self.stored)

    def clear(self) -> None:
        self.stored, self.added = [], 0

    def state_dict(self) -> dict[str, Any]:
        self._called("state")
        return {"updates": self.updates, "added": self.added, "insights": self.insights, "resets": self.resets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.insights, self.resets = state["updates"], state["insights"], state["resets"]
        assert len(self.stored) in (0, state["added"])


class Setting:
    """A trainer in a directory, with all that it works on."""

    examining: "type[Examining]" = Examining

    def __init__(self, directory: Path, called: Calls = lambda what: None, **schedule: Any) -> None:
        self.schedule = Schedule(**(SCHEDULE | schedule))
        config = {"seed": 0, "steps": self.schedule.steps}
        self.directory, self.run = directory, RunDirectory(directory, config)
        self.agent, self.environments = Notes(called), Counting(LENGTHS, called)
        self.examinations: list[Examining] = []
        self.saved: list[int] = []
        save = self.run.checkpoints.save

        def noted(step: int, *rest: Any) -> None:
            self.saved.append(step)
            called("save")
            save(step, *rest)

        self.run.checkpoints.save = noted  # type: ignore[method-assign, assignment]
        self.trainer = Trainer(
            self.agent,
            self.environments,
            self._examination(called),
            self.run,
            self.schedule,
            show_progress=False,
        )

    def _examination(self, called: Calls) -> Callable[[], Examining]:
        def make() -> Examining:
            self.examinations.append(self.examining(called))
            return self.examinations[-1]

        return make

    def train(self, *, finish: bool = False) -> "Setting":
        try:
            self.trainer.train()
            if finish:
                self.run.finish(self.trainer.summary())
        finally:
            self.run.close()
        return self

    def logged(self, prefix: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The entries that have such a key."""
        return [e for e in read_metrics(self.directory / file) if any(key.startswith(prefix) for key in e)]

    def outcome(self) -> dict[str, Any]:
        """All that must not depend on interruptions."""
        summary = self.trainer.summary()
        entries = [
            {key: value for key, value in entry.items() if key != "time" and not key.startswith("speed/")}
            for file in ("metrics.jsonl", "matrices.jsonl")
            for entry in read_metrics(self.directory / file)
        ]
        return {
            "entries": entries,
            "stored": np.stack(self.agent.stored).tolist(),
            "insights": self.agent.insights,
            "resets": self.agent.resets,
            "summary": {key: value for key, value in summary.items() if key not in ("seconds", "counters")},
            "unstable": summary["counters"]["unstable_steps"],
            "policies": self.policies(),
        }

    def policies(self) -> dict[int, Any]:
        """What is on the disk of them, by step; no other file of a policy is left."""
        store = Checkpoints(self.directory / "checkpoints")
        named = store.newest_policies()
        kept = {entry["file"] for step in store.steps() for entry in store._manifest(step)["policies"]}
        assert {path.name for path in store.directory.glob("policy-*")} == kept
        return {step: store.policy_of(entry) for step, entry in named.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A run that nothing disturbed."""
    return Setting(tmp_path_factory.mktemp("loop") / "run").train()


@pytest.fixture(scope="module")
def whole_beside(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The same with evaluations beside training."""
    return Setting(tmp_path_factory.mktemp("loop") / "run", eval_beside=True).train()


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    """Waiting for the disk and for processes to start, hundreds of times, would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(loop, "EvaluationProcess", EvaluationThread)
        yield


# ------------------------------------------------------------------------------------------------- what it does


def test_each_transition_is_what_was_seen_done_and_reached(whole: Setting) -> None:
    assert len(whole.agent.stored) == 43
    for number, rows in enumerate(whole.agent.stored):
        action = -1 if number < 10 else updates_after(number)
        for task, (row, length) in enumerate(zip(rows.tolist(), LENGTHS, strict=True)):
            episode, clock = divmod(number, length)
            seen, reached = [task, episode, clock], [task, episode, clock + 1]  # not what is seen after the reset
            terminated = task == 0 and clock + 1 == length
            assert row == [*seen, action, *reached, 100 * task + action, terminated], (number, task)


def test_it_acts_on_what_is_seen_and_sends_what_it_chose(whole: Setting) -> None:
    assert len(whole.agent.acted_on) == 33
    for number, observations in enumerate(whole.agent.acted_on, 10):
        assert observations.tolist() == [[task, *divmod(number, length)] for task, length in enumerate(LENGTHS)]
    sent = [float(actions[0, 0]) for actions in whole.environments.sent]
    assert sent == [-1] * 10 + [updates_after(number) for number in range(10, 43)]


def test_updates_begin_after_the_warm_up_and_are_made_up_for_at_once(tmp_path: Path) -> None:
    calls: list[str] = []
    Setting(tmp_path / "run", calls.append, steps=12, eval_every=12, checkpoint_every=12).train()
    steps = [call for call in calls if call in ("act", "act randomly", "update", "step", "wait")]
    assert steps[:30] == ["act randomly", "step", "wait"] * 10
    # The action is chosen before, and the simulators run while the update is computed.
    assert steps[30:] == ["act", *["update"] * 5, "step", "update", "wait", "act", "step", "update", "wait"]


def test_without_a_warm_up_every_step_has_its_update(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "run", steps=6, warmup_steps=0, catch_up_updates=0).train()
    assert [float(actions[0, 0]) for actions in setting.environments.sent] == [0, 1, 2, 3, 4, 5]
    assert setting.agent.updates == 6


# ------------------------------------------------------------------------------------------------ what it logs


def test_losses_are_averaged_over_their_own_interval(whole: Setting) -> None:
    entries = whole.logged("train/loss")
    assert [entry["step"] for entry in entries] == [20, 30, 40, 43]  # in the warm-up there is none
    for entry, (first, last) in zip(entries, [(1, 15), (16, 25), (26, 35), (36, 38)], strict=True):
        assert entry["train/loss"] == (first + last) / 2


def test_returns_and_successes_are_of_the_episodes_that_ended_in_the_interval(whole: Setting) -> None:
    """Of task a 2, 3, 2, 3, 0 episodes end in the five intervals, of task b 2, 2, 2, 2, 0."""
    actions = [-1 if number < 10 else updates_after(number) for number in range(43)]
    entries = whole.logged("speed/")
    bounds = [0, 10, 20, 30, 40, 43]
    assert [entry["step"] for entry in entries] == bounds[1:]
    for entry, first, last in zip(entries, bounds, bounds[1:], strict=False):
        for task, (name, length) in enumerate(zip(TASKS, LENGTHS, strict=True)):
            ended = [end for end in range(length, 44, length) if first < end <= last]
            if not ended:
                assert f"train/episode_return/{name}" not in entry
                continue
            returns = [100 * task * length + sum(actions[end - length : end]) for end in ended]
            successes = [(end // length - 1) % 2 for end in ended]
            assert entry[f"train/episode_return/{name}"] == pytest.approx(np.mean(returns), rel=1e-12)
            assert entry[f"train/episode_success/{name}"] == np.mean(successes)
    assert entries[0]["train/episode_return/a"] == -4
    assert entries[0]["train/episode_return/b"] == 495


def test_speeds_are_of_their_interval(whole: Setting) -> None:
    entries = whole.logged("speed/")
    assert entries[0]["speed/updates_per_s"] == 0
    for entry, steps, updates in zip(entries[1:], [10, 10, 10, 3], [15, 10, 10, 3], strict=True):
        assert entry["speed/updates_per_s"] / entry["speed/steps_per_s"] == pytest.approx(updates / steps)
    times = [entry["time"] for entry in read_metrics(whole.directory / "metrics.jsonl")]
    assert all(0 <= time <= whole.trainer.session.seconds for time in times)


def test_conflict_is_measured_every_sixth_step_from_the_warm_up_on(whole: Setting) -> None:
    steps = [12, 18, 24, 30, 36, 42]
    assert whole.agent.insights == [updates_after(step) for step in steps]
    numbers, matrices = whole.logged("conflict/"), whole.logged("conflict/", "matrices.jsonl")
    for number, matrix, step in zip(numbers, matrices, steps, strict=True):
        value = updates_after(step) / 100
        assert number == {"step": step, "time": number["time"], "conflict/mean": value}
        assert matrix == {"step": step, "time": number["time"], "conflict/cosines": [[1.0, value]]}


def test_what_was_unstable_is_counted(whole: Setting) -> None:
    assert whole.trainer.summary()["counters"] == {
        "unstable_steps": 1,  # the end of b's third episode
        "resumes": 0,
        "checkpoints_passed_over": 0,
        "metrics_dropped": 0,
        "metrics_missing": 0,
        "warnings": dict.fromkeys(("policy_collapse", "value_explosion", "constant_reward", "not_evaluated"), 0)
        | {"policy_collapse": 1},  # actions of 1 and more are at the edge of their range
    }


def test_what_an_update_counts_is_in_the_summary(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "run")
    told = setting.agent.update
    setting.agent.update = lambda **how: told(**how) | {"count/actor_stationary": 1}  # type: ignore[method-assign]
    setting.train()
    assert setting.trainer.summary()["counters"]["actor_stationary"] == setting.trainer.updates > 0
    assert not any("count" in key for entry in setting.logged("") for key in entry)


def test_an_unusable_loss_ends_the_run_where_it_is(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "run")

    def fail(**how: Any) -> dict[str, Any]:
        raise InputError("famo needs positive losses, but task 'b' has -1")

    setting.agent.update = fail  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"^famo needs positive losses, but task 'b' has -1 at step \d+; a checkpoint"):
        setting.train()


def test_a_warning_is_said_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setting = Setting(tmp_path / "run")
    told = setting.agent.update
    setting.agent.update = lambda **how: told(**how) | {"train/target_value": torch.tensor(1e9)}  # type: ignore[method-assign]
    setting.train()
    assert capsys.readouterr().err.count("warning: the action values explode: their mean target is 1e+09") == 1
    assert setting.trainer.summary()["counters"]["warnings"]["value_explosion"] == 1


@pytest.mark.parametrize(("rate", "made"), [(0.5, 16), (0.25, 8), (0.3, 9), (1.0, 33), (2.0, 66), (1.5, 49)])
def test_so_many_updates_are_made_a_step(tmp_path: Path, rate: float, made: int) -> None:
    setting = Setting(tmp_path / "run", updates_per_step=rate, insight_every=0).train()
    assert setting.agent.updates == setting.trainer.summary()["updates"] == 5 + made  # in 33 steps, and 5 at once
    after = [setting.schedule.updates_at(step) for step in range(43)]
    assert after[:10] == [0] * 10
    assert max(after[10:]) - min(after[10:]) <= 1  # evenly


def test_an_insight_is_the_last_update_of_its_step(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "run", updates_per_step=2.0).train()
    assert setting.agent.insights == [5 + 2 * (step - 10) for step in (12, 18, 24, 30, 36, 42)]


def test_an_insight_of_a_step_without_updates_is_that_of_the_next_one_with(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "run", updates_per_step=0.5, warmup_steps=11).train()
    assert setting.agent.insights == [5 + count for count in (1, 4, 7, 10, 13, 16)]  # at steps 13, 19, 25 ... 43


def test_the_agent_begins_anew_and_catches_up(tmp_path: Path) -> None:
    resets: dict[str, Any] = {"resets": (20, 35), "reset_updates": 7}
    setting = Setting(tmp_path / "run", **resets).train()
    assert setting.agent.resets == [5 + 10, 5 + 10 + 7 + 15]
    assert setting.agent.updates == 5 + 33 + 2 * 7
    sent = [float(actions[0, 0]) for actions in setting.environments.sent]
    assert sent[19:22] == [14, 15, 15 + 7 + 1]  # acted before it caught up, as after the warm-up


# ------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("beside", [False, True])
def test_the_policy_of_each_step_is_evaluated(whole: Setting, whole_beside: Setting, beside: bool) -> None:
    setting = whole_beside if beside else whole
    entries = setting.logged("eval/")
    assert [entry["step"] for entry in entries] == [15, 30, 43]
    for entry in entries:
        known = quality(updates_after(entry["step"]))
        rates = known / EPISODES, max(0, known - 2) / EPISODES
        assert entry["eval/success/a"] == pytest.approx(rates[0])
        assert entry["eval/success/b"] == pytest.approx(rates[1])
        assert entry["eval/success_mean"] == pytest.approx(sum(rates) / 2)
        harder = [max(0, rate - 1 / EPISODES) for rate in rates]
        assert [entry[f"eval/held_out/success/{task}"] for task in TASKS] == pytest.approx(harder)
        assert entry["eval/held_out/success_mean"] == pytest.approx(sum(harder) / 2)
    assert len(setting.examinations) == 1  # made once
    assert setting.examinations[0].closed
    assert not setting.environments.closed  # whoever made them closes them


def test_beside_training_it_is_logged_at_the_next_step_of_its_kind(whole: Setting, whole_beside: Setting) -> None:
    """The policy of step 15 at the checkpoint of step 20, that of 30 at 40, the last one at once."""
    entries = read_metrics(whole_beside.directory / "metrics.jsonl")
    order = [(entry["step"], "eval/success_mean" in entry) for entry in entries]
    assert order == [
        *[(10, False), (12, False), (18, False), (20, False), (15, True)],
        *[(24, False), (30, False), (30, False), (36, False), (40, False), (30, True)],
        *[(42, False), (43, False), (43, True)],
    ]
    one, other = whole.outcome(), whole_beside.outcome()
    assert one["stored"] == other["stored"]
    assert one["summary"] == other["summary"]


def test_the_summary_tells_the_best_and_the_last_evaluation(whole: Setting) -> None:
    summary = whole.trainer.summary()
    known = {step: quality(updates_after(step)) for step in (15, 30, 43)}
    assert known == {15: 10, 30: 4, 43: 10}
    mean = (10 + 8) / 2 / EPISODES
    harder = {"success_mean": mean - 1 / EPISODES, "success": {"a": 9 / 13, "b": 7 / 13}}
    own = {"step": 43, "success_mean": mean, "success": {"a": 10 / 13, "b": 8 / 13}}
    assert summary["final"] == own | {"held_out": harder}
    assert summary["evaluated_on"] == ["training", "held_out"]
    assert summary["best"] == {"step": 15, "success_mean": mean, "of_evaluations": 3}  # the first of equals
    assert (summary["steps"], summary["transitions"], summary["updates"]) == (43, 86, 38)
    assert summary["tasks"] == TASKS
    assert summary["episodes_per_evaluation"] == EPISODES
    assert summary["seconds"] == round(whole.trainer.session.seconds, 1)


class Playing(Examining):
    """Episodes are played to their end, and nobody tells of success: the return is 50 + what the policy is worth."""

    whole_episodes = True
    tells_success = np.zeros(2, bool)


@pytest.mark.parametrize("metric", [None, "return", "success"])
def test_policies_are_chosen_by_returns_where_no_success_is_told(metric: str | None, tmp_path: Path) -> None:
    setting = Setting(tmp_path / "run", metric=metric)
    setting.examining = Playing
    summary = setting.train(finish=True).trainer.summary()
    assert [entry["eval/return_mean"] for entry in setting.logged("eval/return_mean")] == [60, 54, 60]
    assert ("success_mean" in summary["final"]) == (metric == "success")
    assert [entry["eval/length/a"] for entry in setting.logged("eval/length/a")] == [1, 1, 1]
    if metric == "success":
        assert "measure" not in summary
        assert summary["best"] == {"step": 15, "success_mean": 9 / 13, "of_evaluations": 3}
    else:
        assert summary["measure"] == "return"
        assert summary["best"] == {"step": 15, "return_mean": 60.0, "of_evaluations": 3}
        assert summary["final"]["returns"] == {"a": 10.0, "b": 110.0}


def test_episodes_that_began_anew_are_said_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ends(crash):
        Setting(tmp_path / "run", At("wait", 31, crash)).train()
    setting = Setting(tmp_path / "run")
    load = setting.environments.load_state_dict

    def restarting(state: dict[str, Any]) -> None:
        load(state)
        setting.environments.restarted = ["b"]
        setting.environments.episode[1], setting.environments.clock[1] = 77, 0

    setting.environments.load_state_dict = restarting  # type: ignore[method-assign]
    setting.train()
    told = " ".join(capsys.readouterr().err.split())
    assert "1 episode began anew, for these environments cannot tell their state (b)" in told
    assert setting.trainer.summary()["counters"]["restarted_episodes"] == 1
    assert setting.agent.abandoned == ["b"]
    assert setting.agent.stored[20][1, :3].tolist() == [1, 77, 0]  # what is acted on is what there is now
    assert setting.agent.stored[19][1, :3].tolist() != [1, 77, 0]


@pytest.mark.parametrize(
    ("part", "key"),
    [("", "measure"), ("", "updates_from"), ("", "conditions"), ("watchdog", "_short"), ("watchdog", "_began")],
)
def test_a_checkpoint_of_an_older_version_is_refused(
    part: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ends(crash):
        Setting(tmp_path / "run", At("wait", 31, crash)).train()
    load = Checkpoints.load

    versions: dict[str, str] = {}

    def lacking(self: Checkpoints, *rest: Any) -> Any:
        step, state = load(self, *rest) or (0, {})
        del (state[part] if part else state)[key]
        return step, state | versions

    monkeypatch.setattr(Checkpoints, "load", lacking)
    for written, told in ((mtrl.__version__, ""), ("0.1.7", f"; it is of mtrl 0.1.7, this is {mtrl.__version__}")):
        versions["version"] = written
        refused = rf"^the checkpoint in .* is not one of this run \(KeyError: '{key}'\){re.escape(told)}$"
        with pytest.raises(RunError, match=refused):
            Setting(tmp_path / "run").train()


def test_an_environment_that_fails_says_where_the_run_goes_on(tmp_path: Path) -> None:
    def fail() -> None:
        raise RunError("task 'a' at step 3 of its episode 8: ValueError: no")

    message = r"no \(vector step 31; the same command goes on from step 20\)"
    with pytest.raises(RunError, match=f"task 'a' at step 3 of its episode 8: ValueError: {message}"):
        Setting(tmp_path / "run", At("wait", 31, fail)).train()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [20]


def test_the_best_evaluation_need_be_neither_the_first_nor_the_last(whole: Setting, tmp_path: Path) -> None:
    summary = Setting(tmp_path / "run", eval_every=9).train().trainer.summary()
    known = {step: quality(updates_after(step)) for step in (9, 18, 27, 36, 43)}
    assert known == {9: 0, 18: 6, 27: 8, 36: 10, 43: 10}
    assert summary["best"]["step"] == 36
    assert summary["final"]["step"] == 43


# ------------------------------------------------------------------------------------------- stopping, resuming


def test_checkpoints_are_written_when_they_are_due(whole: Setting) -> None:
    assert whole.saved == [20, 40, 43]
    assert Checkpoints(whole.directory / "checkpoints").steps() == [40, 43]


class Crash(BaseException):
    """What no program can catch in life: the process is gone."""


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise Crash


class At:
    """Does something at the n-th call of a kind."""

    def __init__(self, what: str, number: int, do: Callable[[], None]) -> None:
        self.what, self.left, self.do = what, number, do

    def __call__(self, what: str) -> None:
        self.left -= what == self.what
        if self.left == 0 and what == self.what:
            self.do()


@contextmanager
def ends(how: Callable[[], None]) -> Iterator[None]:
    with pytest.raises(Crash if how is crash else Interrupted):
        yield


MOMENTS = [
    *[("act randomly", 1), ("act randomly", 7), ("act", 1), ("act", 12), ("act", 33)],
    *[("update", 1), ("update", 3), ("update", 5), ("update", 6), ("update", 20), ("update", 38)],
    *[("step", 5), ("step", 20), ("step", 21), ("step", 43), ("wait", 1), ("wait", 15), ("wait", 30)],
    *[("remember", 10), ("remember", 11), ("remember", 40), ("save", 1), ("save", 2), ("save", 3)],
    *[("state", 1), ("state", 2), ("policy", 1), ("policy", 2), ("policy", 3)],
]


@pytest.mark.parametrize("how", [ask, crash])
@pytest.mark.parametrize(
    ("what", "number"), [("reset", 1), ("reset", 2), ("update", 16), ("update", 19), ("update", 50), ("act", 11)]
)
def test_resets_and_their_updates_are_made_once(
    what: str, number: int, how: Callable[[], None], tmp_path: Path
) -> None:
    changed: dict[str, Any] = {"resets": (20, 35), "reset_updates": 7, "updates_per_step": 1.5}
    alone = Setting(tmp_path / "alone", **changed).train()
    with ends(how):
        Setting(tmp_path / "run", At(what, number, how), **changed).train()
    assert Setting(tmp_path / "run", **changed).train().outcome() == alone.outcome()


@pytest.mark.parametrize("how", [ask, crash])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("what", "number"), MOMENTS)
def test_a_run_that_ends_at_any_moment_goes_on_as_if_it_had_not(
    whole: Setting,
    whole_beside: Setting,
    tmp_path: Path,
    what: str,
    number: int,
    beside: bool,
    how: Callable[[], None],
) -> None:
    with ends(how):
        Setting(tmp_path / "run", At(what, number, how), eval_beside=beside).train()
    begun = bool(Checkpoints(tmp_path / "run" / "checkpoints").steps())
    resumed = Setting(tmp_path / "run", eval_beside=beside).train()
    assert resumed.outcome() == (whole_beside if beside else whole).outcome()
    counters = resumed.trainer.summary()["counters"]
    assert counters["resumes"] == begun
    assert counters["metrics_missing"] == 0


@pytest.mark.parametrize("how", [ask, crash])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("number", [1, 5, 14, 20, 39])
def test_an_evaluation_that_was_given_up_is_made_up_for(
    whole: Setting, whole_beside: Setting, tmp_path: Path, number: int, beside: bool, how: Callable[[], None]
) -> None:
    expected = (whole_beside if beside else whole).outcome()
    first = Setting(tmp_path / "run", At("evaluation's step", number, how), eval_beside=beside)
    with ends(how):
        first.train()
    assert first.examinations[0].closed
    assert Setting(tmp_path / "run", eval_beside=beside).train().outcome() == expected


def test_a_run_that_ends_again_and_again_goes_on(whole: Setting, tmp_path: Path) -> None:
    for _ in range(9):
        with ends(ask):
            Setting(tmp_path / "run", At("wait", 4, ask)).train()
    resumed = Setting(tmp_path / "run").train()
    outcome = resumed.outcome()
    assert outcome == whole.outcome()
    assert resumed.trainer.summary()["counters"]["resumes"] == 9
    assert math.isfinite(resumed.trainer.session.seconds)


def test_a_signal_says_where_the_run_stopped(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped by SIGTERM at step 21; the same command goes on"):
        Setting(tmp_path / "run", At("step", 21, ask)).train()
    loaded = Checkpoints(tmp_path / "run" / "checkpoints").load(Notes())
    assert loaded is not None
    assert loaded[0] == 21


@pytest.mark.parametrize(("number", "step", "updates"), [(3, 10, 2), (9, 14, 8)])
def test_a_failed_update_leaves_a_checkpoint_from_before_it(
    tmp_path: Path, number: int, step: int, updates: int
) -> None:
    def fail() -> None:
        raise RunError("the loss is not finite")

    with pytest.raises(RunError, match=rf"the loss is not finite at step {step}; a checkpoint from before that update"):
        Setting(tmp_path / "run", At("update", number, fail)).train()
    loaded = Checkpoints(tmp_path / "run" / "checkpoints").load(Notes())
    assert loaded is not None
    assert loaded[0] == step
    assert loaded[1]["updates"] == loaded[1]["agent"]["updates"] == updates
    assert loaded[1]["agent"]["added"] == step


# ------------------------------------------------------------------------------------------------- life after a run


def longer(directory: Path, first: int, called: Calls = lambda what: None, **schedule: Any) -> Setting:
    """A finished run of so many steps that goes on to the usual end."""
    if not directory.exists():
        Setting(directory, steps=first, **schedule).train(finish=True)
    return Setting(directory, called, **schedule)


def curves(directory: Path) -> dict[str, Any]:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("speed/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("first", [1, 9, 10, 11, 15, 17, 20, 29, 30, 37, 40, 42])
def test_a_finished_run_that_becomes_longer_is_as_if_it_had_always_been(
    whole: Setting, whole_beside: Setting, tmp_path: Path, first: int, beside: bool
) -> None:
    resumed = longer(tmp_path / "run", first, eval_beside=beside)
    assert (tmp_path / "run" / "summary.json").exists()  # until there is something to go on from
    resumed.train(finish=True)
    expected = whole_beside if beside else whole
    assert resumed.outcome() == expected.outcome()
    assert curves(tmp_path / "run") == curves(expected.directory)
    counters = resumed.trainer.summary()["counters"]
    assert (counters["resumes"], counters["metrics_dropped"], counters["metrics_missing"]) == (1, 0, 0)
    assert read_config(tmp_path / "run")["steps"] == 43
    with closing(RunDirectory(tmp_path / "run", {"seed": 0, "steps": 43})) as again:
        assert again.finished


@pytest.mark.parametrize("how", [ask, crash])
@pytest.mark.parametrize(
    ("what", "number"),
    [("update", 1), ("step", 1), ("step", 6), ("save", 1), ("save", 2), ("save", 3), ("state", 1), ("policy", 1)],
)
def test_a_longer_run_can_end_at_any_moment(
    whole: Setting, tmp_path: Path, what: str, number: int, how: Callable[[], None]
) -> None:
    with ends(how):
        longer(tmp_path / "run", 37, At(what, number, how)).train(finish=True)
    with closing(RunDirectory(tmp_path / "run", {"seed": 0, "steps": 43})) as again:
        assert not again.finished
    assert Setting(tmp_path / "run").train(finish=True).outcome() == whole.outcome()


def test_a_longer_run_that_is_killed_as_it_is_opened_is_either_of_both(whole: Setting, tmp_path: Path) -> None:
    """Without its summary, and with the old length still: both commands go on."""
    for name, steps in (("shorter", 37), ("longer", 43)):
        directory = tmp_path / name
        Setting(directory, steps=37).train(finish=True)
        (directory / "summary.json").unlink()
        found = Setting(directory, steps=steps).train(finish=True)
        expected = whole if steps == 43 else Setting(tmp_path / "alone", steps=37).train(finish=True)
        assert found.outcome() == expected.outcome()


def test_an_unfinished_run_can_become_longer_too(whole: Setting, tmp_path: Path) -> None:
    with ends(ask):
        Setting(tmp_path / "run", At("step", 33, ask), steps=37).train()
    assert Setting(tmp_path / "run").train().outcome() == whole.outcome()


def test_a_run_becomes_no_shorter_and_nothing_else(tmp_path: Path) -> None:
    Setting(tmp_path / "run", steps=20).train(finish=True)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").glob("*.[jy]*")}
    with pytest.raises(InputError, match="holds a run with steps=20, not 19: it can become longer, not shorter"):
        Setting(tmp_path / "run", steps=19)
    for config in ({"seed": 1, "steps": 30}, {"seed": 1, "steps": 10}):
        with pytest.raises(InputError, match="holds a run with seed=0, not 1"):
            RunDirectory(tmp_path / "run", config)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").glob("*.[jy]*")} == before


def test_a_finished_run_without_an_intact_checkpoint_stays_finished(tmp_path: Path) -> None:
    Setting(tmp_path / "run", steps=20).train(finish=True)
    states = list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    for state in states:
        state.write_bytes(b"")
    with pytest.raises(RunError, match="no intact checkpoint"):
        Setting(tmp_path / "run").train()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoint to go on from"):
        Setting(tmp_path / "run").train()
    assert (tmp_path / "run" / "summary.json").exists()
    assert read_config(tmp_path / "run")["steps"] == 20


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    setting = Setting(tmp_path / "run", checkpoint_every=10)
    setting.run.checkpoints.keep = keep
    setting.train()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [10, 20, 30, 40, 43][-keep:]
    states = {path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*.pt")}
    assert states == {f"step-{step}.pt" for step in [10, 20, 30, 40, 43][-keep:]}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("eval_every", [7, 9, 10, 15, 43])
def test_the_best_policy_is_kept_and_is_the_summarys(tmp_path: Path, beside: bool, eval_every: int) -> None:
    setting = Setting(tmp_path / "run", eval_every=eval_every, eval_beside=beside).train()
    best = setting.trainer.summary()["best"]["step"]  # the first of equals
    *_, step = found = setting.policies()
    assert step == best
    assert found[step] == {"updates": updates_after(best)}
    assert len(found) <= 2  # the other is what a longer run would have as its best
    assert not list((tmp_path / "run" / "checkpoints").glob("policy-*.pt.tmp"))


@pytest.mark.parametrize("beside", [False, True])
def test_what_looks_at_the_best_sees_each_as_it_was(tmp_path: Path, beside: bool) -> None:
    setting = Setting(tmp_path / "run", eval_every=9, eval_beside=beside)
    seen: list[int] = []

    def look(step: int, policy: Callable[[Any], Any]) -> None:
        expected = setting.agent.policy({"updates": updates_after(step)})
        observations = setting.environments.reset()
        assert np.array_equal(policy(observations), expected(observations))
        assert setting.trainer.evaluations[-1]["step"] == step
        seen.append(step)

    setting.trainer._on_best = look
    setting.train()
    assert seen == [9, 18, 27, 36]


def test_the_best_policy_goes_back_with_a_damaged_checkpoint(whole: Setting, tmp_path: Path) -> None:
    every: dict[str, Any] = {"eval_every": 5, "checkpoint_every": 10}
    Setting(tmp_path / "alone", **every).train()
    with ends(crash):
        Setting(tmp_path / "run", At("step", 35, crash), **every).train()
    newest = max((tmp_path / "run" / "checkpoints").glob("step-30*.pt"))
    newest.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged checkpoint passed over"):
        resumed = Setting(tmp_path / "run", **every).train()
    expected = Setting(tmp_path / "alone", **every)
    expected.run.close()
    assert resumed.policies() == expected.policies()


def test_a_dropped_buffer_is_filled_again_before_updates_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Setting(tmp_path / "run", steps=30).train(finish=True)
    first.run.checkpoints.drop_stream()
    files = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert not [name for name in files if name.startswith("replay")]
    with ends(ask):
        Setting(tmp_path / "run", At("step", 3, ask)).train()
    assert "the replay buffer of this run was dropped: up to step 40 it is filled again" in capsys.readouterr().err
    resumed = Setting(tmp_path / "run").train()
    assert "dropped" not in capsys.readouterr().err
    assert len(resumed.agent.stored) == 13
    actions = [float(row[0, 3]) for row in resumed.agent.stored]
    assert actions == [25] * 11 + [26, 27]  # 25 updates by step 30; the policy's own, not at random
    assert resumed.agent.updates == 25 + 3
    assert resumed.policies()


def test_a_buffer_that_was_dropped_before_the_warm_up_had_ended(tmp_path: Path) -> None:
    first = Setting(tmp_path / "run", steps=6).train(finish=True)
    first.run.checkpoints.drop_stream()
    resumed = Setting(tmp_path / "run", steps=20).train()
    assert resumed.agent.updates == 5 + 4  # the warm-up takes ten steps from step 6 on, then the updates at once


CONDITIONS = {"device": "cpu", "processor": "one", "threads": "2", "torch": "2.11.0"}


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ({}, None),
        ({"device": "cuda", "GPU": "another"}, "device cuda (was cpu)"),
        ({"processor": "two", "torch": "2.13.0"}, "processor two (was one), torch 2.13.0 (was 2.11.0)"),
        ({"threads": "4"}, "threads 4 (was 2)"),
    ],
)
def test_what_changed_around_a_run_is_said_once(
    whole: Setting,
    tmp_path: Path,
    then: dict[str, str],
    told: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here nothing draws random numbers, so that the run is the same."""

    def under(conditions: dict[str, str], called: Calls = lambda what: None) -> Setting:
        monkeypatch.setattr("mtrl.run.session.conditions", lambda device: conditions)
        return Setting(tmp_path / "run", called)

    after = CONDITIONS | then
    for around, step in ((CONDITIONS, 5), (CONDITIONS, 9), (after, 9)):
        with ends(ask):
            under(around, At("step", step, ask)).train()
    said = capsys.readouterr().err
    assert said.count(" (was ") == (0 if told is None else 1 + told.count("), "))
    assert told is None or f"from step 14 on this run has {told}: its random numbers" in said
    assert under(after).train().outcome() == whole.outcome()
    assert " (was " not in capsys.readouterr().err


def test_conditions_of_a_run_are_those_of_its_process() -> None:
    now = conditions(torch.device("cpu"))
    assert (now["device"], now["torch"], now["threads"]) == ("cpu", torch.__version__, str(torch.get_num_threads()))
    assert {"processor", "numpy", "mujoco", "metaworld", "gymnasium", "mtrl"} <= set(now)
    assert "GPU" not in now
    assert "python" not in now
