"""Fast Adaptive Multitask Optimization (Liu, Feng, Stone & Liu, 2023)."""

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register
from mtrl.combiners.adam import AdamVector
from mtrl.combiners.base import divisors
from mtrl.errors import InputError
from mtrl.ranges import NotNegative, Positive


@register("famo")
class FAMO(LossCombiner):
    """FAMO (Liu et al., 2023, equation 11): all losses fall at the same relative rate.

    With logits ``x`` and ``z = softmax(x)``, ``w_i = c z_i / L_i`` and ``c = 1 / sum_j (z_j / L_j)``, so
    the weights sum to 1 (the authors' reinforcement learning code has ``1 / c`` instead). After the
    optimizer's step, `after_step` takes an Adam step on the logits: with ``d_i = log L_i - log L'_i`` for
    the losses ``L'`` on the same batch, the gradient is ``z_i (d_i - sum_j z_j d_j) + gamma x_i``. A known
    lower bound of a loss can be subtracted from the losses that are passed in. The authors also clip the
    gradient to norm 1, which is up to the driver.

    A loss of 0 takes no part: its task gets weight 0, and a fall from or to it moves no logit. (The authors add 1e-8 to
    all losses, with which a single loss of 0 takes the weight of all others.) Nor does an infinite loss after a
    step, as of one that mixed precision skips.

    Args:
        learning_rate: Adam's for the logits, above 0; 0.025 as in the paper.
        gamma: the decay of the logits, at least 0; 0.01 as in the authors' code for MT10 (mostly 0.001 elsewhere).
    """

    positive_losses = True

    def _setup(self, *, learning_rate: Positive = 0.025, gamma: NotNegative = 0.01) -> None:
        self.gamma = gamma
        self.logits = AdamVector(torch.zeros(self.num_tasks), learning_rate)
        self.before: Tensor = torch.nn.Buffer(torch.full((self.num_tasks,), -1.0, dtype=torch.float64))

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        self.before.copy_(losses)
        weights = self.logits.value.softmax(0) / divisors(self.before)
        return weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)  # all losses can be 0

    def _after_step(self, losses: Tensor) -> None:
        """Moves the logits by how much each loss (``[T]``, on the batch that `weights` last saw) fell.

        Raises:
            InputError: on a wrong shape, a negative loss, or when `weights` was not called before.
        """
        self._check(losses, None)
        if bool((self.before < 0).any()):
            raise InputError("famo: after_step needs the losses before the step: call weights first")
        z = self.logits.value.softmax(0)
        losses = losses.detach().to(z)
        counts = (self.before > 0) & (losses > 0) & losses.isfinite()
        fall = torch.where(counts, self.before.log() - losses.log(), 0)
        share = 1 if bool(counts.all()) else z[counts].sum()
        mean = z @ fall / share
        self.logits.step(torch.where(counts, z * (fall - mean), 0) + self.gamma * self.logits.value)
