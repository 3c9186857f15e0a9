"""Random gradient dropping: independent Bernoulli weights (Kurin et al., 2022)."""

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register
from mtrl.ranges import PositiveFraction


@register("random_grad_drop")
class RandomGradDrop(LossCombiner):
    """Random Grad Drop (Kurin et al., 2022, proposition 4): ``w_i ~ Bernoulli(p)``, whatever the gradients.

    All weights can be zero at once, with probability ``(1 - p)^T``; then the step is skipped, as in the proposition.

    Args:
        p: the probability of keeping a task, which the paper leaves open; 0.5 as in its code's Bernoulli RLW.
    """

    def _setup(self, *, p: PositiveFraction = 0.5) -> None:
        self.p = p

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return torch.rand(self.num_tasks, generator=self.generator, dtype=torch.float64) < self.p
