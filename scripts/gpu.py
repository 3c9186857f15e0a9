"""What a machine with a GPU is asked first: ``python scripts/gpu.py`` (or ``make gpu``).

Tests, which methods are captured, what updates cost, how many runs share the GPU; then MT10 is trained until it is told
to stop. All goes into one folder with a page to read, from the first step on. A step that fails is told, and the next
one is done. The same command goes on where it was stopped: what went well is not done again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from mtrl.errors import Interrupted, RunError
from mtrl.gradients.precision import has_bf16, has_tf32
from mtrl.report.page import write_tables
from mtrl.report.tables import Cell, Table
from mtrl.run.files import write_json
from mtrl.run.machine import cores, device_of, machine
from mtrl.run.signals import on_stop_request
from scripts.benchmark import COMMANDS
from scripts.benchmarks.timing import joined
from scripts.entry import run

ROOT = Path(__file__).parents[1]
TRAINING = "training"
LAST_LINES = 3
"""Of what a failed step said, shown on the page."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.3
"""Seconds between two looks whether a step is to stop."""


class Step(NamedTuple):
    """A command, by a name of its own."""

    name: str
    command: list[str]
    again: bool = False
    """Whether it is done however it went before."""


def steps_of(out: Path, device: torch.device, *, small: bool) -> list[Step]:
    """All of them; ``small`` ones take minutes without a GPU, and tell nothing of speed."""
    there = {"fp32": True, "tf32": has_tf32(device), "bf16": has_bf16(device)}
    precisions = ["--precision", *(name for name, has in there.items() if has)]
    sizes = ["--hidden-sizes", "8", "8", "--repeats", "1"] if small else []
    few = ["--benchmarks", "mt10", "--workers", "1", "--steps", "2", "--batch-size", "4"] if small else []
    few_tasks = ["--tasks", "2", "--batch-size", "4"] if small else ["--tasks", "10"]
    few_methods = ["--methods", "unitary", "pcgrad", "graddrop"] if small else []

    def benchmark(name: str, *options: str) -> Step:
        own = ["--device", str(device), "--out", str(out / f"{name}.json"), *sizes]
        return Step(name, [f"{ROOT}/scripts/benchmark.py", name, *own, *options])

    short = ["benchmark.horizon=10", "agent.hidden_sizes=[8,8]", "batch_size=4", "num_workers=1", "steps=12"]
    short += ["warmup_steps=4", "eval.every=6", "eval.episodes=1", "log.every=2", "insight.every=0"]
    several = ["-m", "pytest", "-q", "-n", str(cores()), "--dist", "loadfile", "--no-loadscope-reorder"]
    training = [
        f"{ROOT}/scripts/train.py",
        "benchmark=mt10",
        "precision=auto",
        f"device={device}",
        f"run_dir={out / TRAINING}",
    ]
    return [
        Step("tests", [*several, f"{ROOT}/tests" + ("/agents/test_values.py" if small else "")]),
        benchmark("capture", *precisions, *few_tasks, *few_methods),
        benchmark("throughput", *precisions, *few, *few_methods[:3]),
        benchmark("overhead", *precisions, *(["--cases", "2x3"] if small else []), *few_methods),
        benchmark("packing", *precisions, *few, *(["--runs", "1", "2"] if small else [])),
        Step(TRAINING, training + (short if small else ["agent=large"])),
        Step("report", [f"{ROOT}/scripts/compare.py", f"runs={out / TRAINING}", f"out={out / 'report'}"], again=True),
    ]


def do(step: Step, out: Path) -> tuple[dict[str, Any], int | None]:
    """Runs a step; what it says goes into a file, or, of training, to the terminal.

    Returns:
        What became of it, and the signal that asked this process to stop, if one did: the step was then asked, too.
    """
    start = time.time()
    with (out / f"{step.name}.txt").open("w") as said:
        code, asked = _run([sys.executable, *step.command], None if step.name == TRAINING else said)
    stopped = asked is not None or code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    state = "done" if code == 0 else "stopped" if stopped else f"failed ({code})"
    return {"state": state, "seconds": time.time() - start}, asked


