"""The gradient balance of impartial multi-task learning (Liu, Li, Kuang, Xue, Chen, Yang, Liao & Zhang, 2021)."""

import numpy as np

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import eigen
from mtrl.errors import RunError


@register("imtl_g")
class ImtlG(GramianCombiner):
    """IMTL-G (Liu et al., 2021; Kurin et al., 2022, equation 4): equal projections on all unit gradients.

    Finds ``w`` with ``sum_i w_i = 1`` for which ``d = J^T w`` has the same ``d^T g_i / |g_i|`` for all tasks. With the
    matrix of cosines ``C`` this is ``w_i = c x_i / |g_i|``, where ``C x = 1`` and ``c`` makes the sum 1. If no ``x`` is
    a solution (0 is in the affine hull of the unit gradients), all projections are 0: ``C x = 0``. (Kurin et al.
    add a ridge of 1e-6, and their code solves the transposed system, which is the same for two tasks only.)

    The weights can be negative and have no bound. Where ``sum_i x_i / |g_i|`` is negative, ``d`` increases every
    loss, as it must by the equation; `EDM` never does. A zero gradient gets weight 0.

    Raises:
        RunError: from ``weights``, if the equations have no solution.
    """

    weights_specific = False  # algorithm 1 gives heads their own scaled losses (code of others weighs them)

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        size = len(norms)
        values, vectors = eigen(cosines, precision)
        ones = vectors.sum(0)
        remainder = 1 - vectors @ ones
        soluble = remainder @ remainder <= size**2 * precision
        weights: Array = (vectors @ (ones / values) if soluble else remainder) / norms
        total = weights.sum()
        if abs(total) <= size * precision * np.abs(weights).sum():
            raise RunError("IMTL-G's equations have no solution: equal projections force the weights' sum to 0")
        weights /= total
        return weights
