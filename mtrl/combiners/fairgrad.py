"""Fair resource allocation in multi-task learning (Ban & Ji, 2024)."""

import math

from mtrl.combiners import Array, register
from mtrl.combiners.balance import PowerBalance
from mtrl.combiners.solvers import limit_norm
from mtrl.ranges import Positive, PositiveOrInfinite


@register("fairgrad")
class FairGrad(PowerBalance):
    """FairGrad (Ban & Ji, 2024, algorithm 1): ``G w = w^(-1 / alpha)``, elementwise, with all ``w_i > 0``.

    The update maximises the tasks' alpha-fair utility of loss decrease in a ball: ``alpha -> 0`` maximises the sum,
    1 is proportional fairness (Nash-MTL), large values approach max-min fairness (MGDA). Zero gradients get weight 0.
    Where a convex combination of the gradients vanishes (Pareto-stationary points) there is no solution: the update
    and the weights are 0.

    Args:
        alpha: the fairness, above 0; 2 as in the authors' runs, while their code's signature has 1.
        max_norm: cap on the length of the update, above 0. As in the authors' code, whose value is 1, the update is T
            times the paper's before it is capped; infinity is for the paper's scale.
    """

    weights_specific = False  # authors' code (weight_methods.py) backpropagates each loss as it is into the heads

    def _setup(self, *, alpha: Positive = 2.0, max_norm: PositiveOrInfinite = 1.0) -> None:
        self.power = 1 / alpha
        self.max_norm = max_norm

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        self.stationary = False
        weights = super()._solve(norms, cosines, losses, precision)
        if math.isfinite(self.max_norm):
            weights *= self.num_tasks
        return limit_norm(weights, norms, cosines, self.max_norm)

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        return self._balance(norms, cosines, self.power, precision)
