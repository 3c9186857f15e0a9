"""Gradient Sign Dropout (Chen et al., 2020, "Just Pick a Sign")."""

import torch
from torch import Tensor

from mtrl.combiners import Combiner, register
from mtrl.combiners.direction import at_norm_of, column_blocks, generator_on
from mtrl.ranges import Fraction, NotNegative


@register("graddrop")
class GradDrop(Combiner):
    """GradDrop (Chen et al., 2020, algorithm 1; Kurin et al., 2022, equation 6): one sign per coordinate.

    A coordinate with positive part ``a = sum_i max(J_ip, 0)`` and negative part ``b = sum_i min(J_ip, 0)``
    has the purity ``P = a / (a - b)``, which is ``(1 + sum_i J_ip / sum_i |J_ip|) / 2``. With ``u`` uniform
    on [0, 1] and ``f(P) = 1/2 + k (P - 1/2)`` it gets ``a`` if ``f(P) > u`` and ``b`` otherwise. On an
    accelerator ``u`` is drawn there, by a generator that this combiner's seeds.

    Args:
        leak: how much of the plain sum passes, in [0, 1], the same for every task; 0 as in the paper.
        k: the slope of f, at least 0; 1 (f is the identity) as in the paper.
        renormalize: stretch to the norm of the plain sum, as the code of Kurin et al. does and the paper does not.
    """

    needs = "jacobian"

    def _setup(self, *, leak: Fraction = 0.0, k: NotNegative = 1.0, renormalize: bool = False) -> None:
        self.leak = leak
        self.k = k
        self.renormalize = renormalize

    def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
        parts = [(block.clamp_min(0).sum(0), block.clamp_max(0).sum(0)) for (block,) in column_blocks(jacobian)]
        positive, negative = (torch.cat(part) for part in zip(*parts, strict=True))
        u = torch.empty_like(positive).uniform_(generator=generator_on(jacobian.device, self.generator))
        # Not a number where both parts are 0: the comparison is false and takes the negative part, 0.
        purity = positive / (positive - negative)
        kept = torch.where(0.5 + self.k * (purity - 0.5) > u, positive, negative)
        total = positive + negative
        direction = kept.lerp_(total, self.leak)
        return at_norm_of(direction, total) if self.renormalize else direction
