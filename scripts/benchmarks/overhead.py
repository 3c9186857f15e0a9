"""A full SAC update under every combiner, and what it is measured against."""

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from agents.sac import MultiTaskSAC
from envs.metaworld import ACTION_SIZE, OBSERVATION_SIZE
from mtrl import combiners
from mtrl.combiners import Combiner
from mtrl.gradients import Combination, TaskBatched
from scripts.benchmarks.limits import PlainSAC, matrix_products
from scripts.benchmarks.timing import Update, seconds, tracked
from scripts.benchmarks.updates import chosen, make_agent, make_update

try:
    from torchjd.aggregation import PCGrad, PCGradWeighting
    from torchjd.autogram import Engine
    from torchjd.autojac import backward, jac_to_grad
except ImportError:
    Engine = None  # type: ignore[assignment, misc]

RIVAL_REPEATS = 2
"""Rivals are repeated less: at 50 tasks, one of their updates takes as long as all methods here together."""


class RetainGraphLoop(TaskBatched):
    """The usual way to per-task gradients: one backward pass per task through the joint graph."""

    def backward(self, losses: Tensor, combiner: Combiner, *, scale: float = 1.0, insight: bool = False) -> Combination:
        """As `TaskBatched.backward`."""
        rows = [torch.autograd.grad(loss, self.parameters, retain_graph=True) for loss in losses]
        jacobian = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
        update = combiner.combine(losses, jacobian) * scale
        pieces = torch.split(update, [parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        return Combination(losses.detach(), None, None, None, update.norm())


class TorchJDJacobian(TaskBatched):
    """TorchJD's ``autojac`` with its own PCGrad."""

    def backward(self, losses: Tensor, combiner: Combiner, *, scale: float = 1.0, insight: bool = False) -> Combination:
        """As `TaskBatched.backward`; the combiner is TorchJD's."""
        backward(losses * scale, inputs=self.parameters)
        jac_to_grad(self.parameters, PCGrad())
        return Combination(losses.detach(), None, None, None, torch.zeros(()))


class TorchJDGramian(TaskBatched):
    """TorchJD's ``autogram``, told that tasks are the batch dimension, with its own PCGrad."""

    def __init__(self, network: nn.Module, num_tasks: int) -> None:
        super().__init__(network, num_tasks)
        self.engine = Engine(network, batch_dim=0)

    @contextmanager
    def record(self) -> Iterator[None]:
        """As `TaskBatched.record`; the engine sees these losses alone, not the critics' part in the actor's."""
        self.engine._gramian_accumulator.reset()
        self.engine._target_edges.reset()
        for computer in self.engine._gramian_computers.values():
            computer.reset()
        paused = self.engine._module_hook_manager.gramian_accumulation_phase
        paused.value = False
        with super().record():
            yield
        paused.value = True

    def backward(self, losses: Tensor, combiner: Combiner, *, scale: float = 1.0, insight: bool = False) -> Combination:
        """As `TaskBatched.backward`; the combiner is TorchJD's."""
        weights = PCGradWeighting()(self.engine.compute_gramian(losses))
        gradients = torch.autograd.grad(losses, self.parameters, weights * scale, retain_graph=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return Combination(losses.detach(), weights, None, None, torch.zeros(()))


class LinearTwinCritic(nn.Module):
    """Two critics of plain layers, for ``autogram``, whose batch dimension has to come first in every layer."""

    def __init__(self, observation_size: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        sizes = [observation_size + ACTION_SIZE, *hidden_sizes, 1]
        self.members = nn.ModuleList()
        for _ in range(2):
            layers = [(nn.Linear(i, o), nn.ReLU()) for i, o in itertools.pairwise(sizes)]
            self.members.append(nn.Sequential(*[layer for pair in layers for layer in pair][:-1]))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """As `agents.networks.TwinCritic`."""
        x = torch.cat([observations, actions], -1)
        return torch.stack([member(x).squeeze(-1) for member in self.members])


def use_linear_critics(agent: MultiTaskSAC, hidden_sizes: Sequence[int]) -> None:
    """Gives an agent critics that ``autogram`` can read."""
    size = OBSERVATION_SIZE + len(agent.tasks)
    for name in ("critic", "target_critic"):
        setattr(agent, name, LinearTwinCritic(size, hidden_sizes).to(agent.device))
    agent.optimizers["critic"] = torch.optim.Adam(agent.critic.parameters(), fused=True)


# All with PCGrad
RIVALS: dict[str, type[TaskBatched]] = {
    "retain_graph_loop": RetainGraphLoop,
    "torchjd_autojac": TorchJDJacobian,
    "torchjd_autogram": TorchJDGramian,
}


def make_rival(agent: MultiTaskSAC, name: str) -> Update:
    """The agent's full update with PCGrad by a rival's way to per-task gradients."""
    num_tasks = len(agent.tasks)
    batched = RIVALS[name](agent.critic, num_tasks), RIVALS[name](agent.actor, num_tasks)
    return make_update(agent, "pcgrad", batched)


YARDSTICKS: dict[str, Callable[[MultiTaskSAC], Update]] = {
    "matrix_products": matrix_products,
    "plain_sac": lambda agent: PlainSAC(agent).update,
}


def needs_of(name: str) -> str:
    """What a row of the table is: what its method needs, or what else it shows."""
    if name in YARDSTICKS:
        return "yardstick"
    return "rival" if name in RIVALS else combiners.get(name).needs


def overhead(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Times the full SAC update under every method, each right after unitary's, in rounds over all methods."""
    names = chosen(arguments.methods, [*combiners.names(), *RIVALS, *YARDSTICKS])
    rows: list[dict[str, Any]] = []
    for num_tasks, batch_size in arguments.cases:
        agent = make_agent(num_tasks, batch_size, arguments.hidden_sizes, device)
        unitary = make_update(agent, "unitary")
        updates: dict[str, Update] = {}
        for name in names:
            if name.startswith("torchjd") and Engine is None:
                continue
            if name in YARDSTICKS:
                updates[name] = YARDSTICKS[name](agent)
                continue
            own = agent
            if name == "torchjd_autogram":
                own = make_agent(num_tasks, batch_size, arguments.hidden_sizes, device)
                use_linear_critics(own, arguments.hidden_sizes)
            updates[name] = (make_rival if name in RIVALS else make_update)(own, name)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in updates}
        title = f"{num_tasks} tasks x {batch_size} samples"
        for round_ in tracked(range(1 + arguments.repeats), title):
            for name, update in updates.items():
                if name in RIVALS and not 0 < round_ <= RIVAL_REPEATS:
                    continue
                pair = seconds(unitary, device), seconds(update, device)
                if round_ > 0:  # the first one warms up
                    times[name].append(pair)
        for name in names:
            row = {"tasks": num_tasks, "batch_size": batch_size, "method": name}
            row["needs"] = needs_of(name)
            if name in times:
                row["unitary_seconds"], row["seconds"] = zip(*times[name], strict=True)
                row["median"] = statistics.median(row["seconds"])
                row["ratio"] = statistics.median(time_ / base for base, time_ in times[name])
            rows.append(row)
    return rows


def overhead_table(rows: list[dict[str, Any]]) -> Table:
    """One line a method, one column a case."""
    table = Table(title="full SAC update: time relative to unitary scalarization's (and in milliseconds)")
    table.add_column("method", no_wrap=True)
    table.add_column("needs")
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cell = f"{row['ratio']:.2f} ({1e3 * row['median']:.0f})" if "ratio" in row else "not installed"
        lines.setdefault((row["method"], row["needs"]), []).append(cell)
    for case in dict.fromkeys(f"{row['tasks']} x {row['batch_size']}" for row in rows):
        table.add_column(case, justify="right")
    order = ["losses", "gramian", "jacobian", "yardstick", "rival"]
    for method, needs in sorted(lines, key=lambda line: (order.index(line[1]), line[0])):
        table.add_row(method, needs, *lines[method, needs])
    return table
