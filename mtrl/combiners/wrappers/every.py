"""Weights that are found every R-th step."""

import torch
from torch import Tensor

from mtrl.combiners.base import Combiner, Needs
from mtrl.combiners.wrappers.wrapper import Wrapper


class Every(Wrapper):
    """Solves for the weights at every R-th step, and keeps them in between, when no Gramian is needed.

    Nash-MTL's ``update_weights_every`` (Navon et al., 2022, appendix B), for any method; PSMGD (Xu et al., 2025).

    Args:
        inner: the method.
        period: R; the first step solves.
    """

    needs_change = True
    found: Tensor
    count: Tensor

    def __init__(self, inner: Combiner, period: int) -> None:
        super().__init__(inner)
        self.period = period
        self.register_buffer("found", torch.ones(inner.num_tasks, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """See `Combiner`; of the step that comes next."""
        return "losses" if int(self.count) % self.period else self.inner.needs

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        if int(self.count) % self.period == 0:
            self.found.copy_(self.inner.weights(losses, gramian))
        self.count += 1
        return self.found.clone()
