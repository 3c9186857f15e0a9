"""Stepping, updating, and both at once as training does them."""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from rich.table import Table

from agents.sac import MultiTaskSAC
from envs.metaworld import TaskVector, benchmark_tasks
from mtrl import combiners
from scripts.benchmarks.timing import Update, cpu_seconds, tracked
from scripts.benchmarks.updates import chosen, make_agent, make_update


def throughput(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Times rounds of stepping alone, updating alone, and training's iteration, which overlaps them."""
    methods = chosen(arguments.methods, combiners.names()) if arguments.methods else ["unitary", "pcgrad"]
    rows: list[dict[str, Any]] = []
    for name in arguments.benchmarks:
        tasks = benchmark_tasks(name)
        agent = make_agent(len(tasks), arguments.batch_size, arguments.hidden_sizes, device)
        with TaskVector(tasks, seed=0, num_workers=arguments.workers) as vector:
            phases = _phases(agent, vector)
            for method in methods:
                update = make_update(agent, method)
                wall: dict[str, list[float]] = {phase: [] for phase in phases}
                cpu: dict[str, list[float]] = {phase: [] for phase in phases}
                own = psutil.Process()
                processes = [own, *own.children()]
                for round_ in tracked(range(1 + arguments.repeats), f"{name} {method}"):
                    for phase, iterate in phases.items():
                        used, start = cpu_seconds(processes), time.perf_counter()
                        for _ in range(arguments.steps):
                            iterate(update)
                        if device.type == "cuda":
                            torch.cuda.synchronize(device)
                        if round_ > 0:  # the first one warms up
                            wall[phase].append((time.perf_counter() - start) / arguments.steps)
                            cpu[phase].append((cpu_seconds(processes) - used) / arguments.steps)
                rows.append({"benchmark": name, "method": method, "seconds": wall, "cpu_seconds": cpu})
                rows[-1] |= _ratios(wall, cpu, device)
    return rows


def _phases(agent: MultiTaskSAC, vector: TaskVector) -> dict[str, Callable[[Update], None]]:
    observations = vector.reset()

    def iteration(between: Update) -> None:
        """One iteration of training, with this in place of the update."""
        nonlocal observations
        actions = agent.act(observations)
        vector.step_async(actions)
        between()
        step = vector.step_wait()
        agent.remember(observations, actions, step)
        observations = step.observations

    return {
        "stepping": lambda update: iteration(lambda: None),
        "updating": lambda update: (update(), None)[1],
        "both": iteration,
    }


def _ratios(wall: dict[str, list[float]], cpu: dict[str, list[float]], device: torch.device) -> dict[str, float]:
    """The iteration against the least that it could take.

    On a GPU that is the longer one of stepping and updating; where both share the cores, the processor time of
    both spread over all cores.
    """
    cores = len(os.sched_getaffinity(0))
    median = {phase: statistics.median(times) for phase, times in wall.items()}
    if device.type == "cuda":
        least = max(median["stepping"], median["updating"])
    else:
        least = (statistics.median(cpu["stepping"]) + statistics.median(cpu["updating"])) / cores
    return {"least_seconds": least, "ratio": median["both"] / least, "steps_per_second": 1 / median["both"]}


def throughput_table(rows: list[dict[str, Any]]) -> Table:
    """One line a benchmark and method."""
    table = Table(title="one vector step with one update: milliseconds")
    columns = ("benchmark", "method", "stepping", "updating", "both", "least possible", "ratio", "steps/s")
    for column in columns:
        table.add_column(column, justify="left" if column in ("benchmark", "method") else "right")
    for row in rows:
        times = [1e3 * statistics.median(row["seconds"][phase]) for phase in ("stepping", "updating", "both")]
        cells = [*times, 1e3 * row["least_seconds"], row["ratio"], row["steps_per_second"]]
        table.add_row(row["benchmark"], row["method"], *(f"{cell:.2f}" for cell in cells))
    return table
