"""Per-task gradients where all tasks share the input: through the representation, or loss by loss."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner
from mtrl.errors import InputError
from mtrl.gradients.pipeline import (
    DEFAULT_MEMORY_LIMIT,
    Combination,
    Gradients,
    Source,
    check_memory,
    combine,
    differentiate,
)


def fan_out(representation: Tensor, num_tasks: int) -> tuple[Tensor, ...]:
    """An alias of the shared representation per task: of these, one backward pass gives all tasks' gradients."""
    return tuple(representation.view_as(representation) for _ in range(num_tasks))


def backward(
    losses: Tensor | Sequence[Tensor],
    combiner: Combiner,
    *,
    shared: Iterable[Tensor],
    specific: nn.Module | Iterable[nn.Module | Tensor] = (),
    representation: Tensor | Sequence[Tensor] | None = None,
    measured: Iterable[Tensor] | None = None,
    weigh_specific: bool | None = None,
    scale: float = 1.0,
    insight: bool = False,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
) -> Combination:
    """Adds the combined gradient of T losses on a shared input to ``.grad``: see `pipeline.combine`.

    ``"losses"`` methods cost one plain backward pass. For the others, the per-task gradients are taken by the
    ``representation`` where one is given (MGDA-UB, Sener & Koltun, 2018, equation 5; IMTL; GradDrop), and otherwise by
    the shared parameters, one vector-Jacobian product per task. A Gramian method's weights then weigh the losses in
    one more backward pass, or its update is taken from the Jacobian where that was kept. A Jacobian method's direction
    for the representation is passed back through the encoder: shared parameters have to reach the losses through the
    representation alone.

    Args:
        losses: T scalars, as a tensor ``[T]`` or a sequence.
        combiner: the method, made for T tasks.
        shared: the parameters that all tasks share.
        specific: task-specific ones (a module, modules or parameters), which get their own losses' gradients.
        representation: the shared representation z that all heads read (any shape), or its T aliases from `fan_out`,
            with which one backward pass through the heads serves all tasks.
        measured: the shared parameters whose gradients make the Gramian, e.g. the last layer's; None is all of them.
        weigh_specific: whether task weights apply to specific parameters too; None is as in the method's paper.
        scale: a constant factor on every gradient.
        insight: form the Gramian even where the method does not need it; it does not change the update.
        memory_limit: bytes that per-task parameter gradients may take. Below what the Jacobian needs, Gramian methods
            go through the parameters in blocks (of at least one), at T vector-Jacobian products each.

    Raises:
        NonFiniteError: if a loss, gradient or weight is not finite; ``.grad`` is left as it was.
        InputError: if losses, combiner and representation do not fit together, options exclude each other, or a
            Jacobian that the method reads does not fit into ``memory_limit``.
    """
    scalars = _scalars(losses)
    shared_, specific_ = _trainable(shared), _trainable(_parameters(specific))
    measured_ = None if measured is None else _trainable(measured)
    _check_options(combiner, shared_, specific_, measured_, representation, weigh_specific)
    weigh = combiner.weights_specific if weigh_specific is None else weigh_specific
    weigh = weigh and combiner.needs != "jacobian"
    source: Source
    if representation is None:
        source = ByParameters(scalars, shared_, specific_, weigh, memory_limit, measured_)
    else:
        source = ByRepresentation(scalars, shared_, specific_, weigh, representation)
    return combine(torch.stack([s.detach() for s in scalars]), combiner, source, scale=scale, insight=insight)


def _check_options(
    combiner: Combiner,
    shared: Sequence[Tensor],
    specific: Sequence[Tensor],
    measured: Sequence[Tensor] | None,
    representation: object,
    weigh_specific: bool | None,
) -> None:
    if not shared or measured == []:
        raise InputError("no shared or no measured parameter is trainable")
    if {id(parameter) for parameter in shared} & {id(parameter) for parameter in specific}:
        raise InputError("a parameter is both shared and specific")
    if measured is not None and (representation is not None or combiner.needs == "jacobian"):
        raise InputError("'measured' is for Gramian methods without a representation")
    if weigh_specific and combiner.needs == "jacobian":
        raise InputError(f"{combiner.name} has no task weights to apply to specific parameters")


