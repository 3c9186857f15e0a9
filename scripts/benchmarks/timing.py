"""Clocks, rounds of measurements, and tables of them."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import psutil
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

Work = Callable[[], object]
CPU = torch.device("cpu")
Row = dict[str, Any]
"""What is measured of one thing; all rows of a command go into its JSON file."""
Lines = dict[tuple[str, ...], dict[str, str]]
Item = TypeVar("Item")
Cost = TypeVar("Cost")


def seconds(work: Work, device: torch.device = CPU) -> float:
    """The wall-clock time of one call, work on the device included."""
    _finish(device)
    start = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - start


def interleaved(
    costs: Mapping[str, Callable[[], Cost]], repeats: int, title: str, rarely: Mapping[str, int] = MappingProxyType({})
) -> dict[str, list[Cost]]:
    """Measures everything once a round, so that what slows the machine down for a while slows down all of it.

    Args:
        costs: by name, what does something and says what it cost.
        repeats: rounds, after a first one that warms up.
        title: of the progress bar.
        rarely: what takes part in so many rounds only, and in none to warm up.

    Returns:
        What each cost, round by round.
    """
    found: dict[str, list[Cost]] = {name: [] for name in costs}
    for round_ in tracked(range(1 + repeats), title):
        for name, measure in costs.items():
            if name not in rarely or 0 < round_ <= rarely[name]:
                cost = measure()
                if round_ > 0:
                    found[name].append(cost)
    return found


def interleaved_steps(
    works: Mapping[str, Work], steps: int, repeats: int, title: str, device: torch.device = CPU
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The seconds that one step of each work takes, `interleaved` in portions of so many steps.

    Returns:
        By name, those on the wall's clock, and those of processors, all descendants of this process included.
    """

    def cost(work: Work) -> tuple[float, float]:
        own = psutil.Process()
        processes = [own, *own.children(recursive=True)]
        before = _processor_seconds(processes)
        wall = seconds(lambda: [work() for _ in range(steps)], device)
        return wall / steps, (_processor_seconds(processes) - before) / steps

    found = interleaved({name: partial(cost, work) for name, work in works.items()}, repeats, title)
    wall = {name: [cost[0] for cost in costs] for name, costs in found.items()}
    return wall, {name: [cost[1] for cost in costs] for name, costs in found.items()}


def tracked(items: Sequence[Item], title: str) -> Iterable[Item]:
    """The items, with a progress bar where somebody looks."""
    console = Console(stderr=True)
    return track(items, title, console=console, disable=not console.is_terminal)


def table(title: str, words: Collection[str], lines: Lines) -> Table:
    """A table with columns of words on the left; beside them, each line has a number in some of the other columns."""
    made = Table(title=title)
    for column in words:
        made.add_column(column, no_wrap=column == "method")  # a name is searched for
    columns = dict.fromkeys(column for numbers in lines.values() for column in numbers)
    for column in columns:
        made.add_column(column, justify="right")
    for line, numbers in lines.items():
        made.add_row(*line, *(numbers.get(column, "") for column in columns))
    return made


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor_seconds(processes: Iterable[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(time_.user + time_.system for time_ in times)
