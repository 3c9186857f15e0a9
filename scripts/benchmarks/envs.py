"""Vector steps per second beside gymnasium's, and a step's cost beside the bare physics."""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from rich.table import Table

from envs.metaworld import TaskVector, benchmark_tasks
from scripts.benchmarks.timing import cpu_seconds, tracked

Vectors = dict[str, tuple[Callable[[NDArray[np.float32]], object], list[psutil.Process]]]
ROUND_STEPS = 50


def envs(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Times vector steps with random actions, in rounds over all kinds of vectors, then single tasks."""
    rows: list[dict[str, Any]] = []
    for name in arguments.benchmarks:
        rows += _vectors(name, arguments)
        rows.append(_physics(name, arguments))
    return rows


def _vectors(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    import gymnasium
    import metaworld  # noqa: F401  # it registers its environments

    tasks = benchmark_tasks(name)
    actions = _actions(len(tasks))
    makers: dict[str, Callable[[], Any]] = {
        "gymnasium AsyncVectorEnv": lambda: gymnasium.make_vec(f"Meta-World/{name.upper()}", vector_strategy="async"),
        "fast": lambda: TaskVector(tasks, seed=0, num_workers=arguments.workers),
        "plain": lambda: TaskVector(tasks, seed=0, num_workers=arguments.workers, fast=False),
    }
    own = psutil.Process()
    opened: list[Any] = []
    vectors: Vectors = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium's remarks on Meta-World's spaces
            for kind, make in makers.items():
                before = set(own.children())
                vector = make()
                opened.append(vector)
                vector.reset()
                vectors[kind] = vector.step, [own, *(child for child in own.children() if child not in before)]
            wall: dict[str, list[float]] = {kind: [] for kind in vectors}
            cpu: dict[str, list[float]] = {kind: [] for kind in vectors}
            for round_ in tracked(range(1 + arguments.repeats), f"{name}: vector steps"):
                for kind, (step, processes) in vectors.items():
                    used, start = cpu_seconds(processes), time.perf_counter()
                    for action in actions:
                        step(action)
                    if round_ > 0:  # the first one warms up
                        wall[kind].append((time.perf_counter() - start) / len(actions))
                        cpu[kind].append((cpu_seconds(processes) - used) / len(actions))
    finally:
        for vector in opened:
            vector.close()
    rival = next(iter(makers))
    return [
        {
            "benchmark": name,
            "kind": kind,
            "seconds": wall[kind],
            "cpu_seconds": cpu[kind],
            "steps_per_second": 1 / statistics.median(wall[kind]),
            "ratio": statistics.median(a / b for a, b in zip(wall[rival], wall[kind], strict=True)),
            "cpu_ratio": statistics.median(a / b for a, b in zip(cpu[rival], cpu[kind], strict=True)),
        }
        for kind in makers
    ]


def _physics(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Each task's step, and the physics alone along the same actions, in this process."""
    import mujoco

    from envs.metaworld.fast import replacements
    from envs.metaworld.shared import Options
    from envs.metaworld.task import TaskEnv

    tasks = benchmark_tasks(name)
    options = Options(seed=0, horizon=500, reward_version="v2", terminate_on_success=False, goals="fixed", fast=True)
    actions = _actions(len(tasks))
    steps: list[float] = []
    bare: list[float] = []
    with ExitStack() as replaced:
        for owner, attribute, value in replacements():
            replaced.enter_context(patch.object(owner, attribute, value))
        made = [TaskEnv(task, options) for task in tasks]
        for round_ in tracked(range(1 + arguments.repeats), f"{name}: physics alone"):
            totals = [0.0, 0.0]
            for index, task in enumerate(made):
                task.reset()
                start = time.perf_counter()
                for action in actions[:, index]:
                    task.step(action)
                totals[0] += time.perf_counter() - start
                task.reset()
                model, data = task.env.model, task.env.data
                for action in actions[:, index]:
                    task.env.set_xyz_action(action[:3])
                    data.ctrl[:] = action[3], -action[3]
                    start = time.perf_counter()
                    mujoco.mj_step(model, data, nstep=task.env.frame_skip)
                    totals[1] += time.perf_counter() - start
            if round_ > 0:
                steps.append(totals[0] / actions[:, :, 0].size)
                bare.append(totals[1] / actions[:, :, 0].size)
    return {
        "benchmark": name,
        "kind": "one task's step beside mj_step",
        "options": asdict(options),
        "seconds": steps,
        "mj_step_seconds": bare,
        "ratio": statistics.median(a / b for a, b in zip(steps, bare, strict=True)),
    }


def _actions(num_tasks: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (ROUND_STEPS, num_tasks, 4)).astype(np.float32)


def envs_table(rows: list[dict[str, Any]]) -> Table:
    """One line a kind of vector, and one for the physics."""
    table = Table(title="stepping with random actions")
    for column in ("benchmark", "what", "per second", "CPU ms a vector step", "times faster", "CPU times less"):
        table.add_column(column, justify="left" if column in ("benchmark", "what") else "right")
    for row in rows:
        if "mj_step_seconds" in row:
            step, bare = (1e6 * statistics.median(row[key]) for key in ("seconds", "mj_step_seconds"))
            what = f"one task: {step:.0f} µs a step, {bare:.0f} of them mj_step"
            table.add_row(row["benchmark"], what, f"{1e6 / step:.0f}", "", f"{row['ratio']:.2f} x mj_step", "")
            continue
        cells = (row["steps_per_second"], 1e3 * statistics.median(row["cpu_seconds"]), row["ratio"], row["cpu_ratio"])
        table.add_row(row["benchmark"], row["kind"], *(f"{cell:.2f}" for cell in cells))
    return table
