"""Stepping, updating, and the iteration of training that overlaps them."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from statistics import median

import torch

from agents.sac import MultiTaskSAC
from envs.metaworld import benchmark_tasks, make_vector
from envs.vector import TaskVector
from mtrl import combiners
from mtrl.run.machine import cores
from scripts.benchmarks.timing import Line, Row, Times, Work, interleaved_steps
from scripts.benchmarks.updates import chosen, make_agent, make_update, modes

TITLE, WORDS = "one vector step with one update: milliseconds", ("benchmark", "method", "precision", "launches")


def measure(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Times rounds of stepping alone, updating alone, and training's iteration, which overlaps them."""
    methods = chosen(arguments.methods, combiners.names()) if arguments.methods else ["unitary", "pcgrad"]
    rows: list[Row] = []
    for name, mode in product(arguments.benchmarks, modes(arguments, device)):
        tasks = benchmark_tasks(name)
        agent = make_agent(len(tasks), arguments.batch_size, arguments.hidden_sizes, device, mode)
        with make_vector(tasks, seed=0, num_workers=arguments.workers) as vector:
            iteration = iteration_of(agent, vector)
            for method in methods:
                update = make_update(agent, method)
                alone, both = partial(iteration, lambda: None), partial(iteration, update)
                works: dict[str, Work] = {"stepping": alone, "updating": update, "both": both}
                title = " ".join([name, method, *mode.words.values()])
                wall, processor = interleaved_steps(works, arguments.steps, arguments.repeats, title, device)
                both_seconds, least = median(wall["both"]), _least(wall, processor, device)
                row: Row = {"benchmark": name, "method": method, **mode.words}
                row |= {"seconds": wall, "cpu_seconds": processor}
                row |= {"least_seconds": least, "ratio": both_seconds / least, "steps_per_second": 1 / both_seconds}
                rows.append(row)
    return rows


def iteration_of(agent: MultiTaskSAC, vector: TaskVector) -> Callable[[Work], None]:
    """One iteration of training, with something in place of its update."""
    observations = vector.reset()

    def iteration(between: Work) -> None:
        nonlocal observations
        actions = agent.act(observations)
        vector.step_async(actions)
        between()
        step = vector.step_wait()
        agent.remember(observations, actions, step)
        observations = step.current_observations

    return iteration


def _least(wall: Times, processor: Times, device: torch.device) -> float:
    """The seconds of an iteration at least: on a GPU the longer part's; else both parts' processor time, per core."""
    if device.type == "cuda":
        return max(median(wall["stepping"]), median(wall["updating"]))
    return (median(processor["stepping"]) + median(processor["updating"])) / cores()


def lines(rows: list[Row]) -> Iterator[Line]:
    """One line a benchmark, method and mode."""
    for row in rows:
        times = {phase: 1e3 * median(taken) for phase, taken in row["seconds"].items()}
        times["least possible"] = 1e3 * row["least_seconds"]
        numbers = times | {"ratio": row["ratio"], "steps/s": row["steps_per_second"]}
        shown = {column: f"{number:.2f}" for column, number in numbers.items()}
        yield tuple(row[word] for word in WORDS), shown
