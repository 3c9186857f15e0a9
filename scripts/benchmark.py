"""What things cost on this machine: ``python scripts/benchmark.py overhead``.

``overhead``: a full SAC update under every combiner, as a ratio to unitary scalarization's.
``solvers``: the time from a Gramian to the task weights, on several families of gradients.
``envs``: vector steps beside gymnasium's AsyncVectorEnv, and a task's step beside its bare physics.
``throughput``: stepping, updating, and the iteration of training that overlaps them.

Each prints a table and writes one JSON file with every single measurement.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# As in training, so that what is measured is what training does.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from rich.console import Console

from mtrl.run.files import write_json
from mtrl.run.machine import device_of, machine
from scripts.benchmarks.envs import envs, envs_table
from scripts.benchmarks.overhead import overhead, overhead_table
from scripts.benchmarks.solvers import solvers, solvers_table
from scripts.benchmarks.throughput import throughput, throughput_table
from scripts.entry import run
from scripts.methods import load_plugins


def positive(text: str) -> int:
    """An integer of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def case(text: str) -> tuple[int, int]:
    """``TASKSxSAMPLES``, such as ``10x128``."""
    num_tasks, batch_size = map(positive, text.split("x"))
    return num_tasks, batch_size


def parser() -> argparse.ArgumentParser:
    """The command line."""
    part = partial(argparse.ArgumentParser, add_help=False)
    common, methods, simulated, network = part(), part(), part(), part()
    common.add_argument("--repeats", type=positive, default=5, help="by default 5")
    common.add_argument("--threads", type=positive, help="of torch; by default what torch chooses")
    common.add_argument("--device", default="auto", help="auto, cpu or cuda")
    common.add_argument("--out", type=Path, help="by default runs/benchmark/COMMAND.json")
    methods.add_argument("--methods", nargs="+", help="by default all; of throughput, unitary and pcgrad")
    methods.add_argument("--plugins", nargs="+", default=[], help="Python files with methods of your own")
    simulated.add_argument("--benchmarks", nargs="+", choices=["mt10", "mt50"], default=["mt10", "mt50"])
    simulated.add_argument("--workers", type=positive, help="simulator processes; by default one a core")
    network.add_argument("--hidden-sizes", nargs="+", type=positive, default=[400, 400, 400])
    whole = argparse.ArgumentParser(prog="benchmark.py", description=__doc__)
    add = whole.add_subparsers(required=True, dest="command").add_parser
    command = add("overhead", parents=[common, methods, network], help="full SAC updates under every combiner")
    command.add_argument("--cases", nargs="+", type=case, default=[(10, 128), (50, 128), (50, 26)], metavar="TxB")
    command.set_defaults(measure=overhead, table=overhead_table)
    command = add("solvers", parents=[common, methods], help="from the Gramian to the weights")
    command.add_argument("--tasks", nargs="+", type=positive, default=[10, 50])
    command.set_defaults(measure=solvers, table=solvers_table)
    command = add("envs", parents=[common, simulated], help="vector steps beside gymnasium's")
    command.set_defaults(measure=envs, table=envs_table)
    both = [common, methods, network, simulated]
    command = add("throughput", parents=both, help="stepping and updating, alone and together")
    command.add_argument("--batch-size", type=positive, default=128, help="samples per task, by default 128")
    command.add_argument("--steps", type=positive, default=20, help="iterations a round, by default 20")
    command.set_defaults(measure=throughput, table=throughput_table)
    return whole


def main(command_line: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the JSON file."""
    arguments = parser().parse_args(command_line)
    device = device_of(arguments.device)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    load_plugins(getattr(arguments, "plugins", []))
    about = machine()
    about |= {"device": str(device), "threads": torch.get_num_threads(), "repeats": arguments.repeats}
    rows = arguments.measure(arguments, device)
    out = arguments.out or Path("runs/benchmark") / f"{arguments.command}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"command": arguments.command, **about, "rows": rows})
    console = Console()
    console.print(arguments.table(rows))
    console.print(
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, {about['gpu'] or 'no GPU'}, "
        f"device {device}; {', '.join(' '.join(item) for item in about['versions'].items())}",
        highlight=False,
    )
    console.print(f"written to {out}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
