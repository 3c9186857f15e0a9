"""The multiple-gradient descent algorithm (Désidéri, 2012; Sener & Koltun, 2018)."""

from typing import Literal

import numpy as np

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import min_norm


@register("mgda")
class MGDA(GramianCombiner):
    """MGDA (Sener & Koltun, 2018, equation 3): the shortest vector in the convex hull of the gradients.

    ``a = argmin |sum_i a_i g_i / s_i|`` over ``a_i >= 0, sum_i a_i = 1``, solved exactly, and ``w_i = a_i / s_i``: a
    direction that descends every loss, zero at Pareto-stationary points. The paper has ``s_i = 1``, so that the
    weights sum to 1; published code divides the gradients first by ``s_i = |g_i|`` (``l2``), ``L_i`` (``loss``) or
    ``L_i |g_i|`` (``loss+``). The update here is the shortest vector of these scaled gradients, as in Kurin et
    al., 2022; the code of Sener & Koltun puts ``a`` on the unscaled ones, which loses common descent.

    A zero gradient is itself the shortest vector: its task gets all the weight (several share it), the update is 0.
    With ``loss`` and ``loss+`` a loss of 0 takes no part, gradient or none: its task gets weight 0.

    Args:
        normalization: ``none`` (the paper), ``l2``, ``loss`` or ``loss+``; the last two are for losses of at least 0.
    """

    weights_specific = False  # algorithm 2, line 2: heads descend their own losses; the authors' code weighs them too

    def _setup(self, *, normalization: Literal["none", "l2", "loss", "loss+"] = "none") -> None:
        self.normalization = normalization
        self.positive_losses = "loss" in normalization

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        weights = np.zeros_like(norms)
        counts = np.flatnonzero(losses) if self.positive_losses else np.arange(len(norms))
        norms, cosines = norms[counts], cosines[np.ix_(counts, counts)]
        zero = norms == 0
        if zero.any():
            weights[counts] = zero / np.count_nonzero(zero)
            return weights
        scale = np.ones_like(norms)
        if self.normalization in ("loss", "loss+"):
            scale *= losses[counts]
        if self.normalization in ("l2", "loss+"):
            scale *= norms
        if counts.size:
            weights[counts] = min_norm(norms / scale, cosines) / scale
        return weights
