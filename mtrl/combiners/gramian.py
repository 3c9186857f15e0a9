"""The base of the methods whose weights come from the lengths of the task gradients and the angles between them."""

import torch
from torch import Tensor

from mtrl.combiners.base import Combiner
from mtrl.combiners.solvers import Array, to_host, unit_gramian


class GramianCombiner(Combiner):
    """A re-weighting that is solved in float64 on the CPU; subclasses implement `_solve`."""

    needs = "gramian"

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        assert gramian is not None  # `_check` has seen to it.
        host_gramian, host_losses = to_host(gramian, losses)
        norms, cosines = unit_gramian(host_gramian)
        return torch.from_numpy(self._solve(norms, cosines, host_losses, torch.finfo(gramian.dtype).eps))

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        """Returns the weights ``[T]``.

        Args:
            norms: ``|g_i|``, ``[T]``, some of them may be 0.
            cosines: ``g_i^T g_j / (|g_i| |g_j|)``, ``[T, T]``, 0 for zero gradients.
            losses: ``[T]``.
            precision: the machine epsilon of the type in which the Gramian was computed.
        """
        raise NotImplementedError
