"""Several runs side by side on one device: what each step of all of them together costs."""

import argparse
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Barrier
from typing import Any

import torch

from envs.metaworld import benchmark_tasks, make_vector
from mtrl.run.machine import cores, keep_freed_memory
from scripts.benchmarks.throughput import iteration_of
from scripts.benchmarks.timing import Line, Row, seconds
from scripts.benchmarks.updates import Mode, make_agent, make_update, modes

TITLE = "runs side by side: vector steps with one update per second"
WORDS = ("benchmark", "precision", "sharing")
MPS = "nvidia-cuda-mps-control"
"""NVIDIA's service by which processes share a GPU, where they would take turns."""
TIMEOUT = 600
"""Seconds after which a run that another one waits for is given up."""


def measure(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Times so many iterations of training in each of 1, 2, ... processes at once; unitary, captured where that is.

    On a GPU that can be shared by MPS, once more under that.
    """
    rows = _rows(arguments, device, "turns" if device.type == "cuda" else "cores")
    if device.type == "cuda" and shutil.which(MPS):
        with shared_by_mps():
            rows += _rows(arguments, device, "MPS")
    return rows


def _rows(arguments: argparse.Namespace, device: torch.device, sharing: str) -> list[Row]:
    rows: list[Row] = []
    for name in arguments.benchmarks:
        for mode in dict.fromkeys(mode._replace(compile="auto") for mode in modes(arguments, device)):
            for runs in arguments.runs:
                agent = (name, arguments.batch_size, arguments.hidden_sizes, str(device), mode)
                workers = arguments.workers or max(1, cores() // runs)
                rates = _side_by_side(runs, (*agent, workers, arguments.steps, arguments.repeats))
                together = [sum(of_round) for of_round in zip(*rates, strict=True)]
                row: Row = {"benchmark": name, "precision": mode.precision, "sharing": sharing, "runs": runs}
                rows.append(row | {"steps_per_second": rates, "together": together})
    return rows


@contextmanager
def shared_by_mps() -> Iterator[None]:
    """Processes started in here share the GPU by an MPS of their own, which ends with it."""
    names = {"CUDA_MPS_PIPE_DIRECTORY": "pipe", "CUDA_MPS_LOG_DIRECTORY": "log"}
    before = {name: os.environ.get(name) for name in names}
    with TemporaryDirectory() as folder:
        for name, directory in names.items():
            path = Path(folder) / directory
            path.mkdir()
            os.environ[name] = str(path)
        try:
            subprocess.run([MPS, "-d"], check=True, stdin=subprocess.DEVNULL)
            try:
                yield
            finally:
                subprocess.run([MPS], check=True, input="quit\n", text=True)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _side_by_side(runs: int, work: tuple[Any, ...]) -> list[list[float]]:
    """What `_rates` gives in each of so many processes."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(runs, context) as pool:
        everybody, threads = manager.Barrier(runs), torch.get_num_threads()
        return [made.result() for made in [pool.submit(_begin, everybody, threads, *work) for _ in range(runs)]]


def _begin(everybody: Barrier, threads: int, *work: Any) -> list[float]:
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        return _rates(everybody, *work)
    except BaseException:
        everybody.abort()  # nobody waits for this one
        raise


def _rates(
    everybody: Barrier,
    name: str,
    batch_size: int,
    hidden_sizes: list[int],
    device: str,
    mode: Mode,
    workers: int,
    steps: int,
    repeats: int,
) -> list[float]:
    """One run's steps per second, round by round; the first round, to warm up, is not among them."""
    tasks, rates = benchmark_tasks(name), list[float]()
    agent = make_agent(len(tasks), batch_size, hidden_sizes, torch.device(device), mode)
    update = make_update(agent, "unitary")
    with make_vector(tasks, seed=0, num_workers=workers) as vector:
        iteration = iteration_of(agent, vector)
        for _ in range(1 + repeats):
            everybody.wait(TIMEOUT)
            rates.append(1 / seconds(lambda: iteration(update), agent.device, steps))
    return rates[1:]


def lines(rows: list[Row]) -> Iterator[Line]:
    """One line a benchmark, precision and way of sharing, one column a number of runs."""
    for row in rows:
        yield tuple(row[word] for word in WORDS), {f"{row['runs']} at once": f"{median(row['together']):.1f}"}
