"""``scripts/supervised.py`` as ``torchrun`` starts it: two real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT, run

COMMAND = ("device=cpu", "progress=false", "benchmark=custom")


def torchrun(*overrides: str, look: float = 0.1) -> "subprocess.CompletedProcess[str]":
    """The script in two processes, looked at every so many seconds: where one has died, the other is ended."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    start.append(f"--monitor-interval={look}")
    command = [*start, "scripts/supervised.py", *COMMAND, *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=300)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_the_model_of_one(tmp_path: Path) -> None:
    options = ("benchmark.file=mtrl/supervised/data/example.py", "combiner=famo", "epochs=2", "batch_size=64")
    done = torchrun(*options, f"run_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes, first on cpu; run directory") == 1
    assert done.stdout.count("Model selection") == 1
    alone = run("supervised.py", *COMMAND, *options, f"run_dir={tmp_path / 'one'}")
    assert alone.returncode == 0, alone.stderr
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2
    for ours, theirs in zip(logged(tmp_path / "two"), logged(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        numbers = {key for key in ours if key not in ("time", "speed/epoch_seconds")}
        assert {k: ours[k] for k in numbers} == pytest.approx({k: theirs[k] for k in numbers}, rel=1e-3, abs=1e-4)


DYING = """
import os, signal
from torch.utils.data import Dataset
from mtrl.supervised.data import example

class Dying(Dataset):
    def __init__(self, split):
        self.split = split
    def __len__(self):
        return len(self.split)
    def __getitem__(self, index):
        if os.environ["RANK"] == "1" and index > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.split[index]

def make_benchmark(tasks=("digit", "ink"), *, dropout=0.0):
    made = example.make_benchmark(tasks, dropout=dropout)
    return type(made)(**vars(made) | {"test": Dying(made.test)})
"""


def test_a_dead_process_ends_all_with_one_line(tmp_path: Path) -> None:
    """The second one dies when the test split is read, after an epoch that all have saved."""
    (tmp_path / "dying.py").write_text(DYING)
    options = (f"benchmark.file={tmp_path / 'dying.py'}", "epochs=1", "batch_size=64", "data.workers=0")
    done = torchrun(*options, f"run_dir={tmp_path / 'run'}", look=5)  # time to notice, whatever else is computed
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert told == [
        "error: one of the 2 processes has ended, or cannot be reached: this run goes on from its last checkpoint when "
        "it is started again"
    ]
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*.json"))) == 1
