"""Clocks, rounds of measurements, and tables of them."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, TypeVar

import psutil
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from mtrl.report.tables import Cell
from mtrl.report.tables import Table as Report

Work = Callable[[], object]
CPU = torch.device("cpu")
Row = dict[str, Any]
"""What is measured of one thing; all rows of a command go into its JSON file."""
Times = dict[str, list[float]]
"""Seconds by name, round by round."""
Line = tuple[tuple[str, ...], dict[str, str]]
"""Of a table: its words, and its numbers by column; what comes later with the same words joins the line."""
Item = TypeVar("Item")
_RARE_ROUNDS = 2


def seconds(work: Work, device: torch.device = CPU, calls: int = 1) -> float:
    """The wall-clock time of a call, of so many one after the other, work on the device included."""
    _finish(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    _finish(device)
    return (time.perf_counter() - start) / calls


def processor_seconds(work: Work) -> float:
    """The processor time of one call in this process, which other processes do not lengthen."""
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(
    costs: Mapping[str, Callable[[], tuple[float, float]]], repeats: int, title: str, rarely: Collection[str] = ()
) -> tuple[Times, Times]:
    """Measures everything once a round, so that what slows the machine down for a while slows down all of it.

    Args:
        costs: by name, what does something and says what it cost, in two ways.
        repeats: rounds, after a first one that warms up.
        title: of the progress bar.
        rarely: names of what takes part in two rounds only, and in none to warm up.
    """
    found: tuple[Times, Times] = {name: [] for name in costs}, {name: [] for name in costs}
    for round_ in tracked(range(1 + repeats), title):
        for name, measure in costs.items():
            if name not in rarely or 0 < round_ <= _RARE_ROUNDS:
                for times, cost in zip(found, measure(), strict=True):
                    if round_ > 0:
                        times[name].append(cost)
    return found


def interleaved_steps(
    works: Mapping[str, Work], steps: int, repeats: int, title: str, device: torch.device = CPU
) -> tuple[Times, Times]:
    """The seconds that one step of each work takes, `interleaved` in portions of so many steps.

    On the wall's clock, and of processors, all descendants of this process included.
    """

    def cost(work: Work) -> tuple[float, float]:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        before = [process.cpu_times() for process in processes]
        wall = seconds(work, device, steps)
        after = [process.cpu_times() for process in processes]
        processor = sum(b.user + b.system - a.user - a.system for a, b in zip(before, after, strict=True))
        return wall, processor / steps

    return interleaved({name: partial(cost, work) for name, work in works.items()}, repeats, title)


def ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """The median of how many times longer these took than those of the same round."""
    return median(a / b for a, b in zip(these, those, strict=True))


def milliseconds(taken: float) -> str:
    """Of seconds: whole ones, with one decimal below ten."""
    return f"{1e3 * taken:.{int(taken < 0.01)}f}"


def tracked(items: Sequence[Item], title: str) -> Iterable[Item]:
    """The items, with a progress bar where somebody looks."""
    console = Console(stderr=True)
    return track(items, title, console=console, disable=not console.is_terminal)


def joined(lines: Iterable[Line]) -> tuple[list[str], list[tuple[tuple[str, ...], list[str]]]]:
    """Columns of numbers in the order in which they are first met, and each line's words and numbers."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for words, numbers in lines:
        found.setdefault(words, {}).update(numbers)
    columns = list(dict.fromkeys(column for numbers in found.values() for column in numbers))
    return columns, [(words, [numbers.get(column, "") for column in columns]) for words, numbers in found.items()]


def table_of(title: str, words: Collection[str], lines: Iterable[Line]) -> Table:
    """A table with columns of words on the left, and each line's numbers in some of the columns beside them."""
    columns, rows = joined(lines)
    made = Table(
        *(Column(word, no_wrap=word == "method") for word in words),  # a method's name is searched for
        *(Column(column, justify="right") for column in columns),
        title=title,
    )
    for own, numbers in rows:
        made.add_row(*own, *numbers)
    return made


def markdown_of(title: str, words: Collection[str], lines: Iterable[Line], note: str) -> str:
    """The same as Markdown."""
    columns, rows = joined(lines)
    body: list[list[Cell]] = [[*own, *numbers] for own, numbers in rows]
    return Report("benchmark", title, [*words, *columns], body, note).markdown()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
