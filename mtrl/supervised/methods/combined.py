"""One step along what a combiner makes of the per-task gradients."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mtrl.combiners import Combiner
from mtrl.errors import InputError
from mtrl.gradients import backward
from mtrl.supervised.methods import method
from mtrl.supervised.problem import MultiTaskModel, Task
from mtrl.supervised.updates import Batch, OptimizerOptions, Update, Wrt, named, task_losses


@method("combined")
class CombinedUpdate(Update):
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
        if wrt == "last" and combiner.needs == "jacobian":
            raise InputError(f"wrt=last: {combiner.name} combines gradients, not losses; use shared or representation")
        self.shared, self.specific = list(model.encoder.parameters()), list(model.heads.parameters())
        self.optimizer = optimizer.make([*self.shared, *self.specific])
        super().__init__(model, tasks, {"optimizer": self.optimizer})
        self.combiner, self.wrt = combiner, wrt
        self.stateful["combiner"] = combiner

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
