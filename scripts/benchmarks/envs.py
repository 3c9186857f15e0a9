"""Vector steps beside gymnasium's AsyncVectorEnv, and a task's step beside its bare physics."""

import argparse
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from envs.metaworld import ACTION_SIZE, benchmark_tasks, make_vector
from scripts.benchmarks.timing import Line, Row, interleaved, interleaved_steps, ratio, seconds

TITLE, WORDS = "stepping with random actions", ("benchmark", "what")
RIVAL = "gymnasium AsyncVectorEnv"
ROUND_STEPS = 50


def measure(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Times vector steps with random actions, in rounds over all kinds of vectors, then single tasks."""
    return [row for name in arguments.benchmarks for row in (*_vectors(name, arguments), _physics(name, arguments))]


def _vectors(name: str, arguments: argparse.Namespace) -> list[Row]:
    import gymnasium
    import metaworld  # noqa: F401  # it registers its environments

    tasks = benchmark_tasks(name)
    actions = _actions(len(tasks))
    makers: dict[str, Callable[[], Any]] = {
        RIVAL: lambda: gymnasium.make_vec(f"Meta-World/{name.upper()}", vector_strategy="async"),
        "fast": lambda: make_vector(tasks, seed=0, num_workers=arguments.workers),
        "plain": lambda: make_vector(tasks, seed=0, num_workers=arguments.workers, fast=False),
    }

    with ExitStack() as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's remarks on Meta-World's spaces
        steps = {}
        for kind, make in makers.items():
            vector = opened.enter_context(closing(make()))
            vector.reset()
            steps[kind] = partial(_step, vector, itertools.cycle(actions))
        wall, processor = interleaved_steps(steps, ROUND_STEPS, arguments.repeats, f"{name}: vector steps")
    return [
        {
            "benchmark": name,
            "kind": kind,
            "seconds": wall[kind],
            "cpu_seconds": processor[kind],
            "steps_per_second": 1 / median(wall[kind]),
            "ratio": ratio(wall[RIVAL], wall[kind]),
            "cpu_ratio": ratio(processor[RIVAL], processor[kind]),
        }
        for kind in makers
    ]


def _physics(name: str, arguments: argparse.Namespace) -> Row:
    """Each task's step, and the physics alone along the same actions, in this process."""
    import mujoco

    from envs.metaworld import Options
    from envs.metaworld.fast import replacements
    from envs.metaworld.task import TaskEnv

    tasks, seed, options = benchmark_tasks(name), 0, Options(goals="fixed")
    actions = _actions(len(tasks))

    with ExitStack() as replaced:
        for owner, attribute, value in replacements():
            replaced.enter_context(patch.object(owner, attribute, value))
        made = [TaskEnv(task, seed, options) for task in tasks]

        def round_() -> tuple[float, float]:
            stepping = simulating = 0.0
            for index, task in enumerate(made):
                env = task.env
                task.reset()
                stepping += sum(seconds(partial(task.step, action)) for action in actions[:, index])
                task.reset()
                for action in actions[:, index]:
                    env.set_xyz_action(action[:3])
                    env.data.ctrl[:] = action[3], -action[3]
                    simulating += seconds(partial(mujoco.mj_step, env.model, env.data, nstep=env.frame_skip))
            return stepping / actions[:, :, 0].size, simulating / actions[:, :, 0].size

        step, mj_step = interleaved({name: round_}, arguments.repeats, f"{name}: physics alone")
    return {
        "benchmark": name,
        "kind": "one task's step beside mj_step",
        "options": {"seed": seed, **asdict(options)},
        "seconds": step[name],
        "mj_step_seconds": mj_step[name],
        "ratio": ratio(step[name], mj_step[name]),
    }


def _step(environment: Any, actions: Iterator[NDArray[np.float32]]) -> None:
    environment.step(next(actions))


def _actions(num_tasks: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (ROUND_STEPS, num_tasks, ACTION_SIZE)).astype(np.float32)


def lines(rows: list[Row]) -> Iterator[Line]:
    """One line a kind of vector, and one for the physics."""
    for row in rows:
        if "mj_step_seconds" in row:
            step, bare = (1e6 * median(row[key]) for key in ("seconds", "mj_step_seconds"))
            kind = f"one task: {step:.0f} µs a step, {bare:.0f} of them mj_step"
            numbers = {"per second": f"{1e6 / step:.0f}", "times faster": f"{row['ratio']:.2f} x mj_step"}
        else:
            kind = row["kind"]
            numbers = {
                "per second": f"{row['steps_per_second']:.2f}",
                "CPU ms a vector step": f"{1e3 * median(row['cpu_seconds']):.2f}",
                "times faster": f"{row['ratio']:.2f}",
                "CPU times less": f"{row['cpu_ratio']:.2f}",
            }
        yield (row["benchmark"], kind), numbers
