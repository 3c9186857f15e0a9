"""Projecting conflicting gradients (Yu, Kumar, Gupta, Levine, Hausman & Finn, 2020)."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl.combiners import Array, GramianCombiner, register


@register("pcgrad")
class PCGrad(GramianCombiner):
    """PCGrad (Yu et al., 2020, algorithm 1): each gradient gives up what conflicts with the others.

    Each task's ``g_i' = g_i`` meets every other ``g_j`` once, in an order of its own, uniformly random, and where
    ``g_i'^T g_j < 0`` loses its component along ``g_j``. The update is ``sum_i g_i'``. All of it happens on
    coefficients: ``g_i'`` is a combination of the gradients whose products with them are in the Gramian, and all
    tasks move through their orders at once. A weight can reach ``T max_i |g_i| / |g_j|``. Zero gradients keep
    weight 1.

    Args:
        reduction: ``sum`` (default, the paper) or ``mean`` over the ``g_i'``, as in some published code.
    """

    weights_specific = False  # section 3: heads have no conflicts; published code gives them their plain loss's

    def _setup(self, *, reduction: Literal["sum", "mean"] = "sum") -> None:
        self.reduction = reduction

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        # Row i holds g_i' / |g_i| in terms of the unit gradients, and its products with them, the latter times -1.
        coefficients, conflicts = np.eye(self.num_tasks), -cosines
        orders = orders_of_others(self.num_tasks, self.generator)
        entries = orders + self.num_tasks * np.arange(self.num_tasks)  # of whom each row meets, in a flat matrix
        added = np.empty(orders.shape)
        for others, met, new in zip(orders, entries, added, strict=True):
            np.maximum(conflicts.take(met), 0.0, out=new)
            step = cosines.take(others, 0)
            step *= new[:, None]
            conflicts -= step
        coefficients.put(entries, added)  # every row meets every other task once
        weights = sum_of_rows(norms, coefficients)
        return weights / self.num_tasks if self.reduction == "mean" else weights


def orders_of_others(num_tasks: int, generator: torch.Generator) -> NDArray[np.int64]:
    """A random order of the other tasks for every task: column ``i`` of ``[T - 1, T]`` permutes all but ``i``."""
    keys = torch.rand(num_tasks, num_tasks, generator=generator, dtype=torch.float64).numpy()
    np.fill_diagonal(keys, 2.0)
    order: NDArray[np.int64] = keys.argsort(1)[:, :-1].T
    return order


def sum_of_rows(norms: Array, coefficients: Array) -> Array:
    """The weights of ``sum_i g_i'`` when row ``i`` holds ``g_i' / |g_i|`` in terms of the unit gradients."""
    return np.divide(norms @ coefficients, norms, out=np.ones_like(norms), where=norms > 0)
