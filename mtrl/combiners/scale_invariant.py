"""Scale-invariant scalarization: the sum of log-losses."""

from typing import Any

from torch import Tensor

from mtrl.combiners.base import Combiner
from mtrl.combiners.checks import check_interval


class ScaleInvariant(Combiner):
    """Minimises ``sum_i log L_i`` (the baseline SI of Navon et al., 2022), so ``w_i = 1 / L_i``.

    Args:
        num_tasks: the number of tasks T.
        offset: at least 0; minimises ``sum_i log(L_i + offset)``, which bounds the weights by ``1 /
            offset``. 0 as in the paper, 1 in the code of Aligned-MTL (Senushkin et al., 2023).
        **common: see `Combiner`.

    Raises:
        InputError: if ``offset`` is out of range.
    """

    needs = "losses"
    positive_losses = True
    weights_specific = True

    def __init__(self, num_tasks: int, *, offset: float = 0.0, **common: Any) -> None:
        super().__init__(num_tasks, **common)
        check_interval("scale_invariant", "offset", offset, "[0, inf)")
        self.offset = offset

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return 1 / (losses + self.offset)