def _run(command: Sequence[str], said: IO[str] | None) -> tuple[int, int | None]:
    """Runs a command in a process group of its own, to all of which it passes on that this process is asked to stop.

    Gives its exit code and the signal, if one asked. A second one ends both at once.
    """
    own = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}  # which `run` has set
    asked: list[int] = []
    stops = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    with on_stop_request(asked.append, stops):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=own, process_group=0
        )
        try:
            while process.poll() is None and not asked:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            return process.wait(), asked[0] if asked else None
        except BaseException:
            process.kill()
            raise


def write_page(out: Path, steps: Sequence[Step], states: dict[str, Any], about: dict[str, Any]) -> Path:
    """The page as far as there is something to say."""
    rows: list[list[Cell]] = []
    for step in steps:
        state = states.get(step.name, {"state": "not yet", "seconds": None})
        minutes = None if state["seconds"] is None else state["seconds"] / 60
        rows.append([step.name, state["state"], minutes, _reason(out, step, state["state"])])
    tables = [Table("steps", "Steps", ["step", "state", "minutes", "said"], rows)]
    for name in (step.name for step in steps if step.name in COMMANDS):
        command, file = COMMANDS[name][0], out / f"{name}.json"
        if file.exists():
            columns, lines = joined(command.lines(json.loads(file.read_text())["rows"]))
            body: list[list[Cell]] = [[*words, *numbers] for words, numbers in lines]
            tables.append(Table(name, f"{name}: {command.TITLE}", [*command.WORDS, *columns], body))
    facts = [
        f"{about['gpu'] or 'no GPU'}, {about['processor']}, {about['cores']} cores",
        ", ".join(" ".join(item) for item in about["versions"].items()),
    ]
    files = [out / "report" / "index.html", *(out / f"{step.name}.txt" for step in steps)]
    files = [file for file in files if file.exists() and file.stat().st_size]
    return write_tables("What this machine can do", facts, tables, files, out)


def _reason(out: Path, step: Step, state: str) -> str:
    """The last lines that a failed step said."""
    file = out / f"{step.name}.txt"
    if not state.startswith("failed") or not file.exists():
        return ""
    return " / ".join(file.read_text(errors="replace").strip().splitlines()[-LAST_LINES:])


def main(command_line: Sequence[str] | None = None) -> None:
    """Does all steps that are not done, and writes the page after each."""
    parser = argparse.ArgumentParser(prog="gpu.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="the folder, by default runs/gpu")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; or cpu, to try it out")
    parser.add_argument("--small", action="store_true", help="sizes that take minutes, to try it out")
    arguments = parser.parse_args(command_line)
    device, out = device_of(arguments.device), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    go_through(steps_of(out, device, small=arguments.small), out, machine(device))


def go_through(steps: Sequence[Step], out: Path, about: dict[str, Any]) -> None:
    """Does all steps that are not done, and writes the page after each.

    Raises:
        RunError: at the end, if a step failed.
        Interrupted: after a step that was stopped; but not after training that was stopped by hand.
    """
    record = out / "steps.json"
    states: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    for step in steps:
        if not step.again and states.get(step.name, {}).get("state") == "done":
            print(f"{step.name} is done already")
            continue
        print(f"{step.name} ...", flush=True)
        states[step.name], asked = do(step, out)
        write_json(record, states)
        page = write_page(out, steps, states, about)
        print(f"{step.name} {states[step.name]['state']}; {page}", flush=True)
        if asked is not None and (step.name, asked) != (TRAINING, signal.SIGINT):  # by hand, when it is enough
            raise Interrupted(asked)
    failed = [step.name for step in steps if states[step.name]["state"].startswith("failed")]
    if failed:
        raise RunError(f"{len(failed)} of {len(steps)} steps failed: {', '.join(failed)}; see {out / 'index.html'}")


if __name__ == "__main__":
    run(main)
