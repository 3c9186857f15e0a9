"""What the training loop asks of environments and agents."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtrl.run.checkpoints import Stream

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Step(Protocol):
    """What one vector step led to, one row a task."""

    @property
    def current_observations(self) -> Floats:
        """``[T, O]``, what to act on now: a new episode's first observation where one has ended."""

    @property
    def next_observations(self) -> Floats:
        """``[T, O]``, what the action led to: the final observation where an episode has ended."""

    @property
    def rewards(self) -> NDArray[np.float64]:
        """``[T]``, raw."""

    @property
    def terminated(self) -> Bools:
        """``[T]``, the episode ended for good: its value does not bootstrap."""

    @property
    def truncated(self) -> Bools:
        """``[T]``, the episode was cut off: its value bootstraps."""

    @property
    def episode_success(self) -> Bools:
        """``[T]``, whether any step of the episode was a success."""

    @property
    def episode_return(self) -> NDArray[np.float64]:
        """``[T]``, the sum of the episode's raw rewards."""

    @property
    def unstable(self) -> Bools:
        """``[T]``, the simulation broke: not a valid transition."""


class Environments(Protocol):
    """A vector of T tasks that are stepped together."""

    tasks: list[str]

    def reset(self, *, restart_goals: bool = False) -> Floats:
        """Starts a new episode everywhere; with ``restart_goals``, the sequence of goals starts over."""

    def step_async(self, actions: Floats, active: Bools | None = None) -> None:
        """Sends actions ``[T, A]`` and returns at once; tasks that are not active stay as they are."""

    def step_wait(self) -> Step:
        """Waits for the step that `step_async` started."""

    def state_dict(self) -> dict[str, Any]:
        """The exact state, mid-episode."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""

    def close(self) -> None:
        """Ends the workers."""


class Agent(Protocol):
    """What acts and learns."""

    @property
    def replay(self) -> Stream:
        """The replay buffer."""

    def act(self, observations: Floats) -> Floats:
        """Exploring actions."""

    def act_randomly(self) -> Floats:
        """Uniform actions."""

    def policy_state(self) -> dict[str, Any]:
        """A copy of what the policy is at this moment."""

    def policy(self, state: dict[str, Any] | None = None) -> Callable[[Floats], Floats]:
        """The deterministic policy of a `policy_state`, or of this moment; learning does not change it."""

    def remember(self, observations: Floats, actions: Floats, step: Step) -> None:
        """Stores a vector step's transitions."""

    def update(self, *, insight: bool = False) -> dict[str, Any]:
        """One gradient step; returns scalars to log."""

    def state_dict(self) -> dict[str, Any]:
        """Everything except for the replay buffer's entries."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
