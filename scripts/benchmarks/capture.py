"""Which methods' updates are captured as CUDA graphs, why others are not, and whether both learn the same."""

import argparse
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import cycle
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from mtrl import combiners
from mtrl.gradients.graphs import NOT_CAPTURED
from mtrl.supervised import benchmarks
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.problem import Precision, batch_of, placed
from mtrl.supervised.updates import OptimizerOptions, Setup
from scripts.benchmarks.timing import Line, Row, Work, seconds, tracked
from scripts.benchmarks.updates import Mode, chosen, make_agent, make_combiner, make_update, modes

TITLE, WORDS = "updates as CUDA graphs", ("of", "method", "needs", "precision")
UPDATES = 8
"""The first three warm up, the fourth is captured."""
TIMED = 20
DIGITS, DIGITS_BATCH = "multi_digits", 128
"""A supervised benchmark that is captured, and its samples per update."""


class Learned(NamedTuple):
    """What came of an update, done so many times."""

    weights: Tensor
    seconds: float
    """Of each of so many further ones."""


def measure(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Some updates of every method as they are in training, and the same ones launched operation by operation.

    Those of the agent, and of a supervised model.
    """
    names = chosen(arguments.methods, combiners.names())
    size = arguments.tasks[0], arguments.batch_size, arguments.hidden_sizes, device
    rows: list[Row] = []
    for mode in [mode for mode in modes(arguments, device) if mode.compile == "auto" or device.type != "cuda"]:
        for name in tracked(names, mode.precision):
            ways: dict[str, Callable[[Mode], Learned]] = {"agent": partial(_agent, name, *size)}
            if mode.precision in get_args(Precision) and name != "modo":  # which needs halves of each task's samples
                ways[DIGITS] = partial(_digits, name, device)
            for of, learned in ways.items():
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    graphs = learned(mode._replace(compile="auto"))
                messages = [str(one.message) for one in said]
                reasons = [text.removeprefix(NOT_CAPTURED) for text in messages if text.startswith(NOT_CAPTURED)]
                row: Row = {"of": of, "method": name, "needs": combiners.get(name).needs, "precision": mode.precision}
                row["obstacle"] = "; ".join(dict.fromkeys(reasons)) if device.type == "cuda" else "there is no GPU"
                operations = learned(mode._replace(compile="off"))
                row["difference"] = float((graphs.weights - operations.weights).abs().max())
                rows.append(row | {"seconds": [graphs.seconds, operations.seconds]})
    return rows


def _agent(name: str, num_tasks: int, batch_size: int, sizes: list[int], device: torch.device, mode: Mode) -> Learned:
    agent = make_agent(num_tasks, batch_size, sizes, device, mode)
    learned = _learned(make_update(agent, name), (agent.actor, agent.critic), device)
    agent.objectives.check()
    return learned


def _digits(name: str, device: torch.device, mode: Mode) -> Learned:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        benchmark = benchmarks.make(name=DIGITS, tasks=["CL", "RR"], dropout=0.0)
    benchmark.model.to(device)
    update = CombinedUpdate(Setup(benchmark, make_combiner(name, 2), OptimizerOptions()))
    update.model.compute(cast(Precision, mode.precision), channels_last=False)
    if mode.compile == "off":
        update.graphs, update.pieces = False, update.plain_pieces()
    starts = range(0, len(benchmark.train) - DIGITS_BATCH, DIGITS_BATCH)
    portions = (range(start, start + DIGITS_BATCH) for start in starts)
    batches = cycle([placed(batch_of(benchmark.train, portion), device) for portion in portions])
    return _learned(lambda: update.step(next(batches), lambda: next(batches), lambda: None), (update.model,), device)


def _learned(update: Work, networks: Iterable[nn.Module], device: torch.device) -> Learned:
    for _ in range(UPDATES):
        update()
    weights = torch.cat([parameter.detach().flatten() for network in networks for parameter in network.parameters()])
    return Learned(weights, seconds(update, device, TIMED))


def lines(rows: list[Row]) -> Iterator[Line]:
    """One line a kind of update, method and precision."""
    for row in rows:
        shown = {"captured": row["obstacle"] or "yes", "weights differ by": f"{row['difference']:.1e}"}
        times = zip(("as such", "by operations"), row["seconds"], strict=True)
        shown |= {f"ms, {how}": f"{1e3 * taken:.2f}" for how, taken in times}
        yield tuple(row[word] for word in WORDS), shown
