"""Dual-balancing multi-task learning (Lin et al., 2023)."""

import torch
from torch import Tensor

from mtrl.combiners import register
from mtrl.combiners.base import divisors
from mtrl.combiners.direction import RowMemory, lengths
from mtrl.ranges import FractionBelowOne, NotNegative


@register("db_mtl")
class DBMTL(RowMemory):
    """DB-MTL (Lin et al., 2023, algorithm 1): log-losses, and every gradient as long as the longest.

    At call t the gradients of the log-losses are averaged, ``m_i <- b m_i + (1 - b) J_i / L_i`` with
    ``b = beta / t^beta_decay`` and ``m = 0`` at first, and the direction is ``sum_i m_i max_j ||m_j|| / ||m_i||``.
    A zero ``m_i`` adds nothing. At a loss of 0 the gradient of its logarithm counts as 0 (the code of LibMTL adds 1e-8
    to all losses).

    Args:
        beta: the averaging, in [0, 1); 0.9 as in LibMTL.
        beta_decay: its decay, at least 0; 0 as in LibMTL.
    """

    positive_losses = True

    def _setup(self, *, beta: FractionBelowOne = 0.9, beta_decay: NotNegative = 0.0) -> None:
        super()._setup()
        self.beta = beta
        self.beta_decay = beta_decay

    def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
        m = self._recall(jacobian)
        m.lerp_(jacobian.div_(divisors(losses)[:, None]), (1 - self.beta / self.calls**self.beta_decay).to(m))
        norms = lengths(m)
        return torch.where(norms > 0, norms.max() / norms, 0) @ m
