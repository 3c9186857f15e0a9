"""Per-task gradients where all tasks share the input: through the representation, or loss by loss."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner
from mtrl.errors import InputError
from mtrl.gradients.pipeline import (
    DEFAULT_MEMORY_LIMIT,
    Combination,
    NonFiniteError,
    accumulate,
    check_finite,
    cosines,
    differentiate,
    total_norm,
    weighted_cosines,
)

Gradients = list[Tensor | None]


def fan_out(representation: Tensor, num_tasks: int) -> tuple[Tensor, ...]:
    """One alias of the shared representation per task.

    Feeding each head its own alias lets `backward` read all representation gradients off one backward pass.
    """
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
    """Adds the combined gradient of T losses on a shared input to ``.grad``.

    ``"losses"`` methods cost one plain backward pass. For the others, the per-task gradients are taken by the
    ``representation`` where one is given (MGDA-UB, Sener & Koltun, 2018, equation 5; IMTL; GradDrop), and
    otherwise by the shared parameters, one vector-Jacobian product per task.

    A Gramian method's weights then weigh the losses in one more backward pass, or its update is taken from the
    Jacobian where that was kept. A Jacobian method's direction for the representation is passed back through
    the encoder: shared parameters have to reach the losses through the representation alone.

    Args:
        losses: T scalars, as a tensor ``[T]`` or a sequence.
        combiner: the method, made for T tasks.
        shared: the parameters that all tasks share.
        specific: task-specific parameters (a module, modules or parameters); they get their own losses'
            gradients.
        representation: the shared representation z that all heads read (any shape), or its T aliases from
            `fan_out`, with which one backward pass through the heads serves all tasks.
        measured: the shared parameters whose gradients make the Gramian, e.g. the last shared layer's; all of
            them if None. The weights found apply to all.
        weigh_specific: whether the specific parameters' gradients carry the task weights; None is as the
            method's paper does it.
        scale: a constant factor on every gradient.
        insight: form the Gramian even where the method does not need it; it does not change the update.
        memory_limit: bytes that per-task parameter gradients may take. Below what the Jacobian needs, Gramian
            methods go through the parameters in blocks (of at least one), at T vector-Jacobian products each.

    Raises:
        NonFiniteError: if a loss, gradient or weight is not finite; ``.grad`` is left as it was.
        InputError: if the losses do not fit the combiner or the representation, options exclude each other, or
            a Jacobian that the method reads does not fit into ``memory_limit``.
    """
    scalars = _scalars(losses)
    values = torch.stack([scalar.detach() for scalar in scalars])
    shared_, specific_ = _trainable(shared), _trainable(_parameters(specific))
    measured_ = shared_ if measured is None else _trainable(measured)
    if not shared_ or not measured_:
        raise InputError("no shared or no measured parameter is trainable")
    if {id(parameter) for parameter in shared_} & {id(parameter) for parameter in specific_}:
        raise InputError("a parameter is both shared and specific")
    if measured is not None and (representation is not None or combiner.needs == "jacobian"):
        raise InputError("'measured' is for Gramian methods without a representation")
    if weigh_specific and combiner.needs == "jacobian":
        raise InputError(f"{combiner.name} has no task weights to apply to specific parameters")
    weigh = combiner.weights_specific if weigh_specific is None else weigh_specific
    weigh = weigh and combiner.needs != "jacobian"
    check_finite("loss", values)

    weights = alignment = found = None
    with torch.no_grad():
        if combiner.needs != "losses" or insight:
            # Weighted gradients of specific parameters wait for the pass that weighs the losses, if there is one.
            later = combiner.needs == "losses" or (weigh and representation is not None)
            along = [] if later else specific_
            if representation is not None:
                found = _by_representation(scalars, representation, along)
            elif measured is None and _bytes(len(values), shared_) <= memory_limit:
                found = _by_parameters(scalars, shared_, along)
            elif combiner.needs == "jacobian":
                raise InputError(
                    f"the Jacobian needs {_bytes(len(values), shared_):,} bytes, memory_limit is "
                    f"{memory_limit:,}: raise it, give a representation, or choose a method that needs only "
                    "the Gramian"
                )
            else:
                found = _Measurement(_gramian_in_blocks(scalars, measured_, memory_limit))
            check_finite("gradient", found.gramian.diagonal())

        plain = torch.full_like(values, scale)
        if combiner.needs == "jacobian":
            assert found is not None
            assert found.jacobian is not None
            kept = found.jacobian.clone() if insight else None
            direction = combiner.combine(values, found.jacobian)
            if kept is not None:
                alignment = cosines(found.gramian, kept @ direction, direction.norm())
            direction = direction * scale
            if representation is None:
                shared_gradients = found.split(direction, shared_)
            else:
                z = representation if isinstance(representation, Tensor) else representation[0]
                shared_gradients = differentiate([z], shared_, [direction.view_as(z)])
            specific_gradients = found.specific(plain)
        else:
            weights = combiner.weights(values, None if found is None else found.gramian)
            check_finite("weight", weights)
            if found is not None:
                alignment = weighted_cosines(found.gramian, weights)
            weighted = weights * scale
            if found is not None and found.reached and combiner.needs == "gramian":
                assert found.jacobian is not None
                shared_gradients = found.split(weighted.to(found.jacobian) @ found.jacobian, shared_)
                specific_gradients = found.specific(weighted if weigh else plain)
            else:
                gradients = differentiate(scalars, [*shared_, *(specific_ if weigh else [])], list(weighted))
                shared_gradients, specific_gradients = gradients[: len(shared_)], gradients[len(shared_) :]
                if not weigh and found is not None and found.rows:
                    specific_gradients = found.specific(plain)
                elif not weigh:
                    specific_gradients = differentiate(scalars, specific_, list(plain))

        parameters, gradients = [*shared_, *specific_], [*shared_gradients, *specific_gradients]
        try:
            total_norm(gradients)
        except NonFiniteError:
            norms = [_by_parameters([scalar], parameters, ()).gramian.reshape(()) for scalar in scalars]
            check_finite("gradient", torch.stack(norms))
            raise
        accumulate(parameters, gradients)
    gramian = None if found is None else found.gramian
    return Combination(values, weights, gramian, alignment, total_norm(shared_gradients))


@dataclass
class _Measurement:
    """Per-task gradients.

    Attributes:
        gramian: ``[T, T]``.
        jacobian: ``[T, D]``, over the representation or the shared parameters; None where it was not kept.
        reached: whether any loss depends on each shared parameter; empty where J is not over them.
        rows: the gradients of the specific parameters, one list per backward pass; empty where not taken.
    """

    gramian: Tensor
    jacobian: Tensor | None = None
    reached: Sequence[bool] = ()
    rows: Sequence[Gradients] = ()

    def split(self, direction: Tensor, shared: Sequence[Tensor]) -> Gradients:
        """A direction (``[P]``) by shared parameter, with None where no loss reaches it."""
        pieces = torch.split(direction, [parameter.numel() for parameter in shared])
        return [
            piece.view_as(parameter) if reached else None
            for piece, parameter, reached in zip(pieces, shared, self.reached, strict=True)
        ]

    def specific(self, coefficients: Tensor) -> Gradients:
        """The specific parameters' gradients, each pass times its coefficient."""
        found: Gradients = []
        for gradients in zip(*self.rows, strict=True):
            terms = [c * g for c, g in zip(coefficients, gradients, strict=False) if g is not None]
            found.append(reduce(torch.add, terms) if terms else None)
        return found


