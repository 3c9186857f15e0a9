"""Fair resource allocation in multi-task learning (Ban & Ji, 2024)."""

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import limit_norm, power_balance
from mtrl.ranges import Positive, PositiveOrInfinite


@register("fairgrad")
class FairGrad(GramianCombiner):
    """FairGrad (Ban & Ji, 2024, algorithm 1): ``G w = w^(-1 / alpha)``, elementwise, with all ``w_i > 0``.

    The update maximises the tasks' alpha-fair utility of loss decrease in a ball: ``alpha -> 0`` maximises the sum,
    1 is proportional fairness (Nash-MTL), large values approach max-min fairness (MGDA). Zero gradients get weight 0.

    Args:
        alpha: the fairness, above 0; 2 as in the authors' runs, while their code's signature has 1.
        max_norm: cap on the length of the update, above 0; 1 as in the authors' code, infinity for the paper's scale.

    Raises:
        RunError: from ``weights``, where there is no solution: a convex combination of the gradients vanishes.
    """

    def _setup(self, *, alpha: Positive = 2.0, max_norm: PositiveOrInfinite = 1.0) -> None:
        self.power = 1 / alpha
        self.max_norm = max_norm

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        return limit_norm(super()._solve(norms, cosines, losses, precision), norms, cosines, self.max_norm)

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        return power_balance(norms, cosines, self.power, precision)
