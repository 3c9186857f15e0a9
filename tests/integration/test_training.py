"""Real training runs through the command line: on the simulator, interrupted, resumed, evaluated.

Killed ones are in ``tests/reliability``.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from agents.networks import Actor
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.metrics import read_metrics
from scripts.build import make_agent, make_family
from scripts.configuration import load_config
from scripts.evaluate import stored_policy
from scripts.export import ExportConfig, export
from tests.commands import run

ROOT = Path(__file__).parents[2]
SMALL = [
    "benchmark=custom",
    "tasks=[reach-v3,drawer-close-v3]",
    "benchmark.horizon=20",
    "agent.hidden_sizes=[32,32]",
    "batch_size=16",
    "steps=90",
    "warmup_steps=30",
    "eval.every=40",
    "eval.episodes=3",
    "checkpoint.every=20",
    "log.every=20",
    "insight.every=20",
    "device=cpu",
    "seed=3",
    "threads=1",
]


def command(script: str, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / script), *overrides]


def comparable(directory: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    return [
        {key: value for key, value in entry.items() if key != "time" and not key.startswith("speed/")}
        for entry in read_metrics(directory / file)
    ]


def assert_same_metrics(one: Path, other: Path) -> None:
    """The same numbers and matrices, whatever the clock says."""
    for file in ("metrics.jsonl", "matrices.jsonl"):
        assert comparable(one, file) == comparable(other, file)


def parameters(directory: Path) -> dict[str, torch.Tensor]:
    loaded = Checkpoints(directory / "checkpoints").load()
    assert loaded is not None
    agent = loaded[1]["agent"]
    networks = {f"{net}.{k}": v for net in ("actor", "critic", "target_critic") for k, v in agent[net].items()}
    return networks | {"log_alpha": agent["log_alpha"], "generator": agent["generator"]}


def wait_for_checkpoint(process: subprocess.Popen[str], directory: Path) -> None:
    deadline = time.monotonic() + 300
    while not Checkpoints(directory / "checkpoints").steps():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    result = run("train.py", *SMALL, f"run_dir={directory}")
    assert result.returncode == 0, result.stderr
    assert "reach-v3" in result.stdout
    assert str(directory) in result.stdout
    return directory


def test_a_run_leaves_what_the_contract_names(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 90
    assert summary["updates"] == 60 + 30  # one per step after the warm-up, and as many at once as it had steps
    assert summary["tasks"] == ["reach-v3", "drawer-close-v3"]
    assert [e["step"] for e in comparable(finished) if "eval/success_mean" in e] == [40, 80, 90]
    last = comparable(finished)[-1]
    assert {"eval/success/reach-v3", "eval/success/drawer-close-v3"} < set(last)
    training = next(e for e in comparable(finished) if "train/critic_loss" in e)
    assert {"train/actor_loss", "train/temperature", "train/entropy"} < set(training)
    assert any("conflict/critic/cosine_mean" in e for e in comparable(finished))
    matrices = comparable(finished, "matrices.jsonl")
    assert [e["step"] for e in matrices] == [40, 60, 80]
    assert all(e.keys() == {"step", "conflict/critic/cosines", "conflict/actor/cosines"} for e in matrices)
    for line in (finished / "metrics.jsonl").read_text().splitlines():
        assert all(value is None or isinstance(value, int | float) for value in json.loads(line).values())
    assert Checkpoints(finished / "checkpoints").steps() == [80, 90]
    assert list(finished.glob("events.out.tfevents.*"))
    Image.open(finished / "learning_curve.png").verify()


def test_the_same_command_on_a_finished_run_does_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    result = run("train.py", *SMALL, f"run_dir={finished}")
    assert result.returncode == 0
    assert "is finished" in result.stderr
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}


def test_another_configuration_is_refused(finished: Path) -> None:
    result = run("train.py", *SMALL, "agent.discount=0.5", f"run_dir={finished}")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "agent.discount=0.99, not 0.5" in result.stderr


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    finished: Path, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    directory = tmp_path / "stopped"
    overrides = [*SMALL, f"run_dir={directory}", "num_workers=1"]  # nor does the number of workers matter
    process = subprocess.Popen(command("train.py", *overrides), stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(process, directory)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert not (directory / "summary.json").exists()
    result = run("train.py", *overrides)
    assert result.returncode == 0, result.stderr
    assert_same_metrics(directory, finished)
    whole, resumed = parameters(finished), parameters(directory)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_run_can_be_evaluated_again(finished: Path) -> None:
    result = run("evaluate.py", f"run={finished}", "episodes=3")
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((finished / "evaluation-90.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())
    assert evaluation["training"]["success"] == summary["final"]["success"]
    assert evaluation["held_out"] == summary["final"]["held_out"]


def test_a_policy_acts_without_simulator_and_run(finished: Path, tmp_path: Path) -> None:
    export(ExportConfig(run=str(finished), out=str(tmp_path / "policy.pt")))
    saved = torch.load(tmp_path / "policy.pt", weights_only=True)
    assert saved["step"] == 90
    actor = Actor(**saved["network"])
    actor.load_state_dict(saved["weights"])
    trained = load_config(finished)
    family = make_family(trained)
    agent = make_agent(trained, family.tasks, family.sizes(), torch.device("cpu"), capacity=1)
    observations = np.random.default_rng(0).normal(size=(len(saved["tasks"]), 39)).astype(np.float32)
    theirs = agent.policy(stored_policy(finished, "last")[1])(observations)
    assert (actor.policy()(observations) == theirs).all()


def test_a_non_finite_update_stops_the_run_at_a_checkpoint_from_before_it(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    overrides = [*SMALL, "combiner=fixed", "combiner.weights=[1,1e38]", "agent.rescale=false", f"run_dir={directory}"]
    result = run("train.py", *overrides)
    assert result.returncode == 1
    reason = "error: non-finite gradient in the critic objective under combiner 'fixed' at step 30; a checkpoint"
    assert result.stderr.splitlines()[-1].startswith(reason)
    loaded = Checkpoints(directory / "checkpoints").load()
    assert loaded is not None
    assert loaded[0] == 30
    assert loaded[1]["updates"] == 0
    assert all(torch.isfinite(value).all() for value in loaded[1]["agent"]["critic"].values())