@dataclass
class _LossByLoss:
    """What the sources of this module share: losses that can be weighed, and the gradients of specific parameters.

    Attributes:
        losses: T scalars.
        shared: the parameters that all tasks share.
        specific: those that get their own losses' gradients.
        weigh: whether task weights apply to the specific parameters too.
        rows: the gradients of the specific parameters, one list per backward pass, where a pass took them along.
    """

    losses: Sequence[Tensor]
    shared: Sequence[Tensor]
    specific: Sequence[Tensor]
    weigh: bool
    rows: Sequence[Gradients] = field(default=(), init=False)

    @property
    def parameters(self) -> list[Tensor]:
        """See `Source`."""
        return [*self.shared, *self.specific]

    @property
    def num_shared(self) -> int:
        """See `Source`."""
        return len(self.shared)

    def weighted(self, weights: Tensor, scale: float) -> Gradients:
        """See `Source`: one more backward pass, of the weighted losses."""
        coefficients = list(weights * scale)
        if self.weigh:
            return differentiate(self.losses, self.parameters, coefficients)
        return differentiate(self.losses, self.shared, coefficients) + self._unweighted(scale)

    def squares(self) -> Tensor:
        """See `Source`."""
        rows = [differentiate([loss], self.parameters, [torch.ones_like(loss)]) for loss in self.losses]
        zero = self.losses[0].new_zeros(())
        return torch.stack([sum((g.square().sum() for g in row if g is not None), zero) for row in rows])

    def _unweighted(self, scale: float) -> Gradients:
        """The specific parameters' gradients of the losses as they are."""
        scales = [torch.full_like(loss, scale) for loss in self.losses]
        return self._from_rows(scales) if self.rows else differentiate(self.losses, self.specific, scales)

    def _from_rows(self, coefficients: Sequence[Tensor]) -> Gradients:
        """The specific parameters' gradients, those of each pass times its coefficient."""
        found: Gradients = []
        for column in zip(*self.rows, strict=True):
            terms = [c * g for c, g in zip(coefficients, column, strict=False) if g is not None]
            found.append(reduce(torch.add, terms) if terms else None)
        return found


@dataclass
class ByParameters(_LossByLoss):
    """A `Source` of gradients by shared parameters: one vector-Jacobian product per task.

    Attributes:
        memory_limit: bytes that the Jacobian may take; a Gramian goes through the parameters in blocks that fit.
        measured: the shared parameters that the Gramian is over; None is all of them.
    """

    memory_limit: int
    measured: Sequence[Tensor] | None = None
    _jacobian: Tensor | None = field(default=None, init=False)
    _reached: Sequence[bool] = field(default=(), init=False)

    def jacobian(self) -> Tensor:
        """See `Source`."""
        columns = sum(parameter.numel() for parameter in self.shared)
        instead = "give a representation, or choose a method that needs only the Gramian"
        check_memory(len(self.losses), columns, self.shared[0].element_size(), self.memory_limit, instead)
        self._jacobian, self._reached, self.rows = _rows(self.losses, self.shared, self.specific)
        return self._jacobian

    def gramian(self) -> Tensor:
        """See `Source`."""
        if self.measured is None and _bytes(len(self.losses), self.shared) <= self.memory_limit:
            jacobian = self.jacobian()
            return jacobian @ jacobian.T
        measured = self.shared if self.measured is None else self.measured
        gramian = measured[0].new_zeros(len(self.losses), len(self.losses))
        block: list[Tensor] = []
        for position, parameter in enumerate(measured):
            block.append(parameter)
            following = measured[position + 1 : position + 2]
            if not following or _bytes(len(self.losses), [*block, *following]) > self.memory_limit:
                jacobian, *_ = _rows(self.losses, block, ())
                gramian += jacobian @ jacobian.T
                block = []
        return gramian

    def weighted(self, weights: Tensor, scale: float) -> Gradients:
        """See `Source`: from the Jacobian where it is there already."""
        if self._jacobian is None:
            return super().weighted(weights, scale)
        weights = weights * scale
        own = self._from_rows(list(weights)) if self.weigh else self._unweighted(scale)
        return self._split(weights.to(self._jacobian) @ self._jacobian) + own

    def along(self, direction: Tensor, scale: float) -> Gradients:
        """See `Source`."""
        return self._split(direction * scale) + self._unweighted(scale)

    def _split(self, direction: Tensor) -> Gradients:
        pieces = torch.split(direction, [parameter.numel() for parameter in self.shared])
        return [
            piece.view_as(parameter) if reached else None
            for piece, parameter, reached in zip(pieces, self.shared, self._reached, strict=True)
        ]


