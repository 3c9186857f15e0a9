"""Gradient Vaccine (Wang, Tsvetkov, Firat & Cao, 2021)."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.pcgrad import orders_of_others, sum_of_rows
from mtrl.ranges import Fraction


@register("gradvac")
class GradVac(GramianCombiner):
    """GradVac (Wang et al., 2021, equations 2 and 3, algorithm 1): PCGrad with learnt targets for the cosines.

    Each ``g_i' = g_i`` meets every other ``g_j`` once, in a random order of its own. Where their cosine ``p`` is
    below the target ``q_ij``, ``g_i'`` turns to it by adding ``a g_j``,

        ``a = |g_i'| (q sqrt(1 - p^2) - p sqrt(1 - q^2)) / (|g_j| sqrt(1 - q^2))``,

    and then ``q_ij`` becomes ``(1 - beta) q_ij + beta p``. The update is ``sum_i g_i'``. The targets start at 0, so
    that the first call is PCGrad's, and are those of the whole model (the paper's ``whole_model``), ``[T, T]``. A
    target above 1 - 1e-6 acts as that: turning onto ``g_j`` itself would take an infinite ``a``. Pairs with a zero
    vector, ``g_i'`` included, are passed over; a task with a zero gradient keeps weight 1.

    Args:
        beta: the rate of the moving average in [0, 1]; 0.5 as in LibMTL and TorchJD.
        update: move a target ``always`` (default, the paper) or only on a ``violation``, as in Samsung's code.
    """

    weights_specific = False  # section 3: gradients of the shared model; published code gives heads their plain loss's

    def _setup(self, *, beta: Fraction = 0.5, update: Literal["always", "violation"] = "always") -> None:
        self.beta = beta
        self.update = update
        self.targets: Tensor = torch.nn.Buffer(torch.zeros(self.num_tasks, self.num_tasks, dtype=torch.float64))

    def _solve(self, norms: Array, cosines: Array, losses: Array, precision: float) -> Array:
        targets = self.targets.cpu().numpy().copy()
        tasks = np.arange(self.num_tasks)
        # Row i holds g_i' / |g_i| in terms of the unit gradients, and its products with them.
        coefficients, products = np.eye(self.num_tasks), cosines.copy()
        rounding = self.num_tasks * precision
        for others in orders_of_others(self.num_tasks, self.generator):
            squared = (coefficients * products).sum(1)
            nonzero = squared > rounding * np.abs(coefficients).sum(1) ** 2
            counts = nonzero & (norms > 0) & (norms[others] > 0)
            length = np.sqrt(np.where(nonzero, squared, 1.0))
            cosine = np.clip(products[tasks, others] / length, -1.0, 1.0)
            stored = targets[tasks, others]
            target = np.minimum(stored, 1 - 1e-6)
            below = counts & (cosine < target)
            sines = np.sqrt(np.divide(1 - cosine**2, 1 - target**2, out=np.zeros_like(target), where=below))
            added = np.where(below, length * (target * sines - cosine), 0.0)
            coefficients[tasks, others] += added
            products += added[:, None] * cosines[others]
            moves = counts if self.update == "always" else below
            targets[tasks, others] = stored + np.where(moves, self.beta * (cosine - stored), 0.0)
        self.targets.copy_(torch.from_numpy(targets))
        return sum_of_rows(norms, coefficients)
