"""Sweeps on the real simulator, through every launcher that runs on one machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from mtrl.run.checkpoints import Checkpoints
from mtrl.run.metrics import read_metrics
from mtrl.sweep.launch import launch
from scripts import entry, train
from scripts.entry import CONFIGS
from tests.commands import run

ROOT = Path(__file__).parents[2]
TINY = [
    "benchmark=mt1",
    "task=reach-v3",
    "benchmark.horizon=10",
    "agent.hidden_sizes=[8,8]",
    "batch_size=4",
    "steps=90",
    "warmup_steps=10",
    "eval.every=90",
    "eval.episodes=1",
    "checkpoint.every=10",
    "log.every=10",
    "insight.every=10",
    "device=cpu",
    "threads=1",
    "num_workers=1",
]
FIRST, SECOND = "mt1-reach-v3-unitary-seed1", "mt1-reach-v3-unitary-seed2"


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "train.py"), "-m", *TINY, *arguments]


def sweep(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Ray would otherwise leave a token in the user's home.
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    return subprocess.run(
        command(*arguments),
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def comparable(directory: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    return [
        {key: value for key, value in entry.items() if key != "time" and not key.startswith("speed/")}
        for entry in read_metrics(directory / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a sweep ran one after another: two runs that finish, and one before them that fails."""
    directory = tmp_path_factory.mktemp("basic")
    result = sweep(directory, "seed=-1,1,2", "hydra.sweep.dir=runs/all")
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    reason = "seed=-1: failed: seed: expected an integer of at least 0 and below 2,147,483,648, got -1"
    assert f"[1/3] {reason}" in lines
    for number, name in ((2, FIRST), (3, SECOND)):
        story = f"[{number}/3] runs/all/{name}: seed={name[-1]}: success 0.000 in "
        assert any(line.startswith(story) for line in lines)
    assert lines[-2:] == ["1 of 3 runs did not finish:", f"  {reason}"]
    assert [path.name for path in directory.iterdir()] == ["runs"]
    assert {path.name for path in (directory / "runs" / "all").iterdir()} == {FIRST, SECOND}
    return directory / "runs" / "all"


@pytest.mark.parametrize("launcher", ["ray", "submitit_local"])
def test_every_launcher_trains_the_same_runs(basic: Path, tmp_path: Path, launcher: str) -> None:
    """Ray goes on with a run, and submitit finds it finished and begins another; joblib is below."""
    shutil.copytree(basic / FIRST, tmp_path / "runs" / FIRST)
    if launcher == "ray":  # as if killed after the last checkpoint but one
        (tmp_path / "runs" / FIRST / "summary.json").unlink()
        (tmp_path / "runs" / FIRST / "checkpoints" / "step-90.json").unlink()
    seeds = (1,) if launcher == "ray" else (1, 2)
    result = sweep(tmp_path, f"seed={','.join(map(str, seeds))}", f"hydra/launcher={launcher}")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""  # nothing but one line a run
    assert "Traceback" not in result.stderr
    for seed in seeds:
        name = f"mt1-reach-v3-unitary-seed{seed}"
        skipped = launcher == "submitit_local" and name == FIRST
        story = "is finished already" if skipped else "success 0.000 in "
        label = f"seed={seed}: " if len(seeds) > 1 else ""  # which is what a sweep varies
        assert f"runs/{name}: {label}{story}" in result.stderr
        assert comparable(tmp_path / "runs" / name) == comparable(basic / name)
        resumes = json.loads((tmp_path / "runs" / name / "summary.json").read_text())["counters"]["resumes"]
        assert resumes == (launcher == "ray")
    left = {path.name for path in (tmp_path / "runs").iterdir()}
    assert left - {".submitit"} == {f"mt1-reach-v3-unitary-seed{seed}" for seed in seeds}
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def wait_for_checkpoint(process: subprocess.Popen[str], directory: Path) -> None:
    deadline = time.monotonic() + 300
    while not Checkpoints(directory / "checkpoints").steps():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("launcher", "how", "to_all"), [("joblib", signal.SIGINT, True), ("basic", signal.SIGTERM, False)]
)
def test_a_stopped_sweep_goes_on(tmp_path: Path, launcher: str, how: signal.Signals, to_all: bool) -> None:
    """A terminal sends Ctrl-C to all processes of a command, a scheduler sends SIGTERM to one."""
    longer = ["steps=100000", "checkpoint.every=20", "eval.every=100000", "combiner=unitary", "seed=1,2"]
    process = subprocess.Popen(
        command(*longer, f"hydra/launcher={launcher}", "hydra.sweep.dir=x"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    wait_for_checkpoint(process, tmp_path / "x" / FIRST)
    (os.killpg if to_all else os.kill)(process.pid, how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + how, errors
    assert "Traceback" not in errors
    assert "stopped by SIGTERM at step" in errors
    assert f"stopped by {how.name}: the same command goes on from here" in errors.splitlines()[-1]
    assert {path.name for path in (tmp_path / "x").iterdir()} <= {FIRST, SECOND}
    loaded = Checkpoints(tmp_path / "x" / FIRST / "checkpoints").load()
    assert loaded is not None
    assert f"at step {loaded[0]};" in errors


def test_a_killed_member_fails_alone_and_goes_on(basic: Path, tmp_path: Path) -> None:
    """By joblib, with both at once."""
    process = subprocess.Popen(
        command("seed=1,2", "hydra/launcher=joblib"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_checkpoint(process, tmp_path / "runs" / FIRST)
    os.kill(int((tmp_path / "runs" / FIRST / ".lock").read_text()), signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert output == ""
    assert "Traceback" not in errors
    assert "seed=1: failed: killed by SIGKILL" in errors
    assert f"runs/{SECOND}: seed=2: success 0.000 in " in errors
    assert comparable(tmp_path / "runs" / SECOND) == comparable(basic / SECOND)
    again = run("train.py", *TINY, "seed=1", f"run_dir={tmp_path / 'runs' / FIRST}")  # a member's own command
    assert again.returncode == 0, again.stderr
    assert comparable(tmp_path / "runs" / FIRST) == comparable(basic / FIRST)
    assert json.loads((tmp_path / "runs" / FIRST / "summary.json").read_text())["counters"]["resumes"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["combiner=unitary,pcgrd"], "unknown combiner 'pcgrd': did you mean 'pcgrad'?"),
        (["stepz=1,2"], "unknown key 'stepz': did you mean 'steps'?"),
        (["combiner=[unitary,pcgrad]"], "combiner: expected one name, got [unitary,pcgrad]; a sweep takes several"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: a run's directory is set by run_dir, a sweep's by hydra.sweep.dir"),
        (["seed=1,2", "run_dir=x"], "run_dir is the directory of one run, and this is a sweep: set hydra.sweep.dir"),
    ],
)
def test_what_no_member_could_start_with_is_one_line(
    tmp_path: Path,
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTRL_SWEEP", str(tmp_path))
    monkeypatch.setenv("MTRL_SWEEP_PARENT", "")  # which the launcher sets for its workers
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *TINY, *arguments])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:
        entry.run(train.main, partial(launch, CONFIGS, "train", named=("seed", "combiner")))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {expected}")
    assert message.count("\n") == 1
