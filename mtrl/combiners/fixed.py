"""Scalarization with weights chosen in advance (Hu et al., 2023, "Revisiting Scalarization in MTL")."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtrl.combiners.base import Combiner
from mtrl.combiners.checks import check_interval
from mtrl.errors import InputError


class Fixed(Combiner):
    """Linear scalarization (Hu et al., 2023): ``w_i`` is given and stays.

    Args:
        num_tasks: the number of tasks T.
        weights: T numbers of at least 0, not all 0; there is no default.
        **common: see `Combiner`.

    Raises:
        InputError: if the weights are missing, not T, negative, not finite, or all zero.
    """

    needs = "losses"
    weights_specific = True
    given: Tensor

    def __init__(self, num_tasks: int, *, weights: Sequence[float] | None = None, **common: Any) -> None:
        super().__init__(num_tasks, **common)
        if weights is None or isinstance(weights, str) or not hasattr(weights, "__len__"):
            raise InputError(f"fixed: weights must be a list of {num_tasks} numbers, got {weights!r}")
        if len(weights) != num_tasks:
            raise InputError(f"fixed: weights must have one number per task ({num_tasks}), got {len(weights)}")
        for task, weight in enumerate(weights):
            check_interval("fixed", f"weights[{task}]", weight, "[0, inf)")
        if not any(weights):
            raise InputError("fixed: weights must not all be zero")
        # Not saved: it is an option, and a resumed run keeps the option it was started with.
        self.register_buffer("given", torch.tensor(list(weights), dtype=torch.float64), persistent=False)

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return self.given
