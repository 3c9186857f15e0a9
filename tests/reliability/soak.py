"""Trains for hours and watches that nothing grows and nothing is left behind: ``python tests/reliability/soak.py``.

A small agent trains on the real simulator while memory, open files and processes of the whole process tree are
sampled; after the warm-up, in which caches and the replay buffer fill, they must stay flat. Then runs are ended in
every way there is, and whatever they had started, mapped or opened must be gone. Last, checkpoints of a full replay
buffer of MT50 are timed.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure

from agents.sac import SACConfig
from envs.metaworld import benchmark_tasks, make_vector
from mtrl.errors import RunError
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.files import write_json
from mtrl.run.machine import machine
from scripts.benchmarks.updates import make_agent
from scripts.entry import run

ROOT = Path(__file__).parents[2]
TRAINING = [
    "benchmark=quickstart",
    "benchmark.horizon=50",
    "agent.hidden_sizes=[32,32]",
    "agent.buffer_size=600",
    "batch_size=16",
    "warmup_steps=200",
    "eval.every=1000",
    "eval.episodes=2",
    "checkpoint.every=1000",
    "log.every=100",
    "insight.every=200",
    "device=cpu",
    "num_workers=1",
]
LIMITS = {
    "rss_mib": 16.0,
    "shared_mib": 0.001,
    "descriptors": 1.0,
    "processes": 0.5,
    "threads": 0.5,
    "checkpoints_mib": 1.0,
}
"""By how much the straight line through each quantity may rise between warm-up and end."""
PAUSE = 1.0
"""Seconds that training may stand still at a checkpoint."""
WARMUP = 1 / 4
"""The part of the time that does not count."""

Sample = dict[str, float]


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants."""
    return [process, *process.children(recursive=True)]


def shared_memory(pid: int) -> dict[str, int]:
    """The bytes of each shared segment, named or not, that a process maps."""
    segments: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _, _, device, inode, *name = line.split(maxsplit=5)
        if name and name[0].startswith(("/dev/shm/", "/memfd:")):
            start, end = (int(address, 16) for address in span.split("-"))
            key = f"{name[0]} {device} {inode}"
            segments[key] = segments.get(key, 0) + end - start
    return segments


def sample(process: psutil.Process) -> Sample:
    """What a process and its descendants hold now.

    Returns:
        ``rss_mib`` (resident memory), ``pss_mib`` (the same, but each page divided by the processes of the machine that
        map it, which others' coming and going changes), ``shared_mib``, ``descriptors``, ``processes``, ``threads``.

    Raises:
        psutil.NoSuchProcess: if one of them has ended meanwhile.
    """
    members = tree(process)
    memory = [member.memory_full_info() for member in members]
    shared: dict[str, int] = {}
    for member in members:
        shared |= shared_memory(member.pid)
    return {
        "pss_mib": sum(part.pss for part in memory) / 2**20,
        "rss_mib": sum(part.rss for part in memory) / 2**20,
        "shared_mib": sum(shared.values()) / 2**20,
        "descriptors": sum(member.num_fds() for member in members),
        "processes": len(members),
        "threads": sum(member.num_threads() for member in members),
    }


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """How much the least-squares line through each quantity of `LIMITS` rises after the warm-up.

    Args:
        samples: at least three after the first quarter of the time, each with its ``seconds``.
    """
    last = samples[-1]["seconds"]
    counted = [entry for entry in samples if entry["seconds"] >= WARMUP * last]
    seconds = np.array([entry["seconds"] for entry in counted])
    return {
        key: float(np.polyfit(seconds, [entry[key] for entry in counted], 1)[0] * (seconds[-1] - seconds[0]))
        for key in LIMITS
    }


