"""What every combining backward pass shares: its checks, its result and how ``.grad`` is written."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.errors import RunError

DEFAULT_MEMORY_LIMIT = 2 << 30
"""Bytes that per-task gradients may take (2 GiB)."""


@dataclass(frozen=True)
class Combination:
    """What a combining backward pass did, for logging. All tensors are detached.

    Attributes:
        losses: ``[T]``.
        weights: ``[T]``, or None for a method that has none.
        gramian: ``[T, T]``, the inner products of the unscaled per-task gradients, over the representation or
            the measured parameters where such were given; None where it was not formed.
        alignment: ``[T]``, the cosine of each per-task gradient with the update, over what the Gramian is
            over; 0 where either is zero, None without a Gramian.
        update_norm: the norm of the update over the shared parameters, scale included.
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


def check_finite(quantity: str, values: Tensor) -> None:
    """Raises `NonFiniteError` for the first task whose entry of ``values`` (``[T]``) is not finite."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        raise NonFiniteError(quantity, int((~finite).nonzero()[0]))


def differentiate(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], coefficients: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradient of ``sum_i <coefficients_i, outputs_i>`` by each input, None where it does not depend on it.

    The graph stays, for the passes that follow.
    """
    pairs = [pair for pair in zip(outputs, coefficients, strict=True) if pair[0].requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    outputs, coefficients = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, inputs, coefficients, retain_graph=True, allow_unused=True))


def cosines(gramian: Tensor, products: Tensor, norm: Tensor) -> Tensor:
    """The cosine of each per-task gradient with a direction.

    Args:
        gramian: ``[T, T]`` of the per-task gradients.
        products: ``[T]``, their inner products with the direction.
        norm: the direction's norm.
    """
    lengths = gramian.diagonal().sqrt() * norm
    return torch.where(lengths > 0, products / lengths, 0).clamp(-1, 1)


def weighted_cosines(gramian: Tensor, weights: Tensor) -> Tensor:
    """The cosine of each per-task gradient with their sum weighted by ``weights`` (``[T]``)."""
    weights = weights.to(gramian)
    products = gramian @ weights
    return cosines(gramian, products, (weights @ products).clamp_min(0).sqrt())


def norm_of(gradients: Sequence[Tensor | None]) -> Tensor:
    """The Euclidean norm of all gradients together."""
    return torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])


def total_norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """The Euclidean norm of all gradients together.

    Raises:
        NonFiniteError: if it is not finite.
    """
    norm = norm_of(gradients)
    if not bool(torch.isfinite(norm)):
        raise NonFiniteError("gradient", None)
    return norm


def accumulate(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Adds gradients to ``.grad`` as ``Tensor.backward`` does; a parameter that no loss reaches has None."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            # A copy: what autograd or a combiner returns may be a view, or serve two parameters.
            parameter.grad = gradient.clone()
        else:
            parameter.grad.add_(gradient)
