"""DualProj: gradient episodic memory's projection (Lopez-Paz & Ranzato, 2017), for multi-task learning."""

from mtrl.combiners import Array, register
from mtrl.combiners.solvers import dual_cone
from mtrl.combiners.upgrad import UPGrad


@register("dualproj")
class DualProj(UPGrad):
    """DualProj (Lopez-Paz & Ranzato, 2017, equation 11; named by Quinton & Rey, 2024): a mean without conflicts.

    The mean gradient ``g_0`` is projected onto the cone ``{x : g_j^T x >= 0 for all j}``, exactly. Where it conflicts
    with no gradient, all weights are ``1 / T``. A task with a zero gradient keeps weight ``1 / T``.
    """

    weights_specific = False  # as `UPGrad`

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        lengths = norms / norms.max()
        weights: Array = dual_cone(cosines, lengths[None])[0] / lengths
        return weights