@contextmanager
def training(directory: Path, *overrides: str) -> Iterator[psutil.Popen]:
    """A training run of this tree in a process of its own, with its own folder for temporary files."""
    temporary = directory.with_name(f"{directory.name}-tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *TRAINING, f"run_dir={directory}", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with (temporary.with_suffix(".log")).open("ab") as log:
        process = psutil.Popen(
            command, cwd=temporary, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def watch(seconds: float, directory: Path, save: Callable[[list[Sample]], None]) -> list[Sample]:
    """Trains for so long; samples the process tree some 600 times, at most twice a second.

    Raises:
        RunError: if training ends before its time, or does not end within a minute of SIGTERM.
    """
    samples: list[Sample] = []
    with training(directory, "steps=1000000000") as process:
        while not Checkpoints(directory / "checkpoints").steps():
            _pause(process, 0.1)
        start = time.monotonic()
        while (now := time.monotonic() - start) < seconds:
            try:
                entry = sample(process) | {"seconds": now, "step": Checkpoints(directory / "checkpoints").steps()[-1]}
                entry["checkpoints_mib"] = sum(f.stat().st_size for f in directory.glob("checkpoints/*")) / 2**20
            except (psutil.NoSuchProcess, FileNotFoundError):  # a file was renamed in between
                _pause(process, 0.1)
                continue
            samples.append(entry)
            save(samples)
            _pause(process, max(seconds / 600, 0.5))
        process.terminate()
        if process.wait(60) != 128 + signal.SIGTERM:
            raise RunError(f"SIGTERM ended training with {process.returncode}")
    return samples


def _pause(process: psutil.Popen, seconds: float) -> None:
    time.sleep(seconds)
    if process.poll() is not None:
        raise RunError(f"training ended with {process.returncode} before its time; see the log beside the run")


def left_behind(how: signal.Signals | None, directory: Path) -> list[str]:
    """Ends a run, by a signal in the middle of training or, for None, by letting it finish; names what it left.

    After SIGKILL, the only one that a run cannot tidy up after, it must do so when it goes on, to its end. PyTorch's
    own cache folder, one per user and machine, does not count.

    Returns:
        A line for each process, shared segment and temporary file that outlived the run.
    """
    left = _outlived(how, directory)
    if how is signal.SIGKILL:
        left += _outlived(None, directory)
    temporary = directory.with_name(f"{directory.name}-tmp")
    left += [str(file) for file in temporary.rglob("*") if not file.name.startswith("torchinductor_")]
    left += [str(file) for file in directory.rglob("*.tmp")]
    return left


def _outlived(how: signal.Signals | None, directory: Path) -> list[str]:
    """Begins a run or goes on with it, ends it, and names the processes and shared segments that are still there."""
    processes: dict[int, psutil.Process] = {}
    segments: set[str] = set()
    with training(directory, "steps=200", "warmup_steps=50", "eval.every=50", "checkpoint.every=50") as process:
        while process.poll() is None:
            try:
                for member in tree(process):
                    processes[member.pid] = member
                    segments |= shared_memory(member.pid).keys()
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
            if how is not None and Checkpoints(directory / "checkpoints").steps():
                process.send_signal(how)
                process.wait(60)
            time.sleep(0.02)
    _, alive = psutil.wait_procs(list(processes.values()), timeout=10)
    left = [f"process {member.pid}" for member in alive]
    names = {segment.rsplit(" ", 2)[0] for segment in segments}
    left += [name for name in names if name.startswith("/dev/shm/") and Path(name).exists()]
    expected = {None: 0, signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[how]
    if process.returncode != expected:
        left.append(f"exit code {process.returncode}, expected {expected}")
    return left


def checkpoint_pause(directory: Path, checkpoints: int = 9) -> dict[str, Any]:
    """How long MT50's training, with a full replay buffer of four million transitions, stands still at a checkpoint.

    The buffer's content is made up, the rest real. Steps take no time here but one second a thousand, which leaves
    the background less time to write than any training would.

    Returns:
        ``seconds`` and ``written_mib`` of each checkpoint (10,000 steps each), the ``seconds_ahead`` that handing
        over to the background took in all, and the ``buffer_mib`` that all of them write only once.
    """
    tasks = benchmark_tasks("mt50")
    agent = make_agent(len(tasks), 26, SACConfig().hidden_sizes, torch.device("cpu"), capacity=80_000)
    for field in agent.replay.fields:
        field.copy_(torch.randn(field.shape) > 0 if field.dtype == torch.bool else torch.randn(field.shape))
    store = Checkpoints(directory)
    seconds, written, ahead = [], [], 0.0
    known: set[str] = set()
    with make_vector(tasks, seed=0) as environments:
        environments.reset()
        for number in range(1, checkpoints + 1):
            for _ in range(10):
                agent.replay.added += 1000
                begun = time.monotonic()
                store.write_ahead(agent.replay)
                ahead += time.monotonic() - begun
                time.sleep(1)
            begun = time.monotonic()
            state = {"agent": agent.state_dict(), "environments": environments.state_dict()}
            store.save(10_000 * number, state, agent.replay)
            seconds.append(time.monotonic() - begun)
            files = {file.name: file.stat().st_size for file in directory.iterdir()}
            written.append(sum(size for name, size in files.items() if name not in known) / 2**20)
            known |= files.keys()
    return {
        "seconds": seconds,
        "written_mib": written,
        "seconds_ahead": ahead,
        "buffer_mib": sum(field.nbytes for field in agent.replay.fields) / 2**20,
    }


def picture(samples: Sequence[Sample], file: Path) -> None:
    """Draws each quantity of `LIMITS` against hours into a PNG."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    hours = [entry["seconds"] / 3600 for entry in samples]
    panels = figure.subplots(len(LIMITS), 1, sharex=True)
    for axes, key in zip(panels, LIMITS, strict=True):
        axes.plot(hours, [entry[key] for entry in samples], lw=1)
        axes.axvspan(0, WARMUP * hours[-1], color="0.9")
        axes.set(ylabel=key.replace("_mib", " (MiB)"))
        axes.set_ylim(0, 1.15 * max(entry[key] for entry in samples) or 1)
        axes.grid(alpha=0.3)
    panels[-1].set(xlabel=f"hours of training ({samples[-1]['step']:,} vector steps); warm-up shaded")
    figure.savefig(file, dpi=110)


def main(command_line: Sequence[str] | None = None) -> None:
    """Watches, then checks what is left behind; ends with an error where a limit is broken."""
    parser = argparse.ArgumentParser(prog="soak.py", description=__doc__)
    parser.add_argument("--seconds", type=float, default=7200, help="of training that is watched; by default two hours")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="where soak.json and soak.png go")
    arguments = parser.parse_args(command_line)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"seconds": arguments.seconds, "limits": LIMITS, "machine": machine()}

    def save(samples: list[Sample]) -> None:
        result["samples"] = samples
        if len(samples) >= 8:
            result["growth"] = growth(samples)
        write_json(out / "soak.json", result)

    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        samples = watch(arguments.seconds, Path(scratch) / "long", save)
        picture(samples, out / "soak.png")
        result["left_behind"] = {}
        for how in (None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            name = how.name if how else "success"
            result["left_behind"][name] = left_behind(how, Path(scratch) / name)
            write_json(out / "soak.json", result)
        result["checkpoint_pause"] = checkpoint_pause(out / "checkpoints")  # on the disk that runs are on
        shutil.rmtree(out / "checkpoints")
        write_json(out / "soak.json", result)
    broken = [f"{key} grew by {value:.2f}" for key, value in growth(samples).items() if value > LIMITS[key]]
    broken += [f"after {name}: {', '.join(left)}" for name, left in result["left_behind"].items() if left]
    if (pause := max(result["checkpoint_pause"]["seconds"])) > PAUSE:
        broken.append(f"a checkpoint took {pause:.2f} s")
    if broken:
        raise RunError(f"{'; '.join(broken)}; see {out / 'soak.json'}")
    print(f"nothing grew in {arguments.seconds / 3600:.2f} hours and nothing was left behind: {out / 'soak.json'}")


if __name__ == "__main__":
    run(main)
