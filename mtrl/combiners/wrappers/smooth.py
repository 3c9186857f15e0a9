"""Weights that are averaged over time."""

import torch
from torch import Tensor

from mtrl.combiners.base import Combiner
from mtrl.combiners.wrappers.wrapper import Wrapper


class Smooth(Wrapper):
    """``w_t = a w_{t-1} + (1 - a) v_t`` of the method's weights ``v_t``; ``w_1 = v_1`` (CR-MOGM: Zhou et al., 2022).

    Args:
        inner: the method.
        momentum: a.
    """

    average: Tensor
    started: Tensor

    def __init__(self, inner: Combiner, momentum: float) -> None:
        super().__init__(inner)
        self.momentum = momentum
        self.register_buffer("average", torch.zeros(inner.num_tasks, dtype=torch.float64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        found = self.inner.weights(losses, gramian).to(self.average)
        self.average.copy_(torch.lerp(found, self.average, self.momentum) if self.started else found)
        self.started.fill_(True)
        return self.average.clone()
