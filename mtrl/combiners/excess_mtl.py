"""Multi-task learning with excess risks (He et al., 2024)."""

import torch
from torch import Tensor

from mtrl.combiners import register
from mtrl.combiners.direction import RowMemory, column_blocks
from mtrl.ranges import Count, Positive


@register("excess_mtl")
class ExcessMTL(RowMemory):
    """ExcessMTL (He et al., 2024, equations 6, 7 and 9): tasks farther from their optimum weigh more.

    With the squared gradients summed over the calls, ``S <- S + J * J`` (``[T, P]``), the excess risk of a task is
    estimated as ``r_i = sum_p J_ip^2 / sqrt(S_ip)``. Over its mean in a task's first ``warmup`` calls with a non-zero
    gradient, it moves the weights, ``w_i <- w_i exp(step_size r_i / r_i0)``, which keep the sum 1; until then the
    ratio counts as 1. The direction is ``w^T J``.

    Args:
        step_size: above 0; 0.01 as in LibMTL.
        warmup: calls for the first excess risk, at least 1; 1 as in the authors' code (the paper: 3 epochs).
    """

    def _setup(self, *, step_size: Positive = 0.01, warmup: Count = 1) -> None:
        super()._setup()
        self.step_size = step_size
        self.warmup = warmup
        self.log_weights: Tensor = torch.nn.Buffer(torch.zeros(self.num_tasks, dtype=torch.float64).log_softmax(0))
        self.initial: Tensor = torch.nn.Buffer(torch.zeros(self.num_tasks, dtype=torch.float64))
        self.measured: Tensor = torch.nn.Buffer(torch.zeros(self.num_tasks, dtype=torch.int64))

    def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
        risk = torch.zeros_like(self.initial)
        tiny = torch.finfo(jacobian.dtype).tiny
        for rows, squares in column_blocks(jacobian, self._recall(jacobian)):
            square = rows.square()
            squares += square
            risk += (square / squares.sqrt().clamp_min_(tiny)).sum(1).to(risk)
        warming = self.measured < self.warmup
        self.initial += torch.where(warming, risk / self.warmup, 0)
        self.measured += warming & (risk > 0)
        ratio = torch.where(warming, 1, risk / self.initial)
        self.log_weights = (self.log_weights + self.step_size * ratio).log_softmax(0)
        weights = self.log_weights.exp()
        if self.rescale:
            weights = weights * self.num_tasks
        return weights.to(jacobian) @ jacobian
