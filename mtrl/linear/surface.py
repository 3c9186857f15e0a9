"""What linear models explain: any of a width, those of linear scalarization, those that an optimizer ends at."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners import Combiner
from mtrl.errors import RunError
from mtrl.gradients import NonFiniteError, backward, fan_out
from mtrl.linear.data import Array, Problem


def feasible(gramian: Array, rank: int, count: int, seed: int = 0) -> Array:
    """The feasible surface: the mean squares ``[count, k]`` that random models of width ``rank`` explain."""
    factor = symmetric_root(gramian)
    normal = np.random.default_rng(seed).standard_normal((count, len(factor), min(rank, len(factor))))
    return _explained(factor, np.linalg.qr(normal)[0])


def scalarized(gramian: Array, rank: int, weights: Array) -> Array:
    """What minimisers of the losses' sums weighted by ``weights`` (at least 0) explain: ``[m, k]`` to ``[m, k]``.

    At width q it is the rank-q SVD of the weighted predictions.
    """
    factor = symmetric_root(gramian)
    return _explained(factor, np.linalg.svd(factor * np.sqrt(weights)[:, None])[0][:, :, :rank])


def _explained(factor: Array, basis: Array) -> Array:
    return np.asarray(np.square(np.swapaxes(basis, 1, 2) @ factor).sum(1))


def symmetric_root(gramian: Array) -> Array:
    """The symmetric square root of ``[k, k]``: its columns have the inner products of the predictions."""
    values, vectors = np.linalg.eigh(gramian)
    return np.asarray(vectors * np.sqrt(values.clip(min=0)) @ vectors.T)


def balance(explained: Array, gramian: Array) -> Array:
    """The worst target's share of what it could explain alone: ``[m, k]`` to ``[m]``, in [0, 1]."""
    return np.asarray((explained / np.diagonal(gramian)).min(-1))


def descend(
    problem: Problem,
    rank: int,
    combiner: Combiner,
    *,
    by_representation: bool,
    epochs: int = 100,
    learning_rate: float = 0.5,
    seed: int = 0,
) -> Array:
    """What plain gradient descent on all data explains with a combiner, from a random start: ``[k]``.

    Args:
        problem: the data.
        rank: the width q.
        combiner: made for the k targets.
        by_representation: take per-task gradients by the shared representation (MGDA-UB) and not by W.
        epochs: steps.
        learning_rate: constant.
        seed: of the start.

    Raises:
        RunError: if it diverges.
    """
    # The triangular factor has the inner products of the columns, which is all that losses and gradients depend on.
    records, width = problem.inputs.shape
    compressed = np.linalg.qr(np.hstack([problem.inputs, problem.targets]), mode="r") / records**0.5
    inputs, targets = torch.from_numpy(compressed).tensor_split([width], dim=1)
    generator = torch.Generator().manual_seed(seed)

    def start(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (values / math.sqrt(shape[0])).requires_grad_()

    shared = start(width, rank)
    heads = [start(rank) for _ in targets.T]
    optimizer = torch.optim.SGD([shared, *heads], lr=learning_rate)

    def losses(representations: Sequence[Tensor]) -> list[Tensor]:
        return [(z @ head - y).square().sum() for z, head, y in zip(representations, heads, targets.T, strict=True)]

    try:
        for _ in range(epochs):
            aliases = fan_out(inputs @ shared, len(heads))
            optimizer.zero_grad()
            representation = aliases if by_representation else None
            backward(losses(aliases), combiner, shared=[shared], specific=heads, representation=representation)
            optimizer.step()
            if combiner.needs_losses_after_step:
                with torch.no_grad():
                    combiner.after_step(torch.stack(losses([inputs @ shared] * len(heads))))
    except NonFiniteError as error:
        raise RunError(f"{combiner.name} diverges at learning_rate={learning_rate}") from error
    with torch.no_grad():
        errors = (inputs @ shared @ torch.stack(heads, 1) - targets).square().sum(0)
    explained: Array = problem.variances - errors.numpy()
    return explained
