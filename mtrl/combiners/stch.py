"""Smooth Tchebycheff scalarization (Lin et al., 2024)."""

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register
from mtrl.combiners.base import divisors
from mtrl.ranges import Count, Positive


@register("stch")
class STCH(LossCombiner):
    """Smooth Tchebycheff scalarization of log-losses (Lin et al., 2024, and the authors' multi-task code).

    Minimises ``T mu log sum_i (L_i / z_i)^(1/mu)``, a smooth ``T max_i log(L_i / z_i)``, so ``w_i = T
    softmax(log(L / z) / mu)_i / L_i``. The reference ``z`` is a mean loss from early in training: the first
    ``warmup`` calls have the weights ``1 / L_i`` of ``scale_invariant``, and the last fifth of them is
    averaged into ``z``, after the authors' 4 epochs of warm-up with the average taken over the fifth. A loss of 0 gets
    weight 0 (the authors' code adds 1e-20), and where ``z`` is 0 the first positive loss takes its place.

    Args:
        mu: the smoothing, above 0; 1 as in the authors' code, towards 0 only the worst task counts.
        warmup: the number of calls before ``z`` is fixed; the default is ours, since RL has no epochs.
    """

    positive_losses = True

    def _setup(self, *, mu: Positive = 1.0, warmup: Count = 5000) -> None:
        self.mu = mu
        self.warmup = warmup
        self.reference: Tensor = torch.nn.Buffer(torch.zeros(self.num_tasks, dtype=torch.float64))
        self.calls: Tensor = torch.nn.Buffer(torch.zeros((), dtype=torch.int64))

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        losses = losses.to(self.reference)
        self.calls += 1
        calls = int(self.calls)
        if calls > self.warmup:
            self.reference.copy_(torch.where(self.reference > 0, self.reference, losses))
            ratios = torch.where(losses > 0, (losses / self.reference).log(), -torch.inf)
            shares = torch.where(losses > 0, (ratios / self.mu).softmax(0), 0)
            return self.num_tasks * shares / divisors(losses)
        averaged = max(self.warmup // 5, 1)
        if calls > self.warmup - averaged:
            self.reference += losses / averaged
        return 1 / divisors(losses)
