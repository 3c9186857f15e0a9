"""Equiangular direction method (Katrutsa, Merkulov, Tursynbek & Oseledets, 2020)."""

import numpy as np

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import even_weights, min_norm


@register("edm")
class EDM(GramianCombiner):
    """EDM (Katrutsa et al., 2020): the direction at equal angles with all gradients, of moderate length.

    With ``a`` the weights of the shortest vector in the convex hull of the *unit* gradients,
    ``w_i = c a_i / |g_i|`` and ``c = 1 / sum_i (a_i / |g_i|)``, so the weights sum to 1. For two tasks ``a`` is
    (1/2, 1/2) (Gama & Grassi, 2025, proposition 4). Gradients with ``a_i = 0`` lie nearer to the direction than
    the others; if there are none, this is IMTL-G. Where several ``a`` give that vector, as for parallel gradients, it
    is the one of least norm, which treats equal directions equally. A zero gradient has no direction and gets weight 0.
    """

    weights_specific = False  # the paper has shared parameters only; each head descends its own loss

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        shortest = min_norm(np.ones_like(norms), cosines)
        weights = even_weights(shortest, cosines, precision) / norms
        weights /= weights.sum()
        return weights
