"""From T losses to ``.grad``: what a method looks at, the weights it finds, the gradients that follow.

`combine` is the whole of it. Of its pieces, `look` and `gradients` read nothing back from the device, so that graphs
can hold them; `weigh`, between them, may run on the host.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.amp import GradScaler

from mtrl.combiners import Combiner
from mtrl.errors import InputError, RunError
from mtrl.gradients.precision import float32_products, inner_products
from mtrl.gradients.promises import entries

DEFAULT_MEMORY_LIMIT = 2 << 30
"""Bytes that per-task gradients may take (2 GiB)."""

Gradients = list[Tensor | None]
"""One per parameter, None where no loss reaches it."""


class Source(Protocol):
    """The per-task gradients of T losses; each form is computed when it is asked for."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """What gets a gradient; the first `num_shared` are shared by all tasks."""

    @property
    def num_shared(self) -> int:
        """How many of the parameters all tasks share."""

    @property
    def activations(self) -> Sequence[Tensor]:
        """The maps of the representation that the gradients are by, see `Combiner.combine`; none for parameters."""

    def gramian(self) -> Tensor:
        """``[T, T]``, the inner products of the per-task gradients."""

    def gramian_of_halves(self, *, across: bool) -> Tensor:
        """``[2T, 2T]``, see `Combiner.halves`, or its block ``[T, T]`` of first halves' products with second ones.

        `InputError` where the samples of the tasks are not told apart.
        """

    def jacobian(self) -> Tensor:
        """``[T, D]``, one task's gradient a row; it may be overwritten, and is made anew by the next call."""

    def weighted(self, weights: Tensor, scale: float) -> Gradients:
        """``scale sum_i w_i g_i`` by parameter, from weights ``[T]``."""

    def along(self, direction: Tensor, scale: float) -> Gradients:
        """A direction ``[D]`` times the scale, by parameter."""

    def offender(self, combined: Gradients) -> int | None:
        """The first task whose gradient is not finite, after a combined one is not; None where nothing tells."""


@dataclass(frozen=True)
class Combination:
    """What a combining backward pass did, for logging. All tensors are detached.

    Attributes:
        losses: ``[T]``.
        weights: ``[T]``, or None for a method that has none.
        gramian: ``[T, T]`` of the unscaled per-task gradients, by whatever they were taken; None where not formed.
        alignment: ``[T]``, the cosine of each of these gradients with the update; 0 where either is zero.
        update_norm: of the update over the shared parameters, scale included.
    """

    losses: Tensor
    weights: Tensor | None
    gramian: Tensor | None
    alignment: Tensor | None
    update_norm: Tensor


class NonFiniteError(RunError):
    """A loss, gradient or weight is not finite; nothing was written into ``.grad``.

    Attributes:
        quantity: ``"loss"``, ``"gradient"`` or ``"weight"``.
        task: the index of the first offending task, or None where it is the combined update.
    """

    def __init__(self, quantity: str, task: int | None) -> None:
        where = "the combined update" if task is None else f"task {task}"
        super().__init__(f"non-finite {quantity} ({where})")
        self.quantity, self.task = quantity, task


def combine(
    losses: Tensor,
    combiner: Combiner,
    source: Source,
    *,
    scale: float,
    insight: bool,
    scaler: GradScaler | None = None,
) -> Combination:
    """Adds the combined gradient of T losses to ``.grad``.

    Losses and gradients are checked before the combiner sees them, so that its state does not advance on a value
    that is not finite (a ``"losses"`` method's gradients only exist after it).

    Args:
        losses: ``[T]``.
        combiner: the method, made for T tasks.
        source: their gradients; those of the scaled losses where there is a scaler.
        scale: a constant factor on every gradient.
        insight: describe what was done by the Gramian even where the method does not need it.
        scaler: whose scale the combiner is not to see, and ``.grad`` to have. What is not finite is then no error: it
            makes ``.grad`` infinite, and `GradScaler.step` skips the step.

    Raises:
        NonFiniteError: if a loss, gradient or weight is not finite; ``.grad`` is left as it was.
        InputError: if the losses do not fit the combiner, or the source cannot give what it needs.

    Warns:
        UserWarning: if the method looks at losses after a step and was not shown those after the last.
    """
    if combiner.step_unseen:
        warnings.warn(
            f"{combiner.name} was not shown the losses after the last step, and stays what it was: after every step of "
            "the optimizer, call combiner.after_step(losses) with those of the same batch",
            stacklevel=3,
        )
    losses, needs = losses.detach().to(wide_type([losses])), combiner.needs  # which weighing may change
    if scaler is None:
        check_finite("loss", losses)
    else:
        factor = scaler.scale(torch.ones((), device=losses.device))
        source = _Unscaled(source, factor)
    with torch.no_grad():
        seen = look(combiner, source)
        overflow = scaler is not None and not _all_finite(losses, seen)
        shown = losses, seen, source.activations if needs == "jacobian" else ()
        found = _infinite(combiner, losses, seen) if overflow else weigh(combiner, *shown)
        combined = gradients(combiner, source, found, scale)
        if scaler is None:
            check_gradients(combined, source)
        norm = norm_of(combined[: source.num_shared])
        norm = norm if scaler is None else norm / factor
        accumulate(source.parameters, combined)
        if overflow:
            return Combination(losses, None, None, None, norm)
        combiner.step_unseen = combiner.needs_losses_after_step
        if insight or (needs == "gramian" and not combiner.halves):
            return describe(losses, combiner, source, found, norm, seen)
    return Combination(losses, None if needs == "jacobian" else found, None, None, norm)


