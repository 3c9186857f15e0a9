"""Random gradient dropping: independent Bernoulli weights (Kurin et al., 2022)."""

from typing import Annotated

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register
from mtrl.ranges import Within


@register("random_grad_drop")
class RandomGradDrop(LossCombiner):
    """Random Grad Drop (Kurin et al., 2022, proposition 4): ``w_i ~ Bernoulli(p)``, whatever the gradients.

    All weights can be zero at once, with probability ``(1 - p)^T``, and then the step is skipped, as in the
    proposition.

    Args:
        p: the probability of keeping a task, in (0, 1]. The paper leaves it open; 0.5 as for the Bernoulli
            weights of RLW in its code.
    """

    def _setup(self, *, p: Annotated[float, Within("(0, 1]")] = 0.5) -> None:
        self.p = p

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return torch.rand(self.num_tasks, generator=self.generator, dtype=torch.float64) < self.p
