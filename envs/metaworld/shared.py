"""What a task vector and its workers share: options, the messages of a step, and the memory it goes through."""

from dataclasses import dataclass
from mmap import mmap
from types import SimpleNamespace
from typing import Literal

import numpy as np

OBSERVATION_SIZE = 39
ACTION_SIZE = 4

STEP = b"step"
DONE = b""

Goals = Literal["random", "evaluation", "fixed"]
RewardVersion = Literal["v1", "v2"]


@dataclass(frozen=True)
class Options:
    """What all tasks of a vector have in common; see `envs.metaworld.vector.TaskVector`."""

    seed: int
    horizon: int
    reward_version: RewardVersion
    terminate_on_success: bool
    goals: Goals
    fast: bool


_ROW = np.dtype(
    [
        ("actions", np.float32, (ACTION_SIZE,)),
        ("active", np.bool_),
        # What a step leads to; see `mtrl.rl.protocols.Step`.
        ("current_observations", np.float32, (OBSERVATION_SIZE,)),
        ("next_observations", np.float32, (OBSERVATION_SIZE,)),
        ("rewards", np.float64),
        ("terminated", np.bool_),
        ("truncated", np.bool_),
        ("success", np.bool_),
        ("episode_success", np.bool_),
        ("episode_return", np.float64),
        ("unstable", np.bool_),
    ],
    align=True,
)


def block_size(num_tasks: int) -> int:
    """How many bytes `block` needs."""
    return num_tasks * _ROW.itemsize


def block(buffer: mmap, num_tasks: int) -> SimpleNamespace:
    """Arrays over a buffer, one row a task: the actions, whether to step, and what the step led to."""
    rows = np.ndarray(num_tasks, _ROW, buffer)
    return SimpleNamespace(**{name: rows[name] for name in _ROW.names or ()})
