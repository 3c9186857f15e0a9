"""Stochastic direction-oriented multi-objective gradient descent (Xiao, Ban & Ji, 2023)."""

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import halves_of, to_host, unit_gramian
from mtrl.ranges import Count, FractionBelowOne, NotNegative, Positive


@register("sdmgrad")
class SDMGrad(GramianCombiner):
    """SDMGrad (Xiao et al., 2023, algorithm 1): MGDA regularised towards the mean gradient, solved inexactly.

    The update is ``g_a + lambda g_0``, ``g_0 = sum_i g_i / T``, for ``a`` on the simplex that minimises its length. At
    each call ``a`` starts from where it was (first ``1 / T``) and takes projected SGD steps with momentum on
    ``X (a + lambda / T)``. In the paper ``X`` holds the products of gradients of independent batches, which makes the
    steps unbiased: with ``halves``, those of the two halves of each task's samples. As in its reinforcement learning
    code ``X`` is otherwise the Gramian of the one batch. As in that code
    ``X`` is divided by the squared mean of the gradients' norms, so that the step size has no unit. ``w = a +
    lambda / T``, the paper's scale, where the code divides by ``1 + lambda``. If all gradients are 0, ``a`` stays.

    Args:
        lambda_: the pull towards the mean gradient, at least 0; 0.3 as in the authors' runs (0.6 in the signature).
        iterations: SGD steps per call; 20 as in their code.
        learning_rate: of these steps, above 0; 10 as in their code.
        momentum: of these steps, in [0, 1); 0.5 as in their code.
        halves: compare two halves of each task's samples, where every task has samples of its own.
    """

    weights_specific = False  # authors' code (weight_methods.py) backpropagates each loss as it is into the heads

    def _setup(
        self,
        *,
        lambda_: NotNegative = 0.3,
        iterations: Count = 20,
        learning_rate: Positive = 10.0,
        momentum: FractionBelowOne = 0.5,
        halves: bool = False,
    ) -> None:
        self.halves = halves
        self.lambda_ = lambda_
        self.iterations = iterations
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.simplex: Tensor = torch.nn.Buffer(torch.full((self.num_tasks,), 1 / self.num_tasks, dtype=torch.float64))

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        if not self.halves:
            return super()._weights(losses, gramian)
        assert gramian is not None
        whole, cross = halves_of(to_host(gramian)[0], self.num_tasks)
        norms, _ = unit_gramian(whole)
        scale = norms.mean() or 1.0
        return torch.from_numpy(self._descend(norms, cross / scale / scale))

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        relative = norms / (norms.mean() or 1.0)
        return self._descend(norms, relative[:, None] * cosines * relative)

    def _descend(self, norms: Array, products: Array) -> Array:
        """The weights after some steps, for the products ``X``."""
        point, pull = self.simplex.cpu().numpy().copy(), self.lambda_ / self.num_tasks
        if norms.any():
            velocity = np.zeros_like(point)
            for _ in range(self.iterations):
                velocity = self.momentum * velocity + products @ (point + pull)
                point = project_to_simplex(point - self.learning_rate * velocity)
            self.simplex.copy_(torch.from_numpy(point))
        return point + pull


def project_to_simplex(point: Array) -> Array:
    """The nearest point of the probability simplex, ``[T]`` (Held, Wolfe & Crowder, 1974)."""
    # A shift changes nothing, nor do entries that are 1 or more below the largest: their place is 0. Without these, all
    # numbers are of order one, and the 1 is not lost beside them.
    with np.errstate(over="ignore"):
        point = np.maximum(point - point.max(), -1.0)
    ordered = np.sort(point)[::-1]
    thresholds = (np.cumsum(ordered) - 1) / np.arange(1, len(point) + 1)
    projected: Array = np.maximum(point - thresholds[np.count_nonzero(ordered > thresholds) - 1], 0.0)
    return projected
