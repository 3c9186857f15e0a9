"""Unitary scalarization (Kurin et al., 2022, "In Defense of the Unitary Scalarization for Deep MTL")."""

from torch import Tensor

from mtrl.combiners import LossCombiner, register


@register("unitary")
class Unitary(LossCombiner):
    """Sums the losses (Kurin et al., 2022, equation 1): ``w_i = 1``, one plain backward pass."""

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return losses.new_ones(self.num_tasks)
