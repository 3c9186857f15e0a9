"""Homoscedastic uncertainty weighting (Kendall, Gal & Cipolla, 2018)."""

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register
from mtrl.combiners.adam import AdamVector
from mtrl.ranges import Finite, Positive


@register("uncertainty")
class Uncertainty(LossCombiner):
    """Uncertainty weighting (Kendall et al., 2018, equation 7, in log-variances ``s_i = log sigma_i^2``).

    The network and ``s`` minimise ``sum_i (exp(-s_i) L_i + s_i) / 2``, so ``w_i = exp(-s_i) / 2``, and
    ``s`` takes an Adam step on ``(1 - L_i exp(-s_i)) / 2`` at every call. The optimum is ``w_i = 1 / (2
    L_i)``; a loss that stays negative has none, and its weight grows without bound. A loss of 0, which has none either,
    counts as at its optimum.

    Args:
        learning_rate: Adam's, above 0; 0.025 as in the code of Nash-MTL (Navon et al., 2022).
        initial: where every ``s_i`` starts; 0 as there, LibMTL has -0.5.
    """

    def _setup(self, *, learning_rate: Positive = 0.025, initial: Finite = 0.0) -> None:
        self.log_variance = AdamVector(torch.full((self.num_tasks,), initial), learning_rate)

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        s = self.log_variance
        weights = (-s.value).exp() / 2
        losses = losses.to(weights)
        s.step(torch.where(losses != 0, 0.5 - losses * weights, 0))
        return weights
