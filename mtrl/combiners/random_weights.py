"""Random loss weights: a fresh draw at every step, from the combiner's own generator."""

from typing import Any

import torch
from torch import Tensor

from mtrl.combiners.base import Combiner
from mtrl.combiners.checks import check_interval


class RandomGradDrop(Combiner):
    """Random Grad Drop (Kurin et al., 2022, proposition 4): ``w_i ~ Bernoulli(p)``, whatever the gradients.

    All weights can be zero at once, with probability ``(1 - p)^T``, and then the step is skipped, as in the
    proposition.

    Args:
        num_tasks: the number of tasks T.
        p: the probability of keeping a task, in (0, 1]. The paper leaves it open; 0.5 as for the Bernoulli
            weights of RLW in its code.
        **common: see `Combiner`.

    Raises:
        InputError: if ``p`` is out of range.
    """

    needs = "losses"
    weights_specific = True

    def __init__(self, num_tasks: int, *, p: float = 0.5, **common: Any) -> None:
        super().__init__(num_tasks, **common)
        check_interval("random_grad_drop", "p", p, "(0, 1]")
        self.p = p

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return torch.rand(self.num_tasks, generator=self.generator, dtype=torch.float64) < self.p


class RLWNormal(Combiner):
    """Random Loss Weighting (Lin et al., 2022): ``w = softmax(x)`` with ``x ~ N(0, I)``, which sums to 1.

    Kurin et al., 2022 multiply by T, which is ``rescale``.
    """

    needs = "losses"
    weights_specific = True

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return torch.randn(self.num_tasks, generator=self.generator, dtype=torch.float64).softmax(0)


class RLWDirichlet(Combiner):
    """Random Loss Weighting (Lin et al., 2022): ``w ~ Dirichlet(1, ..., 1)``, uniform on the simplex, sum 1.

    Kurin et al., 2022 multiply by T, which is ``rescale``.
    """

    needs = "losses"
    weights_specific = True

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        # Independent Exp(1) variables over their sum have this distribution.
        draws = torch.empty(self.num_tasks, dtype=torch.float64).exponential_(generator=self.generator)
        return draws / draws.sum()
