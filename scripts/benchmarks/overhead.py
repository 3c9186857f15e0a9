"""A full SAC update under every combiner, as a ratio to unitary scalarization's."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from statistics import median

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from agents.sac import MultiTaskSAC
from mtrl import combiners
from mtrl.gradients import TaskBatched
from mtrl.gradients.pipeline import Gradients, Source
from mtrl.gradients.shared_input import ByParameters
from scripts.benchmarks.limits import linear_critics, matrix_products, plain_sac
from scripts.benchmarks.timing import Line, Row, Work, interleaved, milliseconds, ratio, seconds
from scripts.benchmarks.updates import chosen, make_agent, make_update, modes

try:
    from torchjd.aggregation import PCGrad, PCGradWeighting
    from torchjd.autogram import Engine
    from torchjd.autojac import backward, jac_to_grad
except ImportError:
    Engine = None  # type: ignore[assignment, misc]


TITLE = "full SAC update: time relative to unitary scalarization's (and in milliseconds)"
WORDS = ("method", "needs")


class RetainGraphLoop(TaskBatched):
    """The usual way to per-task gradients: one backward pass per task through the joint graph."""

    def source(self, losses: Tensor, scaler: GradScaler | None = None, *, keep: bool = True) -> Source:
        """As `TaskBatched.source`."""
        return ByParameters(list(losses), self.parameters, (), False, self.memory_limit, keep=keep)


class TorchJDJacobian(TaskBatched):
    """TorchJD's ``autojac`` with its own PCGrad."""

    def gramian(self) -> Tensor:
        """Anything: TorchJD weighs by itself."""
        return torch.eye(self.num_tasks, device=self.parameters[0].device)

    @torch.enable_grad()
    def weighted(self, weights: Tensor, scale: float) -> Gradients:
        """The gradients that TorchJD combines."""
        assert self._losses is not None
        backward(self._losses * scale, inputs=self.parameters)
        jac_to_grad(self.parameters, PCGrad())
        found = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return found


class TorchJDGramian(TorchJDJacobian):
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

    @torch.enable_grad()
    def weighted(self, weights: Tensor, scale: float) -> Gradients:
        """The gradients in TorchJD's weights."""
        assert self._losses is not None
        weights = PCGradWeighting()(self.engine.compute_gramian(self._losses))
        return list(torch.autograd.grad(self._losses, self.parameters, weights * scale, retain_graph=True))


# All with PCGrad
RIVALS: dict[str, type[TaskBatched]] = {
    "retain_graph_loop": RetainGraphLoop,
    "torchjd_autojac": TorchJDJacobian,
    "torchjd_autogram": TorchJDGramian,
}
YARDSTICKS: dict[str, Callable[[MultiTaskSAC], Work]] = {"matrix_products": matrix_products, "plain_sac": plain_sac}
PORTION = 10
"""Updates that are timed together on a GPU: more than are done before one is captured, and no wait for each."""
_KINDS = dict.fromkeys(RIVALS, "rival") | dict.fromkeys(YARDSTICKS, "yardstick")


def measure(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Times the full SAC update under every method, each right after unitary's, in rounds over all methods.

    Rivals take part in fewer: at 50 tasks, one of their updates takes as long as all methods here together. No graph
    can hold them: they and the yardsticks are measured where no update is captured, unitary's neither. TorchJD's
    ``autogram`` does not compute under autocast, and takes no part in bf16.
    """
    names = chosen(arguments.methods, [*combiners.names(), *_KINDS])
    portion = PORTION if device.type == "cuda" else 1
    rows: list[Row] = []
    for (num_tasks, batch_size), mode in product(arguments.cases, modes(arguments, device)):
        make = partial(make_agent, num_tasks, batch_size, arguments.hidden_sizes, device, mode)
        measured = [name for name in names if mode.compile == "off" or name not in _KINDS]
        if mode.precision == "bf16":
            measured = [name for name in measured if name != "torchjd_autogram"]
        installed = [name for name in measured if Engine is not None or not name.startswith("torchjd")]
        agent = make()
        unitary = make_update(agent, "unitary")

        def pair(update: Work, unitary: Work = unitary) -> tuple[float, float]:
            return seconds(unitary, device, portion), seconds(update, device, portion)

        costs = {name: partial(pair, _update(name, agent, make)) for name in installed}
        title = f"{num_tasks} tasks x {batch_size} samples, {' '.join(mode.words.values())}"
        base, own = interleaved(costs, arguments.repeats, title, rarely=RIVALS)
        for name in measured:
            needs = _KINDS.get(name) or combiners.get(name).needs
            row: Row = {"tasks": num_tasks, "batch_size": batch_size, "method": name, "needs": needs} | mode.words
            if name in own:
                row |= {"unitary_seconds": base[name], "seconds": own[name]}
                row |= {"median": median(own[name]), "ratio": ratio(own[name], base[name])}
            rows.append(row)
    return rows


def _update(name: str, agent: MultiTaskSAC, make: Callable[[], MultiTaskSAC]) -> Work:
    """What a row of the table measures, on the agent that all share where that is possible."""
    if name in YARDSTICKS:
        return YARDSTICKS[name](agent)
    if name not in RIVALS:
        return make_update(agent, name)
    if name == "torchjd_autogram":  # its batch dimension has to come first in every layer
        agent = make()
        agent.critic, agent.target_critic = linear_critics(agent), linear_critics(agent)
        agent.optimizers["critic"] = torch.optim.Adam(agent.critic.parameters(), fused=True)
    networks = {"critic": agent.critic, "actor": agent.actor}
    return make_update(agent, "pcgrad", {key: RIVALS[name](own, len(agent.tasks)) for key, own in networks.items()})


def lines(rows: list[Row]) -> Iterator[Line]:
    """One line a method, one column a case."""
    order = ["losses", "gramian", "jacobian", "yardstick", "rival"]
    for row in sorted(rows, key=lambda row: (order.index(row["needs"]), row["method"])):
        cell = f"{row['ratio']:.2f} ({milliseconds(row['median'])})" if "ratio" in row else "not installed"
        mode = f" {row['precision']}" + (" captured" if row["launches"] == "captured" else "")
        yield (row["method"], row["needs"]), {f"{row['tasks']} x {row['batch_size']}{mode}": cell}
