"""Impartial multi-task learning (Liu, Li, Kuang, Xue, Chen, Yang, Liao & Zhang, 2021): losses, gradients, both."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners.adam import AdamVector
from mtrl.combiners.base import Combiner
from mtrl.combiners.checks import check_interval
from mtrl.combiners.gramian import GramianCombiner
from mtrl.combiners.solvers import Array, eigen, on_nonzero
from mtrl.errors import RunError


class ImtlL(Combiner):
    """IMTL-L (Liu et al., 2021; Kurin et al., 2022, section 3): scaled losses that are all driven to 1.

    The network and ``s`` minimise ``sum_i (exp(s_i) L_i - s_i)``, so ``w_i = exp(s_i)``, and ``s``, which starts at
    0, takes an Adam step on ``L_i exp(s_i) - 1`` at every call. The optimum is ``w_i = 1 / L_i``.

    Args:
        num_tasks: the number of tasks T.
        learning_rate: Adam's, above 0. Published code trains ``s`` with the network's; 0.001 is Adam's own default.
        **common: see `Combiner`.

    Raises:
        InputError: if ``learning_rate`` is out of range.
    """

    needs = "losses"
    positive_losses = True
    weights_specific = True

    def __init__(self, num_tasks: int, *, learning_rate: float = 0.001, **common: Any) -> None:
        super().__init__(num_tasks, **common)
        check_interval("imtl_l", "learning_rate", learning_rate, "(0, inf)")
        self.log_scale = AdamVector(torch.zeros(num_tasks), learning_rate)

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        scale = self.log_scale.value.exp()
        self.log_scale.step(losses.to(scale) * scale - 1)
        return scale


class ImtlG(GramianCombiner):
    """IMTL-G (Liu et al., 2021; Kurin et al., 2022, equation 4): equal projections on all unit gradients.

    Finds ``w`` with ``sum_i w_i = 1`` for which ``d = J^T w`` has the same ``d^T g_i / |g_i|`` for all tasks. With the
    matrix of cosines ``C`` this is ``w_i = c x_i / |g_i|``, where ``C x = 1`` and ``c`` makes the sum 1. If no ``x`` is
    a solution (0 is in the affine hull of the unit gradients), all projections are 0: ``C x = 0``. (Kurin et al.
    add a ridge of 1e-6, and their code solves the transposed system, which is the same for two tasks only.)

    The weights can be negative and have no bound. Where ``sum_i x_i / |g_i|`` is negative, ``d`` increases every
    loss, as it must by the equation; `EDM` never does. A zero gradient gets weight 0.

    Raises:
        RunError: from ``weights``, if the equations have no solution.
    """

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        return on_nonzero(norms, cosines, lambda n, c: _impartial_weights(n, c, precision))


class Imtl(ImtlG):
    """The hybrid of both (Liu et al., 2021): IMTL-G on the gradients of IMTL-L's scaled losses.

    ``w_i = a_i exp(s_i)``, with ``s`` as in `ImtlL` and ``a`` the weights of `ImtlG` for the gradients
    ``exp(s_i) g_i``. In the paper task-specific parameters see ``exp(s_i)`` alone. Here, as everywhere, they see the
    whole weight or none, and by default none, because a negative one would send them uphill.

    Args:
        num_tasks: the number of tasks T.
        learning_rate: as for `ImtlL`.
        **common: see `Combiner`.

    Raises:
        InputError: if ``learning_rate`` is out of range.
        RunError: from ``weights``, as `ImtlG`.
    """

    positive_losses = True

    def __init__(self, num_tasks: int, *, learning_rate: float = 0.001, **common: Any) -> None:
        super().__init__(num_tasks, **common)
        check_interval("imtl", "learning_rate", learning_rate, "(0, inf)")
        self.log_scale = AdamVector(torch.zeros(num_tasks), learning_rate)

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        scale: Array = self.log_scale.value.exp().cpu().numpy()
        weights = scale * super()._solve(scale * norms, cosines, losses, precision)
        self.log_scale.step(torch.from_numpy(losses * scale - 1).to(self.log_scale.value))
        return weights


def _impartial_weights(norms: Array, cosines: Array, precision: float) -> Array:
    size = len(norms)
    values, vectors = eigen(cosines, precision)
    ones = vectors.sum(0)
    x = vectors @ (ones / values)
    remainder = 1 - vectors @ ones
    if remainder @ remainder > size**2 * precision:
        x = remainder
    weights: Array = x / norms
    total = weights.sum()
    if abs(total) <= size * precision * np.abs(weights).sum():
        raise RunError("IMTL-G's equations have no solution: equal projections force the weights' sum to 0")
    weights /= total
    return weights
