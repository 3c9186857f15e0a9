"""Group optimisation for task alignment (Shen, Snoek & Zhen, 2024)."""

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners import Array, LossCombiner, register
from mtrl.combiners.base import divisors
from mtrl.ranges import Count, Positive


@register("go4align")
class GO4Align(LossCombiner):
    """GO4Align (Shen et al., 2024, algorithm 1): tasks of similar risk form groups, and a group has one weight.

    At each call ``p_i <- p_i exp(-eta L_i) / Z``, from ``1 / T`` on, and the risk ``v_i = p_i sum_j L_j / L_i``. The
    risks are put into groups by k-means, and ``w_i`` is the mean of its group. The authors' k-means starts at random;
    numbers have an exact one, which is found here. A loss of 0 takes no part: its task gets weight 0.

    Args:
        groups: how many, at least 1; where fewer risks differ, each has its own. 2 as in the paper for few tasks.
        eta: the step of ``p``, above 0; 0.0001 as in the authors' code.
    """

    positive_losses = True

    def _setup(self, *, groups: Count = 2, eta: Positive = 0.0001) -> None:
        self.groups, self.eta = groups, eta
        self.total: Tensor = torch.nn.Buffer(torch.zeros(self.num_tasks, dtype=torch.float64))

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        self.total += losses.to(self.total)  # p is a softmax of it, so that none underflows for good
        shares = divisors(losses / losses.sum()).to(self.total)
        weights, there = torch.zeros_like(self.total), shares.isfinite()
        if bool(there.any()):
            risks = (-self.eta * self.total[there]).softmax(0) / shares[there]
            weights[there] = torch.from_numpy(group_means(risks.cpu().numpy(), self.groups)).to(weights)
        return weights


def group_means(values: Array, groups: int) -> Array:
    """The mean of each value's group, ``[n]``: k-means in one dimension, exact (Wang & Song, 2011).

    Groups are neighbours in order, equal values never part: of the values ``0`` to ``j - 1`` in ``g`` groups, the least
    sum of squares ``D_g(j)`` is that of some last group ``i`` to ``j - 1``: ``min_i D_{g-1}(i) + S(i, j)``.
    """
    scale = np.abs(values).max() or 1.0
    distinct, places, counts = np.unique(values / scale, return_inverse=True, return_counts=True)
    n = len(distinct)
    means, costs = np.zeros((n + 1, n + 1)), np.full((n + 1, n + 1), np.inf)
    number, mean, cost = np.zeros((3, n))  # of the group that begins with each value and ends with the last one
    for j, (value, count) in enumerate(zip(distinct, counts, strict=True)):
        begun = slice(j + 1)
        number[begun] += count
        off = value - mean[begun]
        mean[begun] += off * count / number[begun]
        cost[begun] += off * count * (value - mean[begun])
        means[begun, j + 1], costs[begun, j + 1] = mean[begun], cost[begun]
    least, starts = costs[0], [np.zeros(n + 1, int)]
    for _ in range(min(groups, n) - 1):
        starts.append((least[:, None] + costs).argmin(0))
        least = (least[:, None] + costs).min(0)
    found, stop = np.empty(n), n
    for start in reversed(starts):
        begin = start[stop]
        found[begin:stop], stop = means[begin, stop], begin
    grouped: Array = found[places] * scale
    return grouped
