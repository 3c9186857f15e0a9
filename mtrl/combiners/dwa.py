"""Dynamic Weight Average (Liu, Johns & Davison, 2019)."""

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register
from mtrl.ranges import Count, Positive


@register("dwa")
class DWA(LossCombiner):
    """Dynamic Weight Average (Liu et al., 2019, equation 7): tasks whose loss falls slowly weigh more.

    ``w = T softmax(r / temperature)`` with ``r_i = L_i(k-1) / L_i(k-2)``, the ratio of the mean losses of
    the two periods before the present one. The weights are 1 in the first two periods. A ratio says how
    fast a loss falls only for positive losses; it counts as 1 where the earlier mean is 0.

    Args:
        temperature: above 0; 2 as in the paper, large values give equal weights.
        period: the number of calls that a loss is averaged over, an epoch in the paper; 25 as in Nash-MTL's code.
    """

    positive_losses = True

    def _setup(self, *, temperature: Positive = 2.0, period: Count = 25) -> None:
        self.temperature = temperature
        self.period = period
        # The mean losses of this period so far, the one before, and the one before that.
        self.means: Tensor = torch.nn.Buffer(torch.zeros(3, self.num_tasks, dtype=torch.float64))
        self.calls: Tensor = torch.nn.Buffer(torch.zeros((), dtype=torch.int64))

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        calls = int(self.calls)
        if calls and calls % self.period == 0:
            self.means.copy_(self.means.roll(1, 0))
            self.means[0] = 0
        self.means[0] += losses.to(self.means) / self.period
        self.calls += 1
        if calls < 2 * self.period:
            return torch.ones_like(losses)
        ratios = torch.where(self.means[2] > 0, self.means[1] / self.means[2], 1)
        largest = torch.finfo(ratios.dtype).max
        return self.num_tasks * (ratios / self.temperature).clamp(max=largest).softmax(0)
