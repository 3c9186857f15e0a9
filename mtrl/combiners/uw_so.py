"""Soft optimal uncertainty weighting (Kirchdorfer, Elich, Kutsche, Stuckenschmidt, Schott & Koehler, 2024)."""

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register
from mtrl.combiners.base import divisors
from mtrl.ranges import Positive


@register("uw_so")
class UWSO(LossCombiner):
    """UW-SO (Kirchdorfer et al., 2024): the inverse losses, which are uncertainty weighting's optimum, under a softmax.

    ``w_i = exp(1 / (tau L_i)) / sum_j exp(1 / (tau L_j))``. Without the softmax (their UW-O) it is `scale_invariant`.
    A loss of 0 takes no part: its task gets weight 0.

    Args:
        temperature: tau, above 0, which the authors search for each data set: the larger, the more equal the weights.
    """

    positive_losses = True

    def _setup(self, *, temperature: Positive = 1.0) -> None:
        self.temperature = temperature

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        scaled = divisors(losses.double() * self.temperature)
        weights = torch.where(scaled.isfinite(), 1 / scaled, -torch.inf).softmax(0)
        return weights.nan_to_num()  # all losses can be 0
