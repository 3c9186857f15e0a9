"""How Meta-World's tasks are played."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mtrl.ranges import Count

OBSERVATION_SIZE = 39
ACTION_SIZE = 4


@dataclass
class Options:
    """How the tasks are played.

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
