"""One step along what a combiner makes of the per-task gradients."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mtrl.errors import InputError
from mtrl.gradients import Aliases, NonFiniteError
from mtrl.gradients.graphs import Graphs, OnItsWay, warn
from mtrl.gradients.pipeline import DEFAULT_MEMORY_LIMIT, Source, gradients, look, norm_of, weigh, wide_type
from mtrl.gradients.shared_input import source_of
from mtrl.run import random_state
from mtrl.supervised.methods import method
from mtrl.supervised.problem import Batch
from mtrl.supervised.tasks import Targets, complete_losses, task_losses
from mtrl.supervised.updates import Setup, Update, named


class Pieces(NamedTuple):
    """What a step does on the device; alone, none reads anything back, so that each can be a CUDA graph."""

    look: Callable[[Any, dict[str, Targets]], "Told"]
    combine: Callable[[Tensor], Tensor]
    losses_after: Callable[[], Tensor]


class Told(NamedTuple):
    """What the combiner looks at."""

    losses: Tensor
    """``[T]``, of the whole batch."""
    seen: Tensor | None
    """The Gramian, or the Jacobian; None where the method needs neither."""


class Looked(NamedTuple):
    """What a step knows of its batch."""

    batch: Batch
    source: Source
    observed: dict[str, Tensor]


@method("combined")
class CombinedUpdate(Update):
    """One step along the gradients that a combiner has combined; `InputError` if it cannot use ``wrt``.

    On CUDA, steps of a benchmark that is `capturable` and complete are a few graphs, if the combiner allows it.
    """

    captures: ClassVar[bool] = True
    """Whether the method adds nothing to a step that graphs could not hold."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.combiner, self.wrt = setup.combiner, setup.wrt
        limit = setup.memory_limit
        self.memory_limit = DEFAULT_MEMORY_LIMIT if limit is None else int(limit * 2**30)
        if self.wrt == "last" and self.combiner.needs == "jacobian":
            name = self.combiner.name
            raise InputError(f"wrt=last: {name} combines gradients, not losses; use shared or representation")
        self.shared, self.specific = list(self.model.encoder.parameters()), list(self.model.heads.parameters())
        self.device = self.shared[0].device
        self.stateful["combiner"] = self.combiner
        complete = self.replicas.size == 1 and setup.benchmark.complete
        self._losses = complete_losses if complete else partial(task_losses, replicas=self.replicas)
        self._looked: Looked | None = None
        self.capturable = complete and setup.benchmark.capturable and self.captures
        self.graphs = self.capturable and self.device.type == "cuda"
        """Whether pieces are to be graphs: what the first one has looked at is in memory that they all go on with."""
        self.pieces = self.graphed_pieces() if self.graphs else self.plain_pieces()

    def plain_pieces(self) -> Pieces:
        """The pieces, operation by operation."""
        return Pieces(self._look, self._combine, self._losses_after)

    def graphed_pieces(self) -> Pieces:
        """The pieces as graphs, if the combiner allows it."""
        if self.combiner.needs_change:
            warn(f"updates, for combiner '{self.combiner.name}' does not look at the same in every update")
            return self.plain_pieces()
        graphs = Graphs(self.plain_pieces(), self.device, random_state.of_device(self.device), ())
        return Pieces(*graphs.functions)

    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """See `Update`."""
        needs = self.combiner.needs  # which weighing may change
        losses, seen = self.pieces.look(*batch)
        looked = self._looked
        assert looked is not None
        if needs == "jacobian":
            losses = losses.clone()  # what a graph returns, its next replay overwrites
            found = weigh(self.combiner, losses, seen, looked.source.activations)
        else:
            on_their_way = OnItsWay(losses), None if seen is None else OnItsWay(seen)
            losses, seen = on_their_way[0].wait(), None if on_their_way[1] is None else on_their_way[1].wait()
            found = weigh(self.combiner, losses, seen)
        if not math.isfinite(self.pieces.combine(found)):
            combined = [parameter.grad for parameter in looked.source.parameters]
            raise NonFiniteError("gradient", looked.source.offender(combined))
        self.optimizer.step()
        moved()
        if self.combiner.needs_losses_after_step:
            self.combiner.after_step(self.pieces.losses_after().cpu())
        if not self.graphs:
            self._looked = None
        metrics = looked.observed | named("loss", self.tasks, losses)
        if needs != "jacobian":
            metrics |= named("weight", self.tasks, found)
        if self.combiner.stationary:
            metrics["count/stationary"] = torch.ones(())
        return metrics

    def _look(self, inputs: Any, targets: dict[str, Targets]) -> Told:
        """The losses, and what the combiner looks at beside them."""
        aliases = Aliases(z.view_as(z) for z in self.model.representations(inputs))
        losses = self._losses(self.tasks, self.model.outputs(aliases), targets)
        observed = self._observe(losses, aliases)
        of_batch, source = source_of(
            losses,
            self.combiner,
            shared=self.shared,
            specific=self.specific,
            representation=aliases if self.wrt == "representation" else None,
            measured=self.model.last_shared_layer() if self.wrt == "last" else None,
            memory_limit=self.memory_limit,
            replicas=self.replicas,
        )
        self._looked = Looked((inputs, targets), source, observed)
        with torch.no_grad():
            return Told(of_batch.to(wide_type([of_batch])), look(self.combiner, source))

    def _combine(self, found: Tensor) -> Tensor:
        """Fills ``.grad`` from what `weigh` has found; the gradient's norm."""
        assert self._looked is not None
        source = self._looked.source
        with torch.no_grad():
            combined = gradients(self.combiner, source, found.to(self.device, non_blocking=True), 1.0)
            for parameter, gradient in zip(source.parameters, combined, strict=True):
                parameter.grad = gradient
            return norm_of(combined)

    @torch.no_grad()
    def _losses_after(self) -> Tensor:
        """The losses on the same batch, after the step."""
        assert self._looked is not None
        inputs, targets = self._looked.batch
        return self.replicas.mean_(torch.stack(self._losses(self.tasks, self.model(inputs), targets)))

    def _observe(self, losses: Sequence[Tensor], aliases: Sequence[Tensor]) -> dict[str, Tensor]:
        """What a method that is more than its combiner does before the step, and logs; ``aliases`` are the heads' z."""
        return {}
