"""Geometric loss strategy (Chennupati et al., 2019, "MultiNet++")."""

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register


@register("geometric_mean")
class GeometricMean(LossCombiner):
    """Minimises the losses' geometric mean ``m`` (Chennupati et al., 2019), so ``w_i = m / (T L_i)``.

    Tasks with a loss of 0, for which ``m`` would be 0 and training would end, get weight 0: the mean is the others'.
    """

    positive_losses = True

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        weights, counts = torch.zeros_like(losses, dtype=torch.float64), losses > 0
        logs = losses[counts].double().log()
        weights[counts] = (logs.mean() - logs).exp() / len(logs)
        return weights
