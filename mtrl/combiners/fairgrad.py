"""Fair resource allocation in multi-task learning (Ban & Ji, 2024)."""

from typing import Annotated

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import limit_norm, on_nonzero, power_balance
from mtrl.ranges import Positive, Within


@register("fairgrad")
class FairGrad(GramianCombiner):
    """FairGrad (Ban & Ji, 2024, algorithm 1): ``G w = w^(-1 / alpha)``, elementwise, with all ``w_i > 0``.

    The update maximises the tasks' alpha-fair utility of loss decrease in a ball: ``alpha -> 0`` maximises the sum,
    1 is proportional fairness (Nash-MTL), large values approach max-min fairness (MGDA). A task with a zero gradient
    takes no part and gets weight 0.

    Args:
        alpha: the fairness, above 0; 2 as in the authors' runs, while their code's signature has 1.
        max_norm: cap on the length of the update, above 0; 1 as in the authors' code, infinity for the paper's scale.

    Raises:
        RunError: from ``weights``, where a convex combination of the gradients vanishes (Pareto stationary): then
            there is no solution.
    """

    def _setup(self, *, alpha: Positive = 2.0, max_norm: Annotated[float, Within("(0, inf]")] = 1.0) -> None:
        self.power = 1 / alpha
        self.max_norm = max_norm

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        weights = on_nonzero(norms, cosines, lambda n, c: power_balance(n, c, self.power, precision))
        return limit_norm(weights, norms, cosines, self.max_norm)
