"""Sign-agnostic gradient masking (Kurin et al., 2022, appendix D.3): GradDrop without the signs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrl.combiners import Combiner, register
from mtrl.combiners.direction import at_norm_of, by_map, column_blocks, generator_on
from mtrl.ranges import FractionBelowOne


@register("sign_agnostic_drop")
class SignAgnosticDrop(Combiner):
    """Drops every entry of J on its own with the same probability (Kurin et al., 2022, appendix D.3).

    ``d_p = sum_i m_ip J_ip`` with ``m_ip ~ Bernoulli(1 - drop)``, stretched to the norm of ``sum_i J_i``.
    On an accelerator the mask is drawn there, by a generator that this combiner's seeds. At a representation, as in
    `GradDrop`, one draw per task and feature serves all samples.

    Args:
        drop: the probability of dropping an entry, rounded down to a multiple of 2^-16; 0.75 as in the paper's code.
        renormalize: stretch to the norm of the plain sum, as in the paper's code.
    """

    needs = "jacobian"

    def _setup(self, *, drop: FractionBelowOne = 0.75, renormalize: bool = True) -> None:
        self.drop = drop
        self.renormalize = renormalize

    def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
        generator = generator_on(jacobian.device, self.generator)
        totals, sums = [], []
        for (block,) in column_blocks(jacobian):
            mask = self._draw(block, generator)
            if self.renormalize:
                totals.append(block.sum(0))
            sums.append(block.mul_(mask).sum(0))
        direction = torch.cat(sums)
        return at_norm_of(direction, torch.cat(totals)) if self.renormalize else direction

    def _combine_at(self, losses: Tensor, jacobian: Tensor, activations: Sequence[Tensor]) -> Tensor:
        generator, total = generator_on(jacobian.device, self.generator), jacobian.sum(0)
        pieces = [
            torch.einsum("tnf,tf->nf", gradients, self._draw(gradients[:, 0], generator)).flatten()
            for gradients, _ in by_map(jacobian, activations)
        ]
        direction = torch.cat(pieces)
        return at_norm_of(direction, total) if self.renormalize else direction

    def _draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """A mask of a matrix's shape: ones and zeros of its type, since booleans multiply ten times slower."""
        # 16 random bits an entry: drawing T x P floats would cost more than all the rest of the update.
        lowest_kept = int(self.drop * 2**16) - 2**15
        words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
        bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)
        return torch.ge(bits[: like.numel()].view(like.shape), lowest_kept, out=torch.empty_like(like))
