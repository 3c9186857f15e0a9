"""Alternating steps: one group of tasks after the other, with one moment memory or one for each."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from mtrl.ranges import Count
from mtrl.supervised.methods import method
from mtrl.supervised.problem import Batch
from mtrl.supervised.tasks import task_losses
from mtrl.supervised.updates import Setup, Update, named
from mtrl.task_groups import random_groups


@method("individual_steps")
class IndividualSteps(Update):
    """MTL-IUS: steps for one group of tasks after the other on the same batch (Pascal et al., equations 4 to 6).

    Each step minimises the sum of its group's losses; ``groups`` is how many there are, see `random_groups`. There is
    one optimizer, whose moment estimates mix the groups.
    """

    combines = False
    memory_per_group: ClassVar[bool] = False

    def __init__(self, setup: Setup, *, groups: Count | None = None) -> None:
        super().__init__(setup)
        self.groups = random_groups(list(self.tasks), groups, setup.seed)
        further = self.groups[1:] if self.memory_per_group else []
        self.optimizers = [self.optimizer, *(setup.optimizer.make(self.model) for _ in further)]
        self.rates = dict.fromkeys(self.optimizers, 1.0)
        self.stateful = {f"optimizer_{number}": made for number, made in enumerate(self.optimizers)}

    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """See `Update`."""
        inputs, targets = batch
        found: dict[str, Tensor] = {}
        for number, group in enumerate(self.groups):
            z = self.model.encode(inputs)
            outputs = {name: self.model.output(name, z) for name in group}
            losses = task_losses({name: self.tasks[name] for name in group}, outputs, targets, self.replicas)
            self.model.zero_grad()  # gradients of other heads are None, so that the optimizer leaves them alone
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimizer = self.optimizers[number % len(self.optimizers)]
            self._average_gradients(optimizer)
            optimizer.step()
            moved()
            found |= zip(group, losses, strict=True)
        return named("loss", self.tasks, self._mean_losses([found[name] for name in self.tasks]))


@method("individual_optimizers")
class IndividualOptimizers(IndividualSteps):
    """MTL-IO (Pascal et al., equation 7): each group has an optimizer of its own on the shared parameters."""

    memory_per_group = True
