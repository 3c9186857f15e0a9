"""One update of a model on one batch, by any method: what a training loop calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner
from mtrl.errors import InputError, unknown_name
from mtrl.gradients import backward
from mtrl.supervised.problem import MultiTaskModel, Task

Batch = tuple[Tensor, dict[str, Tensor]]
WRT = ("shared", "last", "representation")
Wrt = Literal["shared", "last", "representation"]


@dataclass
class OptimizerOptions:
    """The optimizer of all parameters.

    Attributes:
        name: ``adam`` or ``sgd``.
        learning_rate: at the beginning.
        weight_decay: coupled, an L2 penalty, as in the papers.
        momentum: of ``sgd``.

    Raises:
        InputError: on an unknown name or a value out of range.
    """

    name: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.name not in ("adam", "sgd"):
            raise unknown_name("optimizer", self.name, ("adam", "sgd"))
        if self.name == "adam" and self.momentum:
            raise InputError("optimizer.momentum is for optimizer.name=sgd")
        for key, value, limit in (
            ("learning_rate", self.learning_rate, float("inf")),
            ("weight_decay", self.weight_decay, float("inf")),
            ("momentum", self.momentum, 1.0),
        ):
            if not 0 <= value < limit:
                raise InputError(f"optimizer.{key}: expected a number in [0, {limit:g}), got {value}")

    def make(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer for some parameters."""
        if self.name == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, momentum=self.momentum
        )


class Update(Protocol):
    """A method: how one batch changes the model."""

    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """Updates the model.

        Args:
            batch: inputs, and targets by task.
            draw: gives another, independent batch of the training set.
            moved: to be called after every change of the shared parameters.

        Returns:
            Scalars to log, ``loss/<task>`` among them.
        """

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the learning rate of the epoch that begins."""

    def state_dict(self) -> dict[str, Any]:
        """All state but the model's."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`."""


def task_losses(
    tasks: Mapping[str, Task], outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> list[Tensor]:
    """The losses in the order of the tasks."""
    return [task.loss(outputs[name], targets[name]) for name, task in tasks.items()]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets it for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def named(kind: str, tasks: Mapping[str, Task], values: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
    """Detached values by key: ``<kind>/<task>``."""
    return {f"{kind}/{name}": value.detach() for name, value in zip(tasks, values, strict=True)}


class CombinedUpdate:
    """One step along the gradients that a combiner has combined.

    Args:
        model: what learns.
        tasks: by name.
        combiner: made for them.
        optimizer: makes the optimizer.
        wrt: by what per-task gradients are taken: all ``shared`` parameters; those of the ``last`` shared layer,
            whose weights then apply to all; or the shared ``representation`` (MGDA-UB, Sener & Koltun, 2018).

    Raises:
        InputError: on an unknown ``wrt``, or one that the method cannot use.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Mapping[str, Task],
        combiner: Combiner,
        optimizer: OptimizerOptions,
        wrt: Wrt = "shared",
    ) -> None:
        if wrt not in WRT:
            raise unknown_name("wrt", wrt, WRT)
        if wrt == "last" and combiner.needs == "jacobian":
            raise InputError(f"wrt=last: {combiner.name} combines gradients, not losses; use shared or representation")
        self.model, self.tasks, self.combiner, self.wrt = model, tasks, combiner, wrt
        self.shared, self.specific = list(model.encoder.parameters()), list(model.heads.parameters())
        self.optimizer = optimizer.make([*self.shared, *self.specific])

    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """See `Update`."""
        inputs, targets = batch
        aliases = [z.view_as(z) for z in self.model.representations(inputs)]
        losses = task_losses(self.tasks, self.model.outputs(aliases), targets)
        metrics = self._observe(losses, aliases)
        self.optimizer.zero_grad()
        combination = backward(
            losses,
            self.combiner,
            shared=self.shared,
            specific=self.specific,
            representation=aliases if self.wrt == "representation" and self.combiner.needs != "losses" else None,
            measured=self.model.last_shared_layer() if self.wrt == "last" else None,
        )
        self.optimizer.step()
        moved()
        if self.combiner.needs_losses_after_step:
            with torch.no_grad():
                self.combiner.after_step(torch.stack(task_losses(self.tasks, self.model(inputs), targets)))
        metrics |= named("loss", self.tasks, combination.losses)
        if combination.weights is not None:
            metrics |= named("weight", self.tasks, combination.weights)
        return metrics

    def _observe(self, losses: Sequence[Tensor], aliases: Sequence[Tensor]) -> dict[str, Tensor]:
        """What a method that is more than its combiner does before the step, and logs; ``aliases`` are the heads' z."""
        return {}

    def set_learning_rate(self, learning_rate: float) -> None:
        """See `Update`."""
        set_learning_rate(self.optimizer, learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """See `Update`."""
        return {"optimizer": self.optimizer.state_dict(), "combiner": self.combiner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Update`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.combiner.load_state_dict(state["combiner"])


class IndividualUpdates:
    """Alternating steps, one group of tasks after the other on the same batch (Pascal et al., equations 4 to 8).

    With one optimizer for all (MTL-IUS, equation 6) its moment estimates mix the groups; with one per group on
    the shared parameters (MTL-IO, equation 7) they do not. Each step minimises the sum of its group's losses.

    Args:
        model: what learns.
        tasks: by name.
        groups: their names; see `random_groups`.
        optimizer: makes the optimizers.
        individual_optimizers: one moment memory per group (IO), or one for all (IUS).
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Mapping[str, Task],
        groups: Sequence[Sequence[str]],
        optimizer: OptimizerOptions,
        *,
        individual_optimizers: bool,
    ) -> None:
        self.model, self.tasks, self.groups = model, tasks, groups
        shared = list(model.encoder.parameters())
        count = len(groups) if individual_optimizers else 1
        self.optimizers = [optimizer.make(shared) for _ in range(count)]
        self.head_optimizer = optimizer.make(list(model.heads.parameters()))

    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """See `Update`."""
        inputs, targets = batch
        found: dict[str, Tensor] = {}
        for number, group in enumerate(self.groups):
            z = self.model.encoder(inputs)
            losses = [self.tasks[name].loss(self.model.heads[name](z), targets[name]) for name in group]
            self.model.zero_grad()  # gradients of other heads are None, so that their optimizer leaves them alone
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizers[number % len(self.optimizers)].step()
            self.head_optimizer.step()
            moved()
            found |= zip(group, losses, strict=True)
        return named("loss", self.tasks, [found[name] for name in self.tasks])

    def set_learning_rate(self, learning_rate: float) -> None:
        """See `Update`."""
        for optimizer in (*self.optimizers, self.head_optimizer):
            set_learning_rate(optimizer, learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """See `Update`."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "head_optimizer": self.head_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Update`."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.head_optimizer.load_state_dict(state["head_optimizer"])


def random_groups(names: Sequence[str], count: int | None, seed: int) -> list[list[str]]:
    """Distributes tasks equally and at random (Pascal et al., section 3.4); sizes differ by one at most.

    Args:
        names: the tasks.
        count: how many groups; None is one per task.
        seed: draws the partition.

    Raises:
        InputError: if ``count`` is not between 1 and the number of tasks.
    """
    if count is None:
        return [[name] for name in names]
    if not 1 <= count <= len(names):
        raise InputError(f"groups: expected 1 to {len(names)} for {len(names)} tasks, got {count}")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return [[names[i] for i in order[group::count]] for group in range(count)]
