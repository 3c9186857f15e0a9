"""Which methods' updates are captured as CUDA graphs, why others are not, and whether both learn the same."""

import argparse
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from mtrl import combiners
from mtrl.gradients.graphs import NOT_CAPTURED
from scripts.benchmarks.timing import Line, Row, tracked
from scripts.benchmarks.updates import chosen, make_agent, make_update, modes

TITLE, WORDS = "updates as CUDA graphs", ("method", "needs", "precision")
UPDATES = 8
"""The first three warm up, the fourth is captured."""


def measure(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Some updates of every method as they are in training, and the same ones launched operation by operation."""
    names = chosen(arguments.methods, combiners.names())
    size = arguments.tasks[0], arguments.batch_size, arguments.hidden_sizes, device
    rows: list[Row] = []
    for mode in [mode for mode in modes(arguments, device) if mode.compile == "auto" or device.type != "cuda"]:
        for name in tracked(names, mode.precision):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                weights = _learned(name, *size, mode._replace(compile="auto"))
            messages = [str(one.message) for one in said]
            reasons = [text.removeprefix(NOT_CAPTURED) for text in messages if text.startswith(NOT_CAPTURED)]
            row: Row = {"method": name, "needs": combiners.get(name).needs, "precision": mode.precision}
            row["obstacle"] = "; ".join(dict.fromkeys(reasons)) if device.type == "cuda" else "there is no GPU"
            row["difference"] = float((weights - _learned(name, *size, mode._replace(compile="off"))).abs().max())
            rows.append(row)
    return rows


def _learned(name: str, *size_and_mode: object) -> Tensor:
    """All weights after so many updates."""
    agent = make_agent(*size_and_mode)  # type: ignore[arg-type]
    update = make_update(agent, name)
    for _ in range(UPDATES):
        update()
    agent.objectives.check()
    return torch.cat([p.detach().flatten() for network in (agent.actor, agent.critic) for p in network.parameters()])


def lines(rows: list[Row]) -> Iterator[Line]:
    """One line a method and precision."""
    for row in rows:
        shown = {"captured": row["obstacle"] or "yes", "weights differ by": f"{row['difference']:.1e}"}
        yield tuple(row[word] for word in WORDS), shown
