"""One update of a model on one batch, by any method: what a training loop calls."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, distributed, nn

from mtrl.combiners import Combiner
from mtrl.errors import InputError
from mtrl.gradients.distributed import Replicas
from mtrl.ranges import FractionBelowOne, NotNegative, check, check_fields
from mtrl.supervised.problem import Batch, Benchmark
from mtrl.supervised.tasks import Task

Wrt = Literal["shared", "last", "representation"]


@dataclass
class OptimizerOptions:
    """The optimizer of all parameters: ``adam``, or ``sgd`` with a momentum; `InputError` on values out of range.

    The learning rate is that of the beginning. The weight decay is coupled, an L2 penalty, as in the papers.
    """

    name: Annotated[str, Literal["adam", "sgd"]] = "adam"
    learning_rate: NotNegative = 1e-3
    weight_decay: NotNegative = 0.0
    momentum: FractionBelowOne = 0.0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_fields(self, "optimizer.")
        if self.name == "adam" and self.momentum:
            raise InputError("optimizer.momentum is for optimizer.name=sgd")

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model's parameters."""
        if self.name == "adam":
            return torch.optim.Adam(model.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(model.parameters(), self.learning_rate, self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Setup:
    """What a method is made from: the benchmark's model is on the device, the combiner is made for its tasks.

    Per-task gradients are taken by (``wrt``, `InputError` on another) all ``shared`` parameters; those of the ``last``
    shared layer, whose weights then apply to all; or the shared ``representation`` (MGDA-UB, Sener & Koltun, 2018).
    The seed is that of what a method draws. A ``group`` is of processes that train one model, each on its own part of
    every batch.
    """

    benchmark: Benchmark
    combiner: Combiner
    optimizer: OptimizerOptions
    wrt: Wrt = "shared"
    seed: int = 0
    group: "distributed.ProcessGroup | None" = None
    memory_limit: float | None = None
    """GiB for per-task gradients by parameters; None is 2, see `mtrl.gradients.backward`."""

    def __post_init__(self) -> None:
        """Refuses another ``wrt``."""
        check("wrt", self.wrt, Wrt)


class Update(ABC):
    """A method, made from a `Setup`: how one batch changes the model."""

    combines: ClassVar[bool] = True
    """Whether it has a use for a combiner."""
    usual_wrt: ClassVar[Wrt] = "shared"
    """The ``wrt`` by default."""
    second_batch: ClassVar[bool] = False
    """Whether a step draws another batch."""

    def __init__(self, setup: Setup) -> None:
        self.model, self.tasks = setup.benchmark.model, setup.benchmark.tasks
        self.replicas = Replicas.of(setup.group)
        """The processes whose parts of the batch are a whole one."""
        self.optimizer = setup.optimizer.make(self.model)
        """Of all parameters that the model has now."""
        self.rates = {self.optimizer: 1.0}
        """The optimizers that follow the learning rate, and how many times as large theirs is."""
        self.stateful: dict[str, Any] = {"optimizer": self.optimizer}
        """What has a ``state_dict``, by name; not the model."""

    @abstractmethod
    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """Updates the model on a batch; returns scalars to log, ``loss/<task>`` among them, and ``count/<counter>``.

        The batch is this process's part; all else is to be that of the whole one, as what `replicas` average is.
        ``draw`` gives a method with a `second_batch` another, independent batch of the training set; ``moved`` is to be
        called after every change of the shared parameters.
        """

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the learning rate of the epoch that begins."""
        for optimizer, rate in self.rates.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate

    def _average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Averages ``.grad`` of the optimizer's parameters over the processes."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        averaged = self.replicas.averaged([parameter.grad for parameter in parameters], parameters)
        for parameter, gradient in zip(parameters, averaged, strict=True):
            parameter.grad = gradient

    def _mean_losses(self, losses: Sequence[Tensor]) -> Tensor:
        """The losses ``[T]`` of the whole batch, detached, from those of this process's part."""
        return self.replicas.mean_(torch.stack(list(losses)).detach())

    def state_dict(self) -> dict[str, Any]:
        """All state but the model's."""
        return {name: part.state_dict() for name, part in self.stateful.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`."""
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])


def named(kind: str, tasks: Mapping[str, Task], values: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
    """Detached values by key: ``<kind>/<task>``."""
    return {f"{kind}/{name}": value.detach() for name, value in zip(tasks, values, strict=True)}
