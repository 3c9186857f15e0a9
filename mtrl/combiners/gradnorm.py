"""GradNorm (Chen, Badrinarayanan, Lee & Rabinovich, 2018)."""

import torch
from torch import Tensor

from mtrl.combiners import Combiner, register
from mtrl.combiners.adam import AdamVector
from mtrl.ranges import NotNegative, Positive


@register("gradnorm")
class GradNorm(Combiner):
    """GradNorm (Chen et al., 2018, equations 1 and 2): weighted gradient norms that follow the training rates.

    With ``n_i = |g_i|``, ``r_i`` the ratio of the loss to its first value, divided by the mean of these ratios, and the
    constant ``C_i = r_i^alpha mean_j (w_j n_j)``, the weights descend ``sum_i |w_i n_i - C_i|``, whose gradient is
    ``sign(w_i n_i - C_i) n_i``: no second backward pass. They start at 1, take an Adam step after every call, stay
    above 0.001, since a negative weight would never come back, and are rescaled to the sum T. The paper takes the
    norms on the last shared layer; these are of whatever the Gramian is of. A zero gradient keeps its weight, up to
    the rescaling. A loss of 0 has the ratio 0, or 1 if it has never been positive; if all are 0, all ``r_i`` are 1.

    Args:
        alpha: how strongly slow tasks are favoured, at least 0; 1.5 as for NYUv2 in the paper (0.12 for toys).
        learning_rate: Adam's for the weights, above 0; 0.025, as for the learnt weights of `Uncertainty`.
    """

    needs = "gramian"
    positive_losses = True
    weights_specific = True  # algorithm 1: all of the network descends the weighted sum of the losses

    def _setup(self, *, alpha: NotNegative = 1.5, learning_rate: Positive = 0.025) -> None:
        self.alpha = alpha
        self.learnt = AdamVector(torch.ones(self.num_tasks), learning_rate)
        self.first_losses: Tensor = torch.nn.Buffer(torch.zeros(self.num_tasks, dtype=torch.float64))

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        assert gramian is not None  # `_check` has seen to it.
        learnt = self.learnt.value
        weights = learnt.clone()
        losses = losses.to(weights)
        self.first_losses.copy_(torch.where(self.first_losses > 0, self.first_losses, losses))
        ratio = torch.where(self.first_losses > 0, losses / self.first_losses, 1)
        norms = gramian.diagonal().to(weights).clamp_min(0).sqrt()
        weighted = weights * norms
        relative = torch.where(ratio.mean() > 0, ratio / ratio.mean(), 1)
        target = weighted.mean() * relative**self.alpha
        self.learnt.step((weighted - target).sign() * norms)
        learnt.clamp_min_(0.001)
        learnt *= self.num_tasks / learnt.sum()
        return weights