def _by_representation(
    scalars: Sequence[Tensor], representation: Tensor | Sequence[Tensor], along: Sequence[Tensor]
) -> _Measurement:
    if isinstance(representation, Tensor):
        rows = [differentiate([s], [representation, *along], [torch.ones_like(s)]) for s in scalars]
        gradients = [row.pop(0) for row in rows]
        like = [representation] * len(scalars)
    else:
        if len(representation) != len(scalars):
            raise InputError(f"{len(scalars)} losses, but {len(representation)} representations")
        row = differentiate(scalars, [*representation, *along], [torch.ones_like(s) for s in scalars])
        gradients, rows = row[: len(scalars)], [row[len(scalars) :]]
        like = list(representation)
    if all(gradient is None for gradient in gradients):
        raise InputError("no loss depends on the representation")
    jacobian = torch.stack(
        [(torch.zeros_like(z) if g is None else g).flatten() for z, g in zip(like, gradients, strict=True)]
    )
    return _Measurement(jacobian @ jacobian.T, jacobian, rows=rows if along else ())


def _by_parameters(scalars: Sequence[Tensor], parameters: Sequence[Tensor], along: Sequence[Tensor]) -> _Measurement:
    sizes = [parameter.numel() for parameter in parameters]
    jacobian = parameters[0].new_zeros(len(scalars), sum(sizes))
    reached = [False] * len(parameters)
    rows: list[Gradients] = []
    for row, scalar in zip(jacobian, scalars, strict=True):
        gradients = differentiate([scalar], [*parameters, *along], [torch.ones_like(scalar)])
        for position, (piece, gradient) in enumerate(zip(row.split(sizes), gradients, strict=False)):
            if gradient is not None:
                piece.copy_(gradient.flatten())
                reached[position] = True
        rows.append(gradients[len(parameters) :])
    return _Measurement(jacobian @ jacobian.T, jacobian, reached, rows if along else ())


def _gramian_in_blocks(scalars: Sequence[Tensor], parameters: Sequence[Tensor], memory_limit: int) -> Tensor:
    """The Gramian over parameters, in blocks whose Jacobian fits into the limit (of one parameter at least)."""
    gramian = parameters[0].new_zeros(len(scalars), len(scalars))
    block: list[Tensor] = []
    for position, parameter in enumerate(parameters):
        block.append(parameter)
        following = parameters[position + 1 : position + 2]
        if not following or _bytes(len(scalars), [*block, *following]) > memory_limit:
            gramian += _by_parameters(scalars, block, ()).gramian
            block = []
    return gramian


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