@dataclass
class ByRepresentation(_LossByLoss):
    """A `Source` whose Jacobian is over the shared representation, or over its T aliases."""

    representation: Tensor | Sequence[Tensor]

    def jacobian(self) -> Tensor:
        """See `Source`."""
        # Weighted gradients of specific parameters wait for the pass that weighs the losses.
        along = [] if self.weigh else self.specific
        ones = [torch.ones_like(loss) for loss in self.losses]
        if isinstance(self.representation, Tensor):
            given = [self.representation] * len(self.losses)
            passes = [differentiate([s], [z, *along], [c]) for s, z, c in zip(self.losses, given, ones, strict=True)]
            by_z, self.rows = [row[0] for row in passes], [row[1:] for row in passes]
        else:
            given = list(self.representation)
            if len(given) != len(self.losses):
                raise InputError(f"{len(self.losses)} losses, but {len(given)} representations")
            row = differentiate(self.losses, [*given, *along], ones)
            by_z, self.rows = row[: len(given)], [row[len(given) :]]
        if not along:
            self.rows = ()
        if all(gradient is None for gradient in by_z):
            raise InputError("no loss depends on the representation")
        return torch.stack(
            [(torch.zeros_like(z) if g is None else g).flatten() for z, g in zip(given, by_z, strict=True)]
        )

    def gramian(self) -> Tensor:
        """See `Source`."""
        jacobian = self.jacobian()
        return jacobian @ jacobian.T

    def along(self, direction: Tensor, scale: float) -> Gradients:
        """See `Source`: passed back through the encoder."""
        z = self.representation if isinstance(self.representation, Tensor) else self.representation[0]
        return differentiate([z], self.shared, [(direction * scale).view_as(z)]) + self._unweighted(scale)


def _rows(
    losses: Sequence[Tensor], parameters: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[Tensor, list[bool], list[Gradients]]:
    """The Jacobian ``[T, P]``, which parameters any loss reaches, and each loss's gradients of those taken along."""
    sizes = [parameter.numel() for parameter in parameters]
    jacobian = parameters[0].new_zeros(len(losses), sum(sizes))
    reached = [False] * len(parameters)
    rows: list[Gradients] = []
    for row, loss in zip(jacobian, losses, strict=True):
        found = differentiate([loss], [*parameters, *along], [torch.ones_like(loss)])
        for position, (piece, gradient) in enumerate(zip(row.split(sizes), found, strict=False)):
            if gradient is not None:
                piece.copy_(gradient.flatten())
                reached[position] = True
        rows.append(found[len(parameters) :])
    return jacobian, reached, rows if along else []


def _bytes(num_tasks: int, parameters: Sequence[Tensor]) -> int:
    return num_tasks * sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _scalars(losses: Tensor | Sequence[Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        scalars = list(losses)
        for task, loss in enumerate(scalars):
            if loss.numel() != 1:
                raise InputError(f"the loss of task {task} has shape {tuple(loss.shape)}, expected a scalar")
        return [loss.reshape(()) for loss in scalars]


def _trainable(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _parameters(source: nn.Module | Iterable[nn.Module | Tensor]) -> list[Tensor]:
    found: list[Tensor] = []
    for item in [source] if isinstance(source, nn.Module) else source:
        found += item.parameters() if isinstance(item, nn.Module) else [item]
    return found
