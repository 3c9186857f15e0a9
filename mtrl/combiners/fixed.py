"""Scalarization with weights chosen in advance (Hu et al., 2023, "Revisiting Scalarization in MTL")."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, register
from mtrl.errors import InputError
from mtrl.ranges import NotNegative, check


@register("fixed")
class Fixed(LossCombiner):
    """Linear scalarization (Hu et al., 2023): ``w_i`` is given and stays.

    Args:
        weights: T numbers of at least 0, not all 0; there is no default.
    """

    def _setup(self, *, weights: Sequence[NotNegative] | None = None) -> None:
        if weights is None or isinstance(weights, str) or not hasattr(weights, "__len__"):
            raise InputError(f"weights of fixed: expected a list of {self.num_tasks} numbers, got {weights!r}")
        if len(weights) != self.num_tasks:
            raise InputError(f"weights of fixed: expected one number per task ({self.num_tasks}), got {len(weights)}")
        for task, weight in enumerate(weights):
            check(f"weights[{task}] of fixed", weight, NotNegative)
        if not any(weights):
            raise InputError("weights of fixed: expected one above zero")
        # Not saved: it is an option, and a resumed run keeps the option it was started with.
        self.given: Tensor = torch.nn.Buffer(torch.tensor(list(weights), dtype=torch.float64), persistent=False)

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return self.given
