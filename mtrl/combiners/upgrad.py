"""UPGrad (Quinton & Rey, 2024, "Jacobian Descent for Multi-Objective Optimization")."""

import numpy as np

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import dual_cone


@register("upgrad")
class UPGrad(GramianCombiner):
    """UPGrad (Quinton & Rey, 2024, section 3): the mean of the gradients, each made non-conflicting first.

    Each ``g_i`` is projected onto the cone ``{x : g_j^T x >= 0 for all j}``, so the update conflicts with no task.
    Where no gradients conflict, it is their mean and all weights are ``1 / T``. The T projections are solved
    exactly, in one batch. A task with a zero gradient keeps weight ``1 / T``.
    """

    weights_specific = False  # authors' code (TorchJD's mtl_backward): a head gets its own loss's gradient

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        return np.where(norms > 0, super()._solve(norms, cosines, losses, precision), 1) * (1 / self.num_tasks)

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        # A projection scales with its vector, so those of the unit gradients do.
        weights: Array = norms @ dual_cone(cosines, np.eye(len(norms))) / norms
        return weights
