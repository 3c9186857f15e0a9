"""Central direction with task tensioners (Nakamura, Grassi & Wolf, 2022)."""

import math

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners import Array, register
from mtrl.combiners.edm import EDM
from mtrl.ranges import Fraction


@register("cdtt")
class CDTT(EDM):
    """CDTT (Nakamura et al., 2022; in the form of Gama & Grassi, 2025, proof of proposition 5).

    From EDM's direction ``d``, each task pulls towards its gradient, the harder the less it has learnt:

        ``d' = d + sum_i c_i (g_i - d) / |g_i - d|``,  ``c_i = alpha / (1 + exp(e - e delta_i)) + 1 - alpha``,

    where ``delta_i = S_i(t) / S_i(t - 1) + log10 L_i`` and ``S_i(t)`` sums ``|g_i|`` over the last 10 calls; until
    there are two such sums this is EDM. Then, while ``d'`` conflicts with a gradient, the one with the lowest
    cosine (parallel ones by their mean) pulls ``d'`` straight towards itself until they are orthogonal, at most T
    times. (Gama & Grassi's code visits the tasks once each, in their order.) The weights sum to 1. The pulls have unit
    length whatever the gradients' scale, so this method is not equivariant under scaling. A zero gradient gets weight
    0. At a loss of 0, ``c_i`` is its limit ``1 - alpha``.

    Args:
        alpha: the sensitivity of the pulls; of 0.2, 0.4, ... 1.0 Gama & Grassi choose 0.6 for Multi-MNIST's two digits.
    """

    positive_losses = True
    weights_specific = False  # as `EDM`

    def _setup(self, *, alpha: Fraction = 0.6) -> None:
        self.alpha = alpha
        self.recent: Tensor = torch.nn.Buffer(torch.zeros(10, self.num_tasks, dtype=torch.float64))
        self.previous: Tensor = torch.nn.Buffer(torch.zeros(self.num_tasks, dtype=torch.float64))
        self.steps: Tensor = torch.nn.Buffer(torch.tensor(0))

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        weights = super()._solve(norms, cosines, losses, precision)
        step = int(self.steps)
        self.steps += 1
        self.recent[step % len(self.recent)] = torch.from_numpy(norms).to(self.recent)
        if step + 1 < len(self.recent):
            return weights
        sums = self.recent.sum(0)
        growth = torch.where(self.previous > 0, sums / self.previous, torch.inf).cpu().numpy()
        self.previous.copy_(sums)
        if step + 1 == len(self.recent):
            return weights

        logs = np.log10(losses, out=np.full_like(losses, -1e300), where=losses > 0)
        delta = np.where(losses > 0, growth, 0) + logs
        pull = self.alpha / (1 + np.exp(np.minimum(math.e * (1 - delta), 700.0))) + 1 - self.alpha
        lengths = weights * norms
        apart = np.diag(norms) - lengths
        squared = np.einsum("ij,jk,ik->i", apart, cosines, apart)
        # A gradient that is the direction itself, up to the rounding of the difference, does not pull.
        rounding = len(norms) * precision * (norms + lengths.sum()) ** 2
        pulls = (norms > 0) & (squared > rounding)
        strength = np.divide(pull, np.sqrt(np.maximum(squared, 0)), out=np.zeros_like(norms), where=pulls)
        return _without_conflicts(weights * (1 - strength.sum()) + strength, norms, cosines)


def _without_conflicts(weights: Array, norms: Array, cosines: Array) -> Array:
    for _ in norms:
        lengths = weights * norms
        along = cosines @ lengths
        worst, rounding = int(along.argmin()), len(norms) * np.finfo(np.float64).eps
        if along[worst] >= -rounding * np.abs(lengths).sum():
            break
        # On the segment from g_i to d, the point orthogonal to g_i; parallel gradients pull by their mean.
        parallel = cosines[worst] >= 1 - rounding
        length = norms[parallel].mean()
        kept = length / (length - along[worst])
        weights = kept * weights
        weights[parallel] += (1 - kept) / np.count_nonzero(parallel)
    return weights
