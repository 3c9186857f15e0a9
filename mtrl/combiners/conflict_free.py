"""ConFIG: conflict-free inverse gradients (Liu, Chu & Thuerey, 2025)."""

import numpy as np

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import eigen


@register("conflict_free")
class ConflictFree(GramianCombiner):
    """ConFIG (Liu et al., 2025, equation 2): equal cosines with all gradients, as long as their projections.

    With unit gradients as the rows of ``U``, ``v = U^+ 1`` has the same product with all of them if that is possible
    (else the products nearest to it); the update is ``(sum_i g_i^T v / |v|) v / |v|``. In terms of the cosines ``C``,
    ``v = U^T x`` with ``x = C^+ 1``. Where ``v = 0``, as for two opposite gradients, the update and the weights are 0.
    Zero gradients get weight 0.
    """

    weights_specific = False  # the paper has no heads; one of a single task has no conflict

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        values, vectors = eigen(cosines, precision)
        ones = vectors.sum(0)
        if ones @ ones <= len(norms) ** 2 * precision:
            return np.zeros_like(norms)
        x = vectors @ (ones / values)
        projections, squared = norms @ (vectors @ ones), ones @ (ones / values)
        weights: Array = x / norms * (projections / squared)
        return weights
