"""Homoscedastic uncertainty weighting (Kendall, Gal & Cipolla, 2018)."""

from typing import Any

import torch
from torch import Tensor

from mtrl.combiners.adam import AdamVector
from mtrl.combiners.base import Combiner
from mtrl.combiners.checks import check_interval


class Uncertainty(Combiner):
    """Uncertainty weighting (Kendall et al., 2018, equation 7, in log-variances ``s_i = log sigma_i^2``).

    The network and ``s`` minimise ``sum_i (exp(-s_i) L_i + s_i) / 2``, so ``w_i = exp(-s_i) / 2``, and
    ``s`` takes an Adam step on ``(1 - L_i exp(-s_i)) / 2`` at every call. The optimum is ``w_i = 1 / (2
    L_i)``; a loss that stays negative has none, and its weight grows without bound.

    Args:
        num_tasks: the number of tasks T.
        learning_rate: Adam's, above 0; 0.025 as in the code of Nash-MTL (Navon et al., 2022).
        initial: where every ``s_i`` starts; 0 as there, LibMTL has -0.5.
        **common: see `Combiner`.

    Raises:
        InputError: if an option is out of range.
    """

    needs = "losses"
    weights_specific = True

    def __init__(self, num_tasks: int, *, learning_rate: float = 0.025, initial: float = 0.0, **common: Any) -> None:
        super().__init__(num_tasks, **common)
        check_interval("uncertainty", "learning_rate", learning_rate, "(0, inf)")
        check_interval("uncertainty", "initial", initial, "(-inf, inf)")
        self.log_variance = AdamVector(torch.full((num_tasks,), initial), learning_rate)

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        s = self.log_variance
        weights = (-s.value).exp() / 2
        s.step(0.5 - losses.to(weights) * weights)
        return weights
