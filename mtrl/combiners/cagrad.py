"""Conflict-averse gradient descent (Liu, Liu, Jin, Stone & Liu, 2021)."""

from typing import Literal

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import max_min_in_ball
from mtrl.ranges import NotNegative


@register("cagrad")
class CAGrad(GramianCombiner):
    """CAGrad (Liu et al., 2021, equation 2): help the worst-off task, within a ball around the mean gradient.

    ``d`` maximises ``min_i g_i^T d`` subject to ``|d - g_0| <= c |g_0|`` with ``g_0 = sum_i g_i / T``. By duality (the
    paper's equation 3) ``d = g_0 + (c |g_0| / |g_a|) g_a``, ``g_a = sum_i a_i g_i``, where ``a`` minimises
    ``g_a^T g_0 + c |g_0| |g_a|`` over the simplex. Where ``g_a = 0`` (Pareto-stationary points, and always when a
    gradient is 0) that formula is void; ``d`` is then the maximiser nearest to ``g_0``.

    Args:
        c: the radius of the ball relative to ``|g_0|``, at least 0; the paper requires it below 1 for convergence
            to a minimum of the mean loss. 0.4 as for NYUv2 in the paper (0.9 and 0.5 for MT10 and MT50 in its code).
        shrink: divide by ``1 + c^2`` (``quadratic``, their code), ``1 + c`` (``linear``) or 1 (``none``, the paper).
    """

    weights_specific = False  # authors' code (nyuv2/utils.py) backpropagates each loss as it is into the heads

    def _setup(self, *, c: NotNegative = 0.4, shrink: Literal["quadratic", "linear", "none"] = "quadratic") -> None:
        self.c = c
        self.divisor = {"quadratic": 1 + c**2, "linear": 1 + c, "none": 1.0}[shrink]

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        added = max_min_in_ball(norms, cosines, self.c, precision)
        return (1 / self.num_tasks + added) / self.divisor
