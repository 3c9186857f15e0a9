"""Multi-objective gradient descent with double sampling (Chen, Fernando, Ying & Chen, 2023)."""

import torch
from torch import Tensor

from mtrl.combiners import Combiner, register
from mtrl.combiners.sdmgrad import project_to_simplex
from mtrl.combiners.solvers import halves_of, to_host
from mtrl.ranges import NotNegative, Positive


@register("modo")
class MoDo(Combiner):
    """MoDo (Chen et al., 2023, algorithm 1): one projected SGD step towards MGDA's weights at each call.

    ``w <- project(w - gamma (J_1 J_2^T + rho I) w)`` onto the simplex, from ``1 / T`` on, where ``J_1`` and ``J_2`` are
    the per-task gradients of independent samples: a single batch's Gramian would hold the noise squared. Here these are
    the two halves of each task's samples, from one backward pass; the update is of all of them. What a ``gamma`` does
    depends on the gradients' scale.

    Args:
        gamma: the step of the weights, above 0; 0.001, as both defaults here, as in the authors' LibMTL.
        rho: the regularisation of the weights, at least 0; 0.1.
        halves: off, ``J_1 = J_2`` are the whole batch's, which biases the weights: where all tasks share their samples.
    """

    needs = "gramian"
    across_halves = True
    weights_specific = False  # authors' code (LibMTL's MoDo.py) leaves the heads the gradients of their own losses

    def _setup(self, *, gamma: Positive = 0.001, rho: NotNegative = 0.1, halves: bool = True) -> None:
        self.gamma, self.rho, self.halves = gamma, rho, halves
        self.simplex: Tensor = torch.nn.Buffer(torch.full((self.num_tasks,), 1 / self.num_tasks, dtype=torch.float64))

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        assert gramian is not None
        _, cross = halves_of(to_host(gramian)[0], self.num_tasks)
        point = self.simplex.cpu().numpy()
        moved = project_to_simplex(point - self.gamma * (cross @ point + self.rho * point))
        return self.simplex.copy_(torch.from_numpy(moved)).clone()
