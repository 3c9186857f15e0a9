"""What things cost on this machine: ``python scripts/benchmark.py overhead``.

Each command prints a table, and writes it as Markdown beside one JSON file with every single measurement.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# As in training, so that what is measured is what training does.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from rich.console import Console

from mtrl.gradients.precision import PRECISIONS
from mtrl.run.files import write_json, write_text
from mtrl.run.machine import device_of, keep_freed_memory, keep_to_cores, machine
from scripts.benchmarks import capture, envs, options, overhead, packing, solvers, supervised, throughput
from scripts.benchmarks.timing import markdown_of, table_of
from scripts.entry import run
from scripts.methods import load_plugins


def positive(text: str) -> int:
    """An integer of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def gibibytes(text: str) -> float:
    """A number above 0."""
    if not float(text) > 0:
        raise ValueError
    return float(text)


def case(text: str) -> tuple[int, int]:
    """``TASKSxSAMPLES``, such as ``10x128``."""
    num_tasks, batch_size = map(positive, text.split("x"))
    return num_tasks, batch_size


OPTIONS: dict[str, dict[str, Any]] = {
    "repeats": {"type": positive, "default": 5, "help": "by default 5"},
    "threads": {"type": positive, "help": "of torch; by default what torch chooses"},
    "device": {"default": "auto", "help": "auto, cpu or cuda"},
    "precision": {"nargs": "+", "choices": ["auto", *PRECISIONS], "default": ["fp32"], "help": "by default fp32"},
    "runs": {"nargs": "+", "type": positive, "default": [1, 2, 4, 8], "help": "at once, by default 1, 2, 4 and 8"},
    "out": {"type": Path, "help": "by default runs/benchmark/COMMAND.json"},
    "methods": {"nargs": "+", "help": "by default all; of throughput, unitary and pcgrad"},
    "plugins": {"nargs": "+", "default": [], "help": "Python files with methods of your own"},
    "benchmarks": {"nargs": "+", "choices": ["mt10", "mt25", "mt50"], "default": ["mt10", "mt50"]},
    "workers": {"type": positive, "help": "simulator processes; by default one a core"},
    "hidden-sizes": {"nargs": "+", "type": positive, "default": [400, 400, 400]},
    "cases": {"nargs": "+", "type": case, "default": [(10, 128), (50, 128), (50, 26)], "metavar": "TxB"},
    "tasks": {"nargs": "+", "type": positive, "default": [10, 50]},
    "batch-size": {"type": positive, "default": 128, "help": "samples per task, by default 128"},
    "steps": {"type": positive, "default": 20, "help": "iterations a round, by default 20"},
    "channels-last": {"action": "store_true", "help": "images laid out by pixels"},
    "network": {"choices": ["resnet18", "nine_layers"], "default": "resnet18"},
    "wrt": {"choices": ["shared", "representation"], "default": "representation"},
    "memory-limit": {"type": gibibytes, "help": "GiB for per-task gradients by parameters, by default 2"},
    "attributes": {"type": positive, "default": 40, "dest": "tasks", "help": "tasks, by default 40"},
}
_TRAINING = ["precision", "hidden-sizes", "benchmarks", "workers", "batch-size", "steps"]
_SUPERVISED = ["channels-last", "network", "wrt", "memory-limit"]
_WIDTH = 160
"""Characters in a line where nobody's terminal says how many."""
COMMANDS: dict[str, tuple[Any, list[str]]] = {
    "overhead": (overhead, ["methods", "plugins", "precision", "hidden-sizes", "cases"]),
    "solvers": (solvers, ["methods", "plugins", "tasks"]),
    "options": (options, ["tasks", "batch-size"]),
    "envs": (envs, ["benchmarks", "workers"]),
    "throughput": (throughput, ["methods", "plugins", *_TRAINING]),
    "capture": (capture, ["methods", "plugins", "precision", "hidden-sizes", "tasks", "batch-size"]),
    "packing": (packing, ["runs", *_TRAINING]),
    "supervised": (
        supervised,
        ["methods", "plugins", "precision", "attributes", "batch-size", *_SUPERVISED],
    ),
}
"""Each command's file, and the options that it has beside those of all commands."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(prog="benchmark.py", description=__doc__)
    commands = whole.add_subparsers(required=True, dest="command")
    for name, (file, own) in COMMANDS.items():
        command = commands.add_parser(name, help=file.__doc__)
        for option in ("repeats", "threads", "device", "out", *own):
            command.add_argument(f"--{option}", **OPTIONS[option])
    return whole


def main(command_line: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the JSON file."""
    arguments = parser().parse_args(command_line)
    keep_freed_memory()  # as in training, and so are the threads
    keep_to_cores()
    device = device_of(arguments.device)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    load_plugins(getattr(arguments, "plugins", []))
    about = machine(device)
    about |= {"device": str(device), "threads": torch.get_num_threads(), "repeats": arguments.repeats}
    command, _ = COMMANDS[arguments.command]
    rows = command.measure(arguments, device)
    out = arguments.out or Path("runs/benchmark") / f"{arguments.command}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"command": arguments.command, **about, "rows": rows})
    where = (
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, {about['gpu'] or 'no GPU'}, "
        f"device {device}; {', '.join(' '.join(item) for item in about['versions'].items())}"
    )
    lines = list(command.lines(rows))
    write_text(out.with_suffix(".md"), markdown_of(command.TITLE, command.WORDS, lines, where))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(table_of(command.TITLE, command.WORDS, lines))
    console.print(where, highlight=False)
    print(f"written to {out} and, as Markdown, {out.with_suffix('.md').name}")


if __name__ == "__main__":
    run(main)
