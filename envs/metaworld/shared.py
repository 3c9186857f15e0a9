"""What a task vector and its workers share: options, and the memory that a step goes through."""

import os
from dataclasses import dataclass
from mmap import mmap
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtrl.ranges import Count

OBSERVATION_SIZE = 39
ACTION_SIZE = 4


@dataclass
class Options:
    """How the tasks of a vector are played.

    Attributes:
        horizon: steps after which an episode is cut off.
        reward_version: which of Meta-World's reward functions.
        terminate_on_success: whether a success ends the episode.
        goals: how an episode's goal is chosen: ``random``, one of the 50, with replacement; ``evaluation``, all 50 in
            order, over and over; ``fixed``, always the first (Kurin et al., 2022).
        fast: step through exact replacements of Meta-World's slow parts (see `envs.metaworld.fast`).
    """

    horizon: Count = 500
    reward_version: Annotated[str, Literal["v1", "v2"]] = "v2"
    terminate_on_success: bool = False
    goals: Annotated[str, Literal["random", "evaluation", "fixed"]] = "random"
    fast: bool = True


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


def block(memory: int, num_tasks: int) -> NDArray[Any]:
    """A structured array in shared memory, one row a task: the action, whether to step, and what the step led to."""
    size = num_tasks * _ROW.itemsize
    os.ftruncate(memory, size)
    return np.ndarray(num_tasks, _ROW, mmap(memory, size))
