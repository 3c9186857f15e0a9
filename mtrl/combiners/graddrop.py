"""Gradient Sign Dropout (Chen et al., 2020, "Just Pick a Sign")."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrl.combiners import Combiner, register
from mtrl.combiners.direction import at_norm_of, by_map, column_blocks, generator_on
from mtrl.ranges import Fraction, NotNegative


@register("graddrop")
class GradDrop(Combiner):
    """GradDrop (Chen et al., 2020, algorithm 1; Kurin et al., 2022, equation 6): one sign per coordinate.

    A coordinate with positive part ``a = sum_i max(J_ip, 0)`` and negative part ``b = sum_i min(J_ip, 0)``
    has the purity ``P = a / (a - b)``, which is ``(1 + sum_i J_ip / sum_i |J_ip|) / 2``. With ``u`` uniform
    on [0, 1] and ``f(P) = 1/2 + k (P - 1/2)`` it gets ``a`` if ``f(P) > u`` and ``b`` otherwise. On an
    accelerator ``u`` is drawn there, by a generator that this combiner's seeds.

    At a representation ``z`` (``[N, ...]``) the coordinates are its features, as in the algorithm: the signs are those
    of ``G_i = sum_n sgn(z_n) * dL_i/dz_n``, the purity is that of ``G``, and each feature has one ``u``. The tasks
    whose ``G_i`` has the chosen sign keep their gradient of that feature, in all samples.

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
        chosen = self._choose(positive, negative, generator_on(jacobian.device, self.generator))
        kept = torch.where(chosen, positive, negative)
        total = positive + negative
        direction = kept.lerp_(total, self.leak)
        return at_norm_of(direction, total) if self.renormalize else direction

    def _combine_at(self, losses: Tensor, jacobian: Tensor, activations: Sequence[Tensor]) -> Tensor:
        generator, pieces = generator_on(jacobian.device, self.generator), []
        for gradients, z in by_map(jacobian, activations):
            signed = (z.sign() * gradients).sum(1)
            chosen = self._choose(signed.clamp_min(0).sum(0), signed.clamp_max(0).sum(0), generator)
            mask = torch.where(chosen, signed > 0, signed < 0).to(gradients)
            pieces.append(torch.einsum("tnf,tf->nf", gradients, self.leak + (1 - self.leak) * mask).flatten())
        direction = torch.cat(pieces)
        return at_norm_of(direction, jacobian.sum(0)) if self.renormalize else direction

    def _choose(self, positive: Tensor, negative: Tensor, generator: torch.Generator) -> Tensor:
        """Whether each coordinate takes the positive sign, from the sums of its positive and its negative parts."""
        u = torch.empty_like(positive).uniform_(generator=generator)
        # Not a number where both parts are 0: the comparison is false and takes the negative part, 0.
        purity = positive / (positive - negative)
        return 0.5 + self.k * (purity - 0.5) > u
