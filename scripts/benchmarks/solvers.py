"""From a Gramian to the task weights."""

import argparse
import statistics
from collections import defaultdict

import torch
from rich.table import Table
from torch import Tensor

from mtrl import combiners
from mtrl.errors import RunError
from scripts.benchmarks.timing import Lines, Row, seconds, table, tracked
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


def solvers(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Times the weights of every method that needs the Gramian alone."""
    valid = [name for name in combiners.names() if combiners.get(name).needs == "gramian"]
    names = chosen(arguments.methods, valid)
    return [
        {"tasks": num_tasks, "method": name, "family": family.__name__}
        | _solve(name, family(num_tasks, torch.Generator().manual_seed(0)), arguments.repeats, device)
        for num_tasks in arguments.tasks
        for name in tracked(names, f"{num_tasks} tasks")
        for family in FAMILIES
    ]


def _solve(name: str, jacobian: Tensor, repeats: int, device: torch.device) -> Row:
    gramian = (jacobian @ jacobian.T).float().to(device)
    losses = torch.linspace(0.5, 2, len(jacobian), device=device)
    combiner = make_combiner(name, len(jacobian)).to(device)
    try:
        times = [seconds(lambda: combiner.weights(losses, gramian), device) for _ in range(1 + repeats)][1:]
    except RunError as error:
        return {"no_solution": str(error)}
    return {"seconds": times, "median": statistics.median(times)}


def solvers_table(rows: list[Row]) -> Table:
    """One line a method and number of tasks, one column a family."""
    lines: Lines = defaultdict(dict)
    for row in rows:
        cell = f"{1e3 * row['median']:.2f}" if "median" in row else "no solution"
        lines[str(row["tasks"]), row["method"]][row["family"].replace("_", " ")] = cell
    return table("from the Gramian to the weights: milliseconds", ("tasks", "method"), lines)
