"""Gradients of the logarithms of the losses."""

from torch import Tensor

from mtrl.combiners.base import Combiner
from mtrl.combiners.wrappers.wrapper import Wrapper
from mtrl.errors import InputError


class Logarithm(Wrapper):
    """The method on the gradients of ``log l_i``: ``G'_ij = G_ij / (l_i l_j)``, then ``w_i / l_i`` on those of ``l_i``.

    As in DB-MTL (Lin et al., 2023, section 3.1), for any method that reads the Gramian. Losses have to be positive; one
    that is 0 has nothing to learn, and weight 0.

    Args:
        inner: the method.

    Raises:
        InputError: if the method looks at losses alone.
    """

    def __init__(self, inner: Combiner) -> None:
        super().__init__(inner)
        if inner.needs != "gramian":
            raise InputError(f"{inner.name} looks at losses, not at gradients: there is nothing to take 'log' of")
        self.positive_losses = True

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        assert gramian is not None
        inverse = (1 / losses).where(losses > 0, 0.0)
        rows = inverse.repeat(len(gramian) // len(inverse))  # of halves, there are two for each task
        weights = self.inner.weights(losses, gramian * rows.unsqueeze(1) * rows)
        return weights * inverse