def check_combiner(combiner: object) -> None:
    """Raises `InputError` for a name or a class in place of a combiner."""
    if not isinstance(combiner, Combiner):
        raise InputError(f"expected a combiner, such as combiners.make('pcgrad', num_tasks=3), got {combiner!r}")


def look(combiner: Combiner, source: Source) -> Tensor | None:
    """What the method looks at beside the losses: a Gramian (see `Combiner.halves`), the Jacobian, or nothing."""
    if combiner.needs == "losses":
        return None
    if combiner.needs == "jacobian":
        return source.jacobian()
    return source.gramian_of_halves(across=combiner.across_halves) if combiner.halves else source.gramian()


def weigh(combiner: Combiner, losses: Tensor, seen: Tensor | None, activations: Sequence[Tensor] = ()) -> Tensor:
    """The task weights ``[T]``, or the direction ``[D]`` of a method that combines the Jacobian's entries.

    Args:
        combiner: the method; its state advances.
        losses: ``[T]``.
        seen: what `look` gave; it may be overwritten.
        activations: the source's.

    Raises:
        NonFiniteError: if a loss, gradient or weight is not finite.
    """
    check_finite("loss", losses)
    if combiner.needs == "jacobian":
        assert seen is not None
        check_finite("gradient", seen.sum(1))
        return direction(combiner, losses, seen, activations)
    if seen is not None:
        check_finite("gradient", seen.diagonal().view(-1, len(losses)))
    weights = combiner.weights(losses, seen)
    check_finite("weight", weights)
    return weights


def direction(combiner: Combiner, losses: Tensor, jacobian: Tensor, activations: Sequence[Tensor] = ()) -> Tensor:
    """`weigh` for a method that combines the Jacobian's entries, where all is known to be finite."""
    with float32_products(jacobian.device, tf32=False):
        return combiner.combine(losses, jacobian, activations)


def gradients(combiner: Combiner, source: Source, found: Tensor, scale: float) -> Gradients:
    """The combined gradient by parameter, from what `weigh` found."""
    return source.along(found, scale) if combiner.needs == "jacobian" else source.weighted(found, scale)


def describe(
    losses: Tensor, combiner: Combiner, source: Source, found: Tensor, norm: Tensor, seen: Tensor | None
) -> Combination:
    """What was done, with the Gramian and every task's alignment; to be called after `gradients`."""
    if combiner.needs == "jacobian":
        jacobian = source.jacobian()  # once more: the method may have overwritten it
        gramian = inner_products(jacobian)
        return Combination(losses, None, gramian, cosines(gramian, jacobian @ found, found.norm()), norm)
    gramian = source.gramian() if seen is None or combiner.halves else seen
    return Combination(losses, found, gramian, weighted_cosines(gramian, found), norm)


# --------------------------------------------------------------------------------------------------------- checks


def check_finite(quantity: str, values: Tensor) -> None:
    """Raises `NonFiniteError` for the first task with an entry of ``values`` (``[..., T]``) that is not finite."""
    if math.isfinite(values.sum()):  # one operation and one wait; of finite values, too, it can be infinite
        return
    finite = values.isfinite().view(-1, values.shape[-1]).all(0)
    if not bool(finite.all()):
        raise NonFiniteError(quantity, int((~finite).nonzero()[0]))


def check_gradients(combined: Gradients, source: Source) -> None:
    """Raises `NonFiniteError`, which names the task if it is one's, where a combined gradient is not finite."""
    if not bool(torch.isfinite(norm_of(combined))):
        raise NonFiniteError("gradient", source.offender(combined))


def check_memory(num_tasks: int, columns: int, element_size: int, limit: int, instead: str) -> None:
    """Raises `InputError` where a Jacobian takes more than the limit's bytes; ``instead`` is what else would do."""
    if num_tasks * columns * element_size > limit:
        raise InputError(
            f"the Jacobian of {num_tasks} tasks x {columns:,} parameters needs "
            f"{num_tasks * columns * element_size:,} bytes, memory_limit is {limit:,}: raise it, {instead}"
        )


