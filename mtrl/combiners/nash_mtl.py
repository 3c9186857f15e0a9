"""Multi-task learning as a bargaining game (Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik & Fetaya, 2022)."""

import torch
from torch import Tensor

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import limit_norm, power_balance
from mtrl.ranges import Count, PositiveOrInfinite


@register("nash_mtl")
class NashMTL(GramianCombiner):
    """Nash-MTL (Navon et al., 2022, claim 3.1): ``G w = 1 / w``, elementwise, with all ``w_i > 0``.

    The Nash bargaining solution of the tasks, for which the gradients' scale does not matter: ``w_i g_i`` is the same
    if ``g_i`` is multiplied by a positive number. The update ``J^T w`` has length ``sqrt(T)``, so that with T > 1 the
    default cap on it, that of the authors' code, always applies and gives unit length. Zero gradients get weight 0.

    Args:
        update_every: solve again at every n-th call and keep the weights in between; 1 as in the paper's default.
        max_norm: cap on the length of the update, above 0; 1 as in the authors' code, infinity for the paper's scale.

    Raises:
        RunError: from ``weights``, where there is no solution: a convex combination of the gradients vanishes.
    """

    weights_specific = True

    def _setup(self, *, update_every: Count = 1, max_norm: PositiveOrInfinite = 1.0) -> None:
        self.update_every = update_every
        self.max_norm = max_norm
        self.solved: Tensor = torch.nn.Buffer(torch.zeros(self.num_tasks, dtype=torch.float64))
        self.calls: Tensor = torch.nn.Buffer(torch.tensor(0))

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        if int(self.calls) % self.update_every == 0:
            self.solved.copy_(torch.from_numpy(super()._solve(norms, cosines, losses, precision)))
        self.calls += 1
        return limit_norm(self.solved.cpu().numpy(), norms, cosines, self.max_norm)

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        return power_balance(norms, cosines, 1.0, precision)
