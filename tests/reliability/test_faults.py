"""Full disks, read-only directories, moved clocks, unstable simulators: each is made, not imitated."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.sac import MultiTaskSAC, SACConfig
from envs.metaworld import MetaWorld, make_vector
from envs.vector import TaskVector
from mtrl import combiners
from mtrl.rl.loop import Schedule, Trainer
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import MetricsWriter, read_metrics
from tests.commands import Started
from tests.reliability.runs import ENVIRONMENT

TASKS = ["reach-v3", "drawer-close-v3"]
SCRIPT = Path(__file__).parent / "writing.py"


def run(what: str, folder: Path, limit: int = 0) -> tuple[int | None, str]:
    """Does something until it fails, in a process of its own; its exit code and what it said."""
    return Started(str(SCRIPT), what, str(folder), str(limit), errors=folder.with_suffix(".err")).ended()


@pytest.mark.parametrize("what", ["checkpoints", "metrics", "curves"])
def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path: Path, what: str) -> None:
    """A small tmpfs where this process may mount one, elsewhere a limit on the size of files: both are the kernel's."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        code, errors = run(what, folder, 0 if mounted else 100_000)
        assert code == 1, errors
        assert errors.count("\n") == 1, errors
        assert ("No space left on device" if mounted else "File too large") in errors
        assert str(folder) in errors
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=10m", str(folder)], check=True)
        assert not list(folder.glob("*.tmp"))
        if what == "checkpoints":
            loaded = Checkpoints(folder).load()
            assert loaded is not None
            assert len(loaded[1]["values"]) == 1000 * loaded[0]
        else:
            last = read_metrics(folder / "metrics.jsonl")[-1]["step"]
            writer = MetricsWriter(folder, last)
            writer.write(last + 1, 0, {"train/loss": (last + 1) / 2})
            writer.close()
            expected = [(step, step / 2) for step in range(1, last + 2)]
            assert [
                (entry["step"], entry["train/loss"]) for entry in read_metrics(folder / "metrics.jsonl")
            ] == expected
            assert curve(folder) == expected
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def curve(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def test_a_read_only_directory_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    # The superuser writes where it likes, until it gives up that capability.
    prefix = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    said = []
    for what in ("open", "checkpoints"):
        command = [*prefix, sys.executable, str(SCRIPT), what, str(tmp_path / what), "0"]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        said.append((done.returncode, done.stderr))
    assert said[0] == (2, f"error: run_dir '{tmp_path / 'open'}' cannot be written: Permission denied\n")
    code, errors = said[1]
    assert code == 1
    assert "Permission denied" in errors
    assert errors.count("\n") == 1


def test_a_file_in_place_of_the_checkpoints_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    code, errors = run("checkpoints", tmp_path / "checkpoints")
    assert (code, errors.count("\n")) == (1, 1)
    assert "File exists" in errors


def test_a_clock_that_goes_back_neither_tears_nor_doubles_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads event files in the order of the times in their names."""
    for now, steps, kept in ((2e9, (10, 20, 30), 0), (1e9, (30, 40), 20), (1.5e9, (50,), 40)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        writer = MetricsWriter(tmp_path, kept)
        for step in steps:
            writer.write(step, step / 10, {"train/loss": step / 2})
        writer.close()
    assert curve(tmp_path) == [(step, step / 2) for step in (10, 20, 30, 40, 50)]


class Unstable(TaskVector):
    """Throws the simulation of the first task beyond all bounds before its tenth step."""

    steps = 0

    def step_async(self, actions: Any, active: Any = None) -> None:
        self.steps += 1
        if self.steps == 10:
            state = self.state_dict()
            state["tasks"][self.tasks[0]]["simulation"]["physics"][20:] = 1e12
            self.load_state_dict(state)
        super().step_async(actions, active)


def test_an_unstable_simulation_is_counted_and_its_transition_not_stored(tmp_path: Path) -> None:
    device = torch.device("cpu")
    critic, actor = (combiners.make("unitary", 2) for _ in range(2))
    config = SACConfig(hidden_sizes=[16])
    agent = MultiTaskSAC(TASKS, 39, 4, critic, actor, config, batch_size=8, capacity=20, seed=0, device=device)
    schedule = Schedule(20, 5, 5, 20, 20, 20, 0, 1, {"training": 1}, eval_beside=False)
    run_directory = RunDirectory(tmp_path / "run", {"seed": 0})
    with Unstable(MetaWorld(TASKS), seed=0, num_workers=1) as environments:
        trainer = Trainer(
            agent,
            environments,
            lambda: make_vector(TASKS, seed=1, horizon=5, num_workers=1),
            run_directory,
            schedule,
            show_progress=False,
        )
        trainer.train()
    run_directory.close()
    assert trainer.summary()["counters"]["unstable_steps"] == 1
    stored = agent.replay.fields.observations
    assert torch.equal(stored[0, 9], stored[0, 8])  # the last good one, once more
    assert not torch.equal(stored[1, 9], stored[1, 8])
    assert stored.abs().max() < 10
    assert np.isfinite([entry["train/critic_loss"] for entry in read_metrics(run_directory.path / "metrics.jsonl")[:1]])


def test_a_resumed_evaluation_is_logged_once(tmp_path: Path) -> None:
    """Entries that a killed run wrote after a checkpoint of the same step go too."""
    writer = MetricsWriter(tmp_path)
    writer.write(10, 1, {"train/loss": 1})
    entries = writer.entries
    writer.write(10, 1, {"eval/success_mean": 0.5})
    writer.close()
    writer = MetricsWriter(tmp_path, 10, entries)
    assert writer.dropped == 1
    writer.write(10, 1, {"eval/success_mean": 0.5})
    writer.close()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 10, "time": 1, "train/loss": 1.0},
        {"step": 10, "time": 1, "eval/success_mean": 0.5},
    ]
