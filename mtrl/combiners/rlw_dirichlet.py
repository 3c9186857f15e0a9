"""Random loss weighting, uniform on the simplex (Lin, Ye, Zhang & Tsang, 2022)."""

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register


@register("rlw_dirichlet")
class RLWDirichlet(LossCombiner):
    """Random Loss Weighting (Lin et al., 2022): ``w ~ Dirichlet(1, ..., 1)``, uniform on the simplex, sum 1.

    Kurin et al., 2022 multiply by T, which is ``rescale``.
    """

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        # Independent Exp(1) variables over their sum have this distribution.
        draws = torch.empty(self.num_tasks, dtype=torch.float64).exponential_(generator=self.generator)
        return draws / draws.sum()
