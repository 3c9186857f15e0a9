"""Fair resource allocation in multi-task learning (Ban & Ji, 2024)."""

from typing import Any

from mtrl.combiners.checks import check_interval
from mtrl.combiners.gramian import GramianCombiner
from mtrl.combiners.solvers import Array, limit_norm, on_nonzero, power_balance


class FairGrad(GramianCombiner):
    """FairGrad (Ban & Ji, 2024, algorithm 1): ``G w = w^(-1 / alpha)``, elementwise, with all ``w_i > 0``.

    The update maximises the tasks' alpha-fair utility of loss decrease in a ball: ``alpha -> 0`` maximises the sum,
    1 is proportional fairness (Nash-MTL), large values approach max-min fairness (MGDA). A task with a zero gradient
    takes no part and gets weight 0.

    Args:
        num_tasks: the number of tasks T.
        alpha: the fairness, above 0; 2 as in the authors' runs, while their code's signature has 1.
        max_norm: cap on the length of the update, above 0; 1 as in the authors' code, infinity for the paper's scale.
        **common: see `Combiner`.

    Raises:
        InputError: if an option is out of range.
        RunError: from ``weights``, where a convex combination of the gradients vanishes (Pareto stationary): then
            there is no solution.
    """

    def __init__(self, num_tasks: int, *, alpha: float = 2.0, max_norm: float = 1.0, **common: Any) -> None:
        super().__init__(num_tasks, **common)
        check_interval("fairgrad", "alpha", alpha, "(0, inf)")
        check_interval("fairgrad", "max_norm", max_norm, "(0, inf]")
        self.power = 1 / alpha
        self.max_norm = max_norm

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        weights = on_nonzero(norms, cosines, lambda n, c: power_balance(n, c, self.power, precision))
        return limit_norm(weights, norms, cosines, self.max_norm)
