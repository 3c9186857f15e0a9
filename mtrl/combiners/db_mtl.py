"""Dual-balancing multi-task learning (Lin et al., 2023)."""

from typing import Any

import torch
from torch import Tensor

from mtrl.combiners.checks import check_interval
from mtrl.combiners.direction import RowMemory


class DBMTL(RowMemory):
    """DB-MTL (Lin et al., 2023, algorithm 1): log-losses, and every gradient as long as the longest.

    At call t the gradients of the log-losses are averaged, ``m_i <- b m_i + (1 - b) J_i / L_i`` with
    ``b = beta / t^beta_decay`` and ``m = 0`` at first, and the direction is
    ``sum_i m_i max_j ||m_j|| / ||m_i||``. A zero ``m_i`` adds nothing. The paper takes the log-losses for
    task-specific parameters too; here these get the gradient of their plain loss.

    Args:
        num_tasks: the number of tasks T.
        beta: the averaging, in [0, 1); 0.9 as in LibMTL.
        beta_decay: its decay, at least 0; 0 as in LibMTL.
        **common: see `Combiner`.

    Raises:
        InputError: if an option is out of range; in `combine` also on a loss that is not positive or if P
            changes.
    """

    positive_losses = True

    def __init__(self, num_tasks: int, *, beta: float = 0.9, beta_decay: float = 0.0, **common: Any) -> None:
        super().__init__(num_tasks, **common)
        check_interval("db_mtl", "beta", beta, "[0, 1)")
        check_interval("db_mtl", "beta_decay", beta_decay, "[0, inf)")
        self.beta = beta
        self.beta_decay = beta_decay

    def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
        m = self._recall(jacobian)
        m.lerp_(jacobian.div_(losses[:, None]), (1 - self.beta / self.calls**self.beta_decay).to(m))
        norms = m.norm(dim=1)
        return torch.where(norms > 0, norms.max() / norms, 0) @ m
