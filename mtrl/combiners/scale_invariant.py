"""Scale-invariant scalarization: the sum of log-losses."""

from torch import Tensor

from mtrl.combiners import LossCombiner, register
from mtrl.combiners.base import divisors
from mtrl.ranges import NotNegative


@register("scale_invariant")
class ScaleInvariant(LossCombiner):
    """Minimises ``sum_i log L_i`` (the baseline SI of Navon et al., 2022), so ``w_i = 1 / L_i``.

    A loss of 0 (without an offset) gets weight 0.

    Args:
        offset: at least 0; minimises ``sum_i log(L_i + offset)``, which bounds the weights by ``1 /
            offset``. 0 as in the paper, 1 in the code of Aligned-MTL (Senushkin et al., 2023).
    """

    positive_losses = True

    def _setup(self, *, offset: NotNegative = 0.0) -> None:
        self.offset = offset

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return 1 / divisors(losses + self.offset)
