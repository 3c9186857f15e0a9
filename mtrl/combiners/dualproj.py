"""DualProj: gradient episodic memory's projection (Lopez-Paz & Ranzato, 2017), for multi-task learning."""

import numpy as np

from mtrl.combiners import register
from mtrl.combiners.gramian import GramianCombiner
from mtrl.combiners.solvers import Array, dual_cone


@register("dualproj")
class DualProj(GramianCombiner):
    """DualProj (Lopez-Paz & Ranzato, 2017, equation 11; named by Quinton & Rey, 2024): a mean without conflicts.

    The mean gradient ``g_0`` is projected onto the cone ``{x : g_j^T x >= 0 for all j}``, exactly. Where it conflicts
    with no gradient, all weights are ``1 / T``. A task with a zero gradient keeps weight ``1 / T``.
    """

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        kept = np.flatnonzero(norms)
        weights = np.full_like(norms, 1 / self.num_tasks)
        if kept.size:
            lengths = norms[kept] / norms.max()
            weights[kept] *= dual_cone(cosines[np.ix_(kept, kept)], lengths[None])[0] / lengths
        return weights
