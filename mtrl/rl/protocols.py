"""What the training loop asks of environments and agents."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mtrl.run.state import Resumable, Stream

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Policy = Callable[[Floats], Floats]
"""Maps observations ``[T, O]`` to actions ``[T, A]``."""


class Step(NamedTuple):
    """What one vector step led to, one row a task.

    An episode that ends is followed by the next one in the same step (gymnasium's ``SAME_STEP`` autoreset).
    """

    current_observations: Floats
    """``[T, O]``, what to act on now: where an episode has just ended, the first observation of the next."""
    next_observations: Floats
    """``[T, O]``, what the action led to: where an episode has just ended, its final observation."""
    rewards: NDArray[np.float64]
    """``[T]``, raw."""
    terminated: Bools
    """``[T]``, whether the episode ended for good: its value does not bootstrap."""
    truncated: Bools
    """``[T]``, whether it was cut off, by the horizon or an unstable simulation: its value bootstraps."""
    success: Bools
    """``[T]``, whether this step is a success."""
    episode_success: Bools
    """``[T]``, whether any step of the episode so far, this one included, was a success."""
    episode_return: NDArray[np.float64]
    """``[T]``, the sum of the episode's raw rewards so far, this step's included."""
    unstable: Bools
    """``[T]``, whether the simulation became unstable: then the transition is no valid sample."""


class Environments(Resumable, Protocol):
    """A vector of T tasks that are stepped together; its state is exact, also mid-episode, except where it says so."""

    tasks: list[str]
    whole_episodes: bool
    """Whether episodes go on after a success, so that their returns and lengths are measures."""
    reference_returns: dict[str, tuple[float, float]]
    """By task the return of a random policy and of an expert; empty where there are none."""
    restarted: list[str]
    """The tasks whose episodes the last `load_state_dict` could not go on with: it began others."""

    @property
    def tells_success(self) -> Bools:
        """``[T]``, whether any step of the task so far said whether it was a success."""

    @property
    def current_observations(self) -> Floats:
        """``[T, O]``, what to act on now."""

    def reset(self, *, seed: int | None = None) -> Floats:
        """Starts a new episode everywhere; with a seed, that seed's first one, whatever was played before."""

    def step_async(self, actions: Floats, active: Bools | None = None) -> None:
        """Sends actions ``[T, A]`` and returns at once; tasks that are not active stay as they are."""

    def step_wait(self) -> Step:
        """Waits for the step that `step_async` started."""

    def close(self) -> None:
        """Ends the workers."""


class Agent(Resumable, Protocol):
    """What acts and learns; its state leaves out the replay buffer's entries."""

    @property
    def replay(self) -> Stream:
        """The replay buffer."""

    def act(self, observations: Floats) -> Floats:
        """Exploring actions."""

    def act_randomly(self) -> Floats:
        """Uniform actions."""

    def policy_state(self) -> dict[str, Any]:
        """A copy of what the policy is at this moment."""

    def policy(self, state: dict[str, Any] | None = None) -> Policy:
        """The deterministic policy of a `policy_state`, or of this moment, on the CPU; learning does not change it.

        It can be pickled, where evaluation is to be played beside training.
        """

    def remember(self, observations: Floats, actions: Floats, step: Step) -> None:
        """Stores a vector step's transitions."""

    def abandon(self, tasks: Sequence[str]) -> None:
        """Is told that the episodes of these tasks, neither terminated nor truncated, do not go on: others begin."""

    def reset(self) -> None:
        """Begins anew with what it has seen so far."""

    def update(self, *, insight: bool = False) -> dict[str, Any]:
        """One gradient step; returns scalars to log, and by ``count/<counter>`` what is to be counted."""
