"""ConFIG: conflict-free inverse gradients (Liu, Chu & Thuerey, 2025)."""

import numpy as np

from mtrl.combiners import register
from mtrl.combiners.gramian import GramianCombiner
from mtrl.combiners.solvers import Array, eigen, on_nonzero


@register("conflict_free")
class ConflictFree(GramianCombiner):
    """ConFIG (Liu et al., 2025, equation 2): equal cosines with all gradients, as long as their projections.

    With unit gradients as the rows of ``U``, ``v = U^+ 1`` has the same product with all of them if that is possible
    (else the products nearest to it); the update is ``(sum_i g_i^T v / |v|) v / |v|``. In terms of the cosines ``C``,
    ``v = U^T x`` with ``x = C^+ 1``. Where ``v = 0``, as for two opposite gradients, the update and the weights are 0.
    Zero gradients get weight 0.
    """

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        def solve(norms: Array, cosines: Array) -> Array:
            values, vectors = eigen(cosines, precision)
            ones = vectors.sum(0)
            squared = ones @ (ones / values)
            if ones @ ones <= len(norms) ** 2 * precision:
                return np.zeros_like(norms)
            projections = norms @ (vectors @ ones)
            weights: Array = vectors @ (ones / values) / norms * (projections / squared)
            return weights

        return on_nonzero(norms, cosines, solve)
