"""Alternating steps: one group of tasks after the other, with one moment memory or one for each."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mtrl.errors import InputError
from mtrl.ranges import Count
from mtrl.supervised.methods import method
from mtrl.supervised.problem import MultiTaskModel, Task
from mtrl.supervised.updates import Batch, OptimizerOptions, Update, named


class IndividualUpdates(Update):
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
        shared = list(model.encoder.parameters())
        self.shared_optimizers = [optimizer.make(shared) for _ in (groups if individual_optimizers else groups[:1])]
        self.head_optimizer = optimizer.make(list(model.heads.parameters()))
        numbered = {f"optimizer_{number}": made for number, made in enumerate(self.shared_optimizers)}
        super().__init__(model, tasks, {**numbered, "head_optimizer": self.head_optimizer})
        self.groups = groups

    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """See `Update`."""
        inputs, targets = batch
        found: dict[str, Tensor] = {}
        for number, group in enumerate(self.groups):
            z = self.model.encoder(inputs)
            losses = [self.tasks[name].loss(self.model.heads[name](z), targets[name]) for name in group]
            self.model.zero_grad()  # gradients of other heads are None, so that their optimizer leaves them alone
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            self.shared_optimizers[number % len(self.shared_optimizers)].step()
            self.head_optimizer.step()
            moved()
            found |= zip(group, losses, strict=True)
        return named("loss", self.tasks, [found[name] for name in self.tasks])


@method("individual_steps")
def individual_steps(
    model: MultiTaskModel,
    tasks: Mapping[str, Task],
    optimizer: OptimizerOptions,
    seed: int = 0,
    *,
    groups: Count | None = None,
) -> IndividualUpdates:
    """MTL-IUS of random groups; ``groups`` says how many, None is one per task."""
    chosen = random_groups(list(tasks), groups, seed)
    return IndividualUpdates(model, tasks, chosen, optimizer, individual_optimizers=False)


@method("individual_optimizers")
def individual_optimizers(
    model: MultiTaskModel,
    tasks: Mapping[str, Task],
    optimizer: OptimizerOptions,
    seed: int = 0,
    *,
    groups: Count | None = None,
) -> IndividualUpdates:
    """MTL-IO of random groups; ``groups`` says how many, None is one per task."""
    chosen = random_groups(list(tasks), groups, seed)
    return IndividualUpdates(model, tasks, chosen, optimizer, individual_optimizers=True)


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
