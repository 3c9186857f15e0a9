"""One step along what a combiner makes of the per-task gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtrl.errors import InputError
from mtrl.gradients import Aliases, backward
from mtrl.gradients.pipeline import DEFAULT_MEMORY_LIMIT
from mtrl.supervised.methods import method
from mtrl.supervised.problem import Batch
from mtrl.supervised.tasks import task_losses
from mtrl.supervised.updates import Setup, Update, named


@method("combined")
class CombinedUpdate(Update):
    """One step along the gradients that a combiner has combined; `InputError` if it cannot use ``wrt``."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.combiner, self.wrt = setup.combiner, setup.wrt
        limit = setup.memory_limit
        self.memory_limit = DEFAULT_MEMORY_LIMIT if limit is None else int(limit * 2**30)
        if self.wrt == "last" and self.combiner.needs == "jacobian":
            name = self.combiner.name
            raise InputError(f"wrt=last: {name} combines gradients, not losses; use shared or representation")
        self.shared, self.specific = list(self.model.encoder.parameters()), list(self.model.heads.parameters())
        self.stateful["combiner"] = self.combiner

    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """See `Update`."""
        inputs, targets = batch
        aliases = Aliases(z.view_as(z) for z in self.model.representations(inputs))
        losses = task_losses(self.tasks, self.model.outputs(aliases), targets, self.replicas)
        metrics = self._observe(losses, aliases)
        self.optimizer.zero_grad()
        combination = backward(
            losses,
            self.combiner,
            shared=self.shared,
            specific=self.specific,
            representation=aliases if self.wrt == "representation" else None,
            measured=self.model.last_shared_layer() if self.wrt == "last" else None,
            memory_limit=self.memory_limit,
            group=self.replicas.group,
        )
        self.optimizer.step()
        moved()
        if self.combiner.needs_losses_after_step:
            with torch.no_grad():
                after = task_losses(self.tasks, self.model(inputs), targets, self.replicas)
                self.combiner.after_step(self.replicas.mean_(torch.stack(after)))
        metrics |= named("loss", self.tasks, combination.losses)
        if combination.weights is not None:
            metrics |= named("weight", self.tasks, combination.weights)
        if self.combiner.stationary:
            metrics["count/stationary"] = torch.ones(())
        return metrics

    def _observe(self, losses: Sequence[Tensor], aliases: Sequence[Tensor]) -> dict[str, Tensor]:
        """What a method that is more than its combiner does before the step, and logs; ``aliases`` are the heads' z."""
        return {}
