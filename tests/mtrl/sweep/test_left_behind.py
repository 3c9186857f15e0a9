"""Whoever of a sweep dies, and however: none of its processes outlives it, and the same command works again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = """
import sys, time
from pathlib import Path
from mtrl.sweep.supervision import requested, supervise

supervise()
if requested(sys.argv):
    from mtrl.sweep.launch import launch
    launch(sys.argv[0].rpartition("/")[0], "config", ())
else:
    Path(sys.argv[0]).with_name("training").touch()
    time.sleep(0 if Path(sys.argv[0]).with_name("short").exists() else 600)
"""
CONFIG = """
seed: 0
run_dir: null
defaults: [_self_, override hydra/job_logging: none, override hydra/hydra_logging: none]
"""
MARK = "OF_THE_SWEEP_IN"


def processes(folder: Path) -> list[psutil.Process]:
    """All that a command there started, whatever became of their parents."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def start(folder: Path, launcher: str) -> subprocess.Popen[bytes]:
    (folder / "sweep.py").write_text(SCRIPT)
    (folder / "config.yaml").write_text(CONFIG)
    return subprocess.Popen(
        [sys.executable, str(folder / "sweep.py"), "-m", "seed=1,2,3", f"hydra/launcher={launcher}"],
        cwd=folder,
        env=os.environ | {MARK: str(folder)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def victim(command: subprocess.Popen[bytes], who: str) -> int:
    """The process id of the command, of its launcher, or of a launcher's worker that has a member."""
    if who == "command":
        return command.pid
    (launcher,) = psutil.Process(command.pid).children()
    if who == "launcher":
        return launcher.pid
    return next(worker.pid for worker in launcher.children() if worker.children())


@pytest.mark.parametrize(
    ("launcher", "who", "how"),
    [
        ("basic", "command", signal.SIGKILL),
        ("basic", "launcher", signal.SIGKILL),
        ("joblib", "command", signal.SIGHUP),
        ("joblib", "command", signal.SIGKILL),
        ("joblib", "launcher", signal.SIGKILL),
        ("submitit_local", "command", signal.SIGKILL),
    ],
)
def test_nothing_is_left_behind(tmp_path: Path, launcher: str, who: str, how: signal.Signals) -> None:
    command = start(tmp_path, launcher)
    while not (tmp_path / "training").exists():
        assert command.poll() is None
        time.sleep(0.05)
    assert len(processes(tmp_path)) >= 3  # the command, the launcher and a member
    os.kill(victim(command, who), how)
    command.wait(60)
    deadline = time.monotonic() + 60
    while left := processes(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    (tmp_path / "short").touch()
    assert start(tmp_path, "basic").wait(60) == 0
    assert not list((tmp_path / "runs").glob(".sweep*/[!0-9]*"))  # of members that failed, logs stay
