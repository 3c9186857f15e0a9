"""Per-task gradients: who differentiates what, and what ends up in ``.grad``.

Two situations, two ways in:

* Every task has its own samples (multi-task RL): `TaskBatched` gets all per-task gradients of a network from
  one backward pass.
* All tasks share the input (supervised multi-task learning): `backward` differentiates each loss with respect
  to the shared representation or the shared parameters.

Both are sources of one pipeline, `mtrl.gradients.pipeline`.
"""

from mtrl.gradients.distributed import mean_losses
from mtrl.gradients.layers import TaskRows, register_rule
from mtrl.gradients.pipeline import DEFAULT_MEMORY_LIMIT, Combination, NonFiniteError, check_finite
from mtrl.gradients.shared_input import Aliases, backward, fan_out
from mtrl.gradients.task_batched import TaskBatched

__all__ = [
    "DEFAULT_MEMORY_LIMIT",
    "Aliases",
    "Combination",
    "NonFiniteError",
    "TaskBatched",
    "TaskRows",
    "backward",
    "check_finite",
    "fan_out",
    "mean_losses",
    "register_rule",
]
