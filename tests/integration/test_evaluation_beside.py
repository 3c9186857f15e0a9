"""Evaluation beside training changes nothing, whenever it ends and whether the run is killed meanwhile."""

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.commands import Started, run
from tests.integration.test_training import SMALL, assert_same_metrics, comparable, parameters


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "beside"
    result = run("train.py", *SMALL, f"run_dir={directory}", "eval.beside=true")
    assert result.returncode == 0, result.stderr
    return directory


def evaluations(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if "eval/success_mean" in entry]


def training(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for entry in entries if "eval/success_mean" not in entry]


def test_it_is_logged_at_the_next_checkpoint_and_the_last_one_at_the_end(beside: Path) -> None:
    steps = [(entry["step"], "eval/success_mean" in entry) for entry in comparable(beside)]
    assert steps.index((40, True)) > steps.index((60, False))
    assert [step for step, evaluated in steps if evaluated] == [40, 80, 90]


@pytest.mark.parametrize("override", ["eval.beside=false", "eval.every=1000"])
def test_training_is_the_same_bit_for_bit(beside: Path, tmp_path: Path, override: str) -> None:
    result = run("train.py", *SMALL, f"run_dir={tmp_path / 'other'}", override)
    assert result.returncode == 0, result.stderr
    ours, theirs = comparable(beside), comparable(tmp_path / "other")
    assert training(ours) == training(theirs)
    assert evaluations(theirs) == (evaluations(ours) if "beside" in override else evaluations(ours)[-1:])
    for name, tensor in parameters(beside).items():
        assert torch.equal(tensor, parameters(tmp_path / "other")[name]), name


def evaluation_of(training: Started) -> tuple[psutil.Process, psutil.Process] | None:
    """The process of evaluation of a training run, and a worker of its own, once there is one."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(training.pid).children():
            if "multiprocessing.spawn" in " ".join(child.cmdline()):
                for worker in child.children():
                    if "envs.worker" in " ".join(worker.cmdline()):
                        return child, worker
    return None


def test_a_killed_run_makes_up_for_the_evaluation_that_was_under_way(beside: Path, tmp_path: Path) -> None:
    directory = tmp_path / "killed"
    full = (*SMALL, f"run_dir={directory}", "eval.beside=true")
    process = Started("train.py", *full, errors=tmp_path / "errors")
    while (found := evaluation_of(process)) is None:
        assert process.is_alive()
        time.sleep(0.005)
    evaluation, worker = found
    started = psutil.Process(process.pid).children(recursive=True)
    worker.suspend()  # so that evaluation takes as long as it may
    process.kill()
    evaluation.wait(60)
    with suppress(psutil.NoSuchProcess):
        worker.resume()
    code, errors = process.ended()
    assert "Process evaluation" not in errors  # as a traceback of it begins
    assert code == -signal.SIGKILL
    assert not psutil.wait_procs(started, timeout=60)[1]
    assert run("train.py", *full).returncode == 0
    assert_same_metrics(directory, beside)
