"""Impartial multi-task learning, losses and gradients (Liu, Li, Kuang, Xue, Chen, Yang, Liao & Zhang, 2021)."""

import numpy as np
import torch

from mtrl.combiners import register
from mtrl.combiners.adam import AdamVector
from mtrl.combiners.imtl_g import ImtlG
from mtrl.combiners.solvers import Array
from mtrl.ranges import Positive


@register("imtl")
class Imtl(ImtlG):
    """The hybrid of both (Liu et al., 2021): IMTL-G on the gradients of IMTL-L's scaled losses.

    ``w_i = a_i exp(s_i)``, with ``s`` as in `ImtlL` and ``a`` the weights of `ImtlG` for the gradients
    ``exp(s_i) g_i``. In the paper task-specific parameters see ``exp(s_i)`` alone. Here, as everywhere, they see the
    whole weight or none, and by default none, because a negative one would send them uphill. The option is that of
    `ImtlL`, the error that of `ImtlG`.
    """

    positive_losses = True
    weights_specific = False  # algorithm 1, see above

    def _setup(self, *, learning_rate: Positive = 0.001) -> None:
        self.log_scale = AdamVector(torch.zeros(self.num_tasks), learning_rate)

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        scale: Array = self.log_scale.value.exp().cpu().numpy()
        weights = scale * super()._solve(scale * norms, cosines, losses, precision)
        slope = np.where(losses > 0, losses * scale - 1, 0)
        self.log_scale.step(torch.from_numpy(slope).to(self.log_scale.value))
        return weights