# ------------------------------------------------------------------------------------------------ what sources share


def differentiate(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], coefficients: Sequence[Tensor], *, retain_graph: bool
) -> Gradients:
    """The gradient of ``sum_i <coefficients_i, outputs_i>`` by each input, None where it does not depend on it.

    Without ``retain_graph``, what the pass went through is freed.

    Raises:
        InputError: if torch has freed the graph before, or a compiled part of it serves one pass only.
    """
    pairs = [pair for pair in zip(outputs, coefficients, strict=True) if pair[0].requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    outputs, coefficients = zip(*pairs, strict=True)
    try:
        return list(torch.autograd.grad(outputs, inputs, coefficients, retain_graph=retain_graph, allow_unused=True))
    except RuntimeError as error:
        if "donated buffer" in str(error):
            raise InputError(
                "a compiled module serves one backward pass, this method takes several: set "
                "torch._functorch.config.donated_buffer = False before it is compiled"
            ) from error
        if "backward through the graph a second time" in str(error):
            raise InputError(
                "an earlier backward pass has freed the graph of these losses: give it retain_graph=True"
            ) from error
        raise


def accumulate(parameters: Sequence[Tensor], combined: Gradients) -> None:
    """Adds gradients to ``.grad`` as ``Tensor.backward`` does, hooks too; a parameter that no loss reaches has None.

    The list is emptied on the way, so that no gradient is there twice for long.
    """
    combined.reverse()
    for parameter in parameters:
        gradient = combined.pop()
        if gradient is None:
            continue
        if parameter.grad is None:
            # A copy: what autograd or a combiner returns may be a view, or serve two parameters.
            parameter.grad = gradient.clone()
        elif parameter.grad.is_sparse and not gradient.is_sparse:
            parameter.grad = gradient + parameter.grad
        else:
            parameter.grad.add_(gradient)
        for hook in list((parameter._post_accumulate_grad_hooks or {}).values()):
            hook(parameter)


def norm_of(combined: Gradients) -> Tensor:
    """The Euclidean norm of all gradients together, in float32 or better."""
    found = [entries(gradient) for gradient in combined if gradient is not None]
    return torch.nn.utils.get_total_norm([numbers.to(wide_type([numbers])) for numbers in found])


def wide_type(tensors: Sequence[Tensor]) -> torch.dtype:
    """The real type that holds the entries of all of these: float32 at least, so that squares can be summed in it."""
    double = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    return torch.float64 if double else torch.float32


class _Unscaled:
    """A `Source` over the losses times a factor, shown to the combiner without it."""

    def __init__(self, scaled: Source, factor: Tensor) -> None:
        self.scaled, self.factor = scaled, factor

    @property
    def parameters(self) -> Sequence[Tensor]:
        return self.scaled.parameters

    @property
    def num_shared(self) -> int:
        return self.scaled.num_shared

    @property
    def activations(self) -> Sequence[Tensor]:
        return self.scaled.activations

    def gramian(self) -> Tensor:
        return self.scaled.gramian() / self.factor.square()

    def gramian_of_halves(self, *, across: bool) -> Tensor:
        return self.scaled.gramian_of_halves(across=across) / self.factor.square()

    def jacobian(self) -> Tensor:
        return self.scaled.jacobian().div_(self.factor)

    def weighted(self, weights: Tensor, scale: float) -> Gradients:
        return self.scaled.weighted(weights, scale)

    def along(self, direction: Tensor, scale: float) -> Gradients:
        return self.scaled.along(direction * self.factor, scale)

    def offender(self, combined: Gradients) -> int | None:
        return self.scaled.offender(combined)


def _all_finite(losses: Tensor, seen: Tensor | None) -> bool:
    return all(bool(values.isfinite().all()) for values in (losses, seen) if values is not None)


def _infinite(combiner: Combiner, losses: Tensor, seen: Tensor | None) -> Tensor:
    """In place of what `weigh` finds, what makes the combined gradient infinite: the plain sum may not overflow."""
    return torch.full_like(seen[0] if combiner.needs == "jacobian" and seen is not None else losses, torch.inf)


def cosines(gramian: Tensor, products: Tensor, norm: Tensor) -> Tensor:
    """The cosine of each per-task gradient with a direction, from their inner products ``[T]`` and its norm."""
    lengths = gramian.diagonal().sqrt() * norm
    return torch.where(lengths > 0, products / lengths, 0).clamp(-1, 1)


def weighted_cosines(gramian: Tensor, weights: Tensor) -> Tensor:
    """The cosine of each per-task gradient with their sum weighted by ``weights`` (``[T]``)."""
    weights = weights.to(gramian)
    products = gramian @ weights
    return cosines(gramian, products, (weights @ products).clamp_min(0).sqrt())
