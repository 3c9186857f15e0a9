"""The loss balance of impartial multi-task learning (Liu, Li, Kuang, Xue, Chen, Yang, Liao & Zhang, 2021)."""

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register
from mtrl.combiners.adam import AdamVector
from mtrl.ranges import Positive


@register("imtl_l")
class ImtlL(LossCombiner):
    """IMTL-L (Liu et al., 2021; Kurin et al., 2022, section 3): scaled losses that are all driven to 1.

    The network and ``s`` minimise ``sum_i (exp(s_i) L_i - s_i)``, so ``w_i = exp(s_i)``, and ``s``, which starts at
    0, takes an Adam step on ``L_i exp(s_i) - 1`` at every call. The optimum is ``w_i = 1 / L_i``. A loss of
    0, which has none, counts as at its optimum.

    Args:
        learning_rate: Adam's, above 0. Published code trains ``s`` with the network's; 0.001 is Adam's own default.
    """

    positive_losses = True

    def _setup(self, *, learning_rate: Positive = 0.001) -> None:
        self.log_scale = AdamVector(torch.zeros(self.num_tasks), learning_rate)

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        scale = self.log_scale.value.exp()
        losses = losses.to(scale)
        self.log_scale.step(torch.where(losses > 0, losses * scale - 1, 0))
        return scale
