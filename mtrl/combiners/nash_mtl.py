"""Multi-task learning as a bargaining game (Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik & Fetaya, 2022)."""

import math

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners import Array, register
from mtrl.combiners.balance import PowerBalance
from mtrl.combiners.solvers import limit_norm
from mtrl.ranges import Count, PositiveOrInfinite


@register("nash_mtl")
class NashMTL(PowerBalance):
    """Nash-MTL (Navon et al., 2022, claim 3.1): ``G w = 1 / w``, elementwise, with all ``w_i > 0``.

    The Nash bargaining solution of the tasks, for which the gradients' scale does not matter: ``w_i g_i`` is the same
    if ``g_i`` is multiplied by a positive number. The update ``J^T w`` has length ``sqrt(T)``. Zero gradients get
    weight 0. Where a convex combination of the gradients vanishes (Pareto-stationary points) there is no solution: the
    update and the weights are 0.

    Args:
        update_every: solve again at every n-th call, and after one without a solution, and keep the weights in between;
            1 as in the paper's default.
        max_norm: cap on the length of the update, above 0. As in the authors' code, whose value is 1, the weights are
            multiplied by the root of ``G``'s Frobenius norm before it is capped, so that the update has unit length
            until ``sqrt(T |G|)`` falls below 1 and vanishes with the gradients; infinity is for the paper's scale.
    """

    weights_specific = True  # authors' code (weight_methods.py) backpropagates the weighted sum of the losses

    def _setup(self, *, update_every: Count = 1, max_norm: PositiveOrInfinite = 1.0) -> None:
        self.update_every = update_every
        self.max_norm = max_norm
        self.solved: Tensor = torch.nn.Buffer(torch.zeros(self.num_tasks, dtype=torch.float64))
        self.calls: Tensor = torch.nn.Buffer(torch.tensor(0))

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        self.stationary = False
        if int(self.calls) % self.update_every == 0 or not self.solved.any():
            found = super()._solve(norms, cosines, losses, precision)
            if math.isfinite(self.max_norm) and (largest := norms.max()) > 0:
                relative = norms / largest
                found *= largest * np.sqrt(np.linalg.norm(relative[:, None] * cosines * relative))
            self.solved.copy_(torch.from_numpy(found))
        self.calls += 1
        return limit_norm(self.solved.cpu().numpy(), norms, cosines, self.max_norm)

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        return self._balance(norms, cosines, 1.0, precision)
