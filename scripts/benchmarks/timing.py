"""Clocks, and a progress bar for long measurements."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import psutil
import torch
from rich.console import Console
from rich.progress import track

Update = Callable[[], object]
Item = TypeVar("Item")


def seconds(function: Update, device: torch.device) -> float:
    """The wall-clock time of one call, work on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def tracked(items: Sequence[Item], title: str) -> Iterable[Item]:
    """The items, with a progress bar where somebody looks."""
    console = Console(stderr=True)
    return track(items, title, console=console, disable=not console.is_terminal)


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """The processor time that processes have used so far, in user and kernel mode."""
    times = [process.cpu_times() for process in processes]
    return sum(time_.user + time_.system for time_ in times)
