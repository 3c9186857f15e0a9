"""Multi-objective gradient correction (Fernando et al., 2023, "Mitigating Gradient Bias")."""

from typing import Literal

import torch
from torch import Tensor

from mtrl.combiners import register
from mtrl.combiners.direction import RowMemory, lengths
from mtrl.combiners.sdmgrad import project_to_simplex
from mtrl.combiners.solvers import gramian_of
from mtrl.ranges import NotNegative, Positive, PositiveFraction


@register("moco")
class MoCo(RowMemory):
    """MoCo (Fernando et al., 2023, algorithm 1): tracks every task's gradient, and MGDA's weights for them.

    At call t, with ``b = beta / sqrt(t)`` and ``c = gamma / sqrt(t)``: ``Y <- Y - b (Y - J)``, then
    ``l <- project(l - c (Y Y^T + rho I) l)`` onto the simplex, and the direction is ``l^T Y``. ``Y``
    (``[T, P]``) starts at 0, ``l`` at ``1 / T``. What a ``gamma`` does depends on the gradients' scale.

    Args:
        beta: the first step of the tracked gradients, in (0, 1]; 0.5, as all defaults here, as in LibMTL.
        gamma: the first step of the weights, above 0.
        rho: the regularisation of the weights, at least 0.
        normalize: ``none``, or ``loss`` (LibMTL): rows of J are given their losses, at least 0, as norms first.
        projection: ``simplex`` as in the algorithm, or ``softmax`` (LibMTL), which stays near equal weights.
    """

    def _setup(
        self,
        *,
        beta: PositiveFraction = 0.5,
        gamma: Positive = 0.1,
        rho: NotNegative = 0.0,
        normalize: Literal["none", "loss"] = "none",
        projection: Literal["simplex", "softmax"] = "simplex",
    ) -> None:
        super()._setup()
        self.beta = beta
        self.gamma = gamma
        self.rho = rho
        self.normalize = normalize
        self.positive_losses = normalize == "loss"
        self.projection = projection
        self.simplex: Tensor = torch.nn.Buffer(torch.full((self.num_tasks,), 1 / self.num_tasks, dtype=torch.float64))

    def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
        y = self._recall(jacobian)
        if self.normalize == "loss":
            norms = lengths(jacobian)
            jacobian.mul_(torch.where(norms > 0, losses / norms, 0)[:, None])
        y.lerp_(jacobian, (self.beta / self.calls.sqrt()).to(y))
        slope = gramian_of(y).to(self.simplex) @ self.simplex + self.rho * self.simplex
        moved = self.simplex - self.gamma / self.calls.sqrt() * slope
        if self.projection == "softmax":
            self.simplex.copy_(moved.softmax(0))
        else:
            self.simplex.copy_(torch.from_numpy(project_to_simplex(moved.cpu().numpy())))
        return self.simplex.to(y) @ y
