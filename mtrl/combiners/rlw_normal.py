"""Random loss weighting by the softmax of normal variables (Lin, Ye, Zhang & Tsang, 2022)."""

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register


@register("rlw_normal")
class RLWNormal(LossCombiner):
    """Random Loss Weighting (Lin et al., 2022): ``w = softmax(x)`` with ``x ~ N(0, I)``, which sums to 1.

    Kurin et al., 2022 multiply by T, which is ``rescale``.
    """

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return torch.randn(self.num_tasks, generator=self.generator, dtype=torch.float64).softmax(0)
