"""The time from a Gramian to the task weights, on several families of gradients."""

import argparse
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor

from mtrl import combiners
from mtrl.errors import RunError
from scripts.benchmarks.timing import Line, Row, seconds, tracked
from scripts.benchmarks.updates import chosen, make_combiner

TITLE, WORDS = "from the Gramian to the weights: milliseconds", ("tasks", "method")
Draw = Callable[[int], Tensor]
FAMILIES: dict[str, Callable[[Draw, int], Tensor]] = {
    "random": lambda draw, tasks: draw(tasks),
    "aligned": lambda draw, tasks: draw(1) + 0.3 * draw(tasks),
    "conflicting": lambda draw, tasks: (1.0 - 2.0 * (torch.arange(tasks) % 2))[:, None] * draw(1) + 0.3 * draw(tasks),
    "rank_deficient": lambda draw, tasks: draw(tasks)[:, : max(tasks // 2, 1)],
    "spread": lambda draw, tasks: draw(tasks) * torch.logspace(-3, 3, tasks, dtype=torch.float64)[:, None],
}
"""Gradients of so many tasks, made of independent ones: as they are; that agree; in two camps that pull against each
other; in half as many dimensions; with norms from 1e-3 to 1e3."""


def measure(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Times the weights of every method that needs the Gramian alone."""
    valid = [name for name in combiners.names() if combiners.get(name).needs == "gramian"]
    names = chosen(arguments.methods, valid)
    return [
        {"tasks": num_tasks, "method": name, "family": family}
        | _solve(name, FAMILIES[family](_draw(), num_tasks), arguments.repeats, device)
        for num_tasks in arguments.tasks
        for name in tracked(names, f"{num_tasks} tasks")
        for family in FAMILIES
    ]


def _draw() -> Draw:
    generator = torch.Generator().manual_seed(0)
    return lambda rows: torch.randn(rows, 200, generator=generator, dtype=torch.float64)


def _solve(name: str, jacobian: Tensor, repeats: int, device: torch.device) -> Row:
    gramian = (jacobian @ jacobian.T).float().to(device)
    losses = torch.linspace(0.5, 2, len(jacobian), device=device)
    combiner = make_combiner(name, len(jacobian)).to(device)
    try:
        times = [seconds(lambda: combiner.weights(losses, gramian), device) for _ in range(1 + repeats)][1:]
    except RunError as error:
        return {"no_solution": str(error)}
    return {"seconds": times, "median": median(times)}


def lines(rows: list[Row]) -> Iterator[Line]:
    """One line a method and number of tasks, one column a family."""
    for row in rows:
        cell = f"{1e3 * row['median']:.2f}" if "median" in row else "no solution"
        yield (str(row["tasks"]), row["method"]), {row["family"].replace("_", " "): cell}
