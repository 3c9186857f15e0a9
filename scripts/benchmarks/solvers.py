"""From a Gramian to the task weights."""

import argparse
import statistics
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from mtrl import combiners
from mtrl.combiners import Combiner
from mtrl.errors import RunError
from scripts.benchmarks.timing import seconds, tracked
from scripts.benchmarks.updates import chosen, make_combiner


def aligned(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Gradients that agree."""
    return random(1, generator) + 0.3 * random(num_tasks, generator)


def conflicting(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Two camps that pull against each other."""
    side = 1.0 - 2.0 * (torch.arange(num_tasks) % 2)
    return side[:, None] * random(1, generator) + 0.3 * random(num_tasks, generator)


def random(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Independent gradients."""
    return torch.randn(num_tasks, 200, generator=generator, dtype=torch.float64)


def rank_deficient(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Half as many dimensions as gradients."""
    return random(num_tasks, generator)[:, : max(num_tasks // 2, 1)]


def spread(num_tasks: int, generator: torch.Generator) -> Tensor:
    """Norms from 1e-3 to 1e3."""
    return random(num_tasks, generator) * torch.logspace(-3, 3, num_tasks, dtype=torch.float64)[:, None]


FAMILIES = (random, aligned, conflicting, rank_deficient, spread)


def solvers(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Times the weights of every method that needs the Gramian alone."""
    valid = [name for name in combiners.names() if combiners.get(name).needs == "gramian"]
    rows: list[dict[str, Any]] = []
    for num_tasks in arguments.tasks:
        for name in tracked(chosen(arguments.methods, valid), f"{num_tasks} tasks"):
            for family in FAMILIES:
                jacobian = family(num_tasks, torch.Generator().manual_seed(0))
                gramian = (jacobian @ jacobian.T).float().to(device)
                losses = torch.linspace(0.5, 2, num_tasks, device=device)
                combiner = make_combiner(name, num_tasks).to(device)

                def solve(combiner: Combiner = combiner, losses: Tensor = losses, gramian: Tensor = gramian) -> Tensor:
                    return combiner.weights(losses, gramian)

                row: dict[str, Any] = {"tasks": num_tasks, "method": name, "family": family.__name__}
                try:
                    row["seconds"] = [seconds(solve, device) for _ in range(1 + arguments.repeats)][1:]
                    row["median"] = statistics.median(row["seconds"])
                except RunError as error:
                    row["no_solution"] = str(error)
                rows.append(row)
    return rows


def solvers_table(rows: list[dict[str, Any]]) -> Table:
    """One line a method and number of tasks, one column a family."""
    table = Table(title="from the Gramian to the weights: milliseconds")
    table.add_column("tasks", justify="right")
    table.add_column("method", no_wrap=True)
    for family in FAMILIES:
        table.add_column(family.__name__.replace("_", " "), justify="right")
    lines: dict[tuple[int, str], list[str]] = {}
    for row in rows:
        cell = f"{1e3 * row['median']:.2f}" if "median" in row else "no solution"
        lines.setdefault((row["tasks"], row["method"]), []).append(cell)
    for (num_tasks, method), cells in lines.items():
        table.add_row(str(num_tasks), method, *cells)
    return table
