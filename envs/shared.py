"""What a task vector and its workers share: what a family of tasks is, and the memory that a step goes through."""

import os
from collections.abc import Callable, Iterator, Mapping
from mmap import mmap
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from envs.rendering import Film


class Outcome(NamedTuple):
    """What one step of one task led to, named as in `mtrl.rl.protocols.Step`."""

    next_observations: NDArray[Any]
    rewards: float
    terminated: bool
    truncated: bool
    success: bool
    unstable: bool


class Task(Protocol):
    """One task in a worker: its episodes, which follow from the seed, its name and the episode's number alone.

    Attributes:
        episode: number of the current episode, counted from 0.
        episode_length: its steps so far.
        episode_return: the sum of its rewards so far.
        episode_success: whether any of its steps was a success.
        observation: what to act on next.
        tells_success: whether any step so far said whether it was a success.
        restarted: whether the last `load_state` could not go on in the middle of an episode and began the next.
    """

    name: str
    episode: int
    episode_return: float
    episode_success: bool
    observation: NDArray[Any]
    tells_success: bool
    restarted: bool

    @property
    def observation_space(self) -> "Box[Any]":  # quoted: before Gymnasium 1.4 it takes no type
        """Of one dimension."""

    @property
    def action_space(self) -> "Box[Any]":
        """Of one dimension."""

    @property
    def episode_length(self) -> int:
        """See `Task`."""

    def reset(self, *, seed: int | None = None) -> NDArray[Any]:
        """Starts the next episode, or with a seed the first one of that seed; returns its first observation."""

    def step(self, action: NDArray[np.float32]) -> Outcome:
        """One step, by an action in [-1, 1]; what ends an episode is followed by a `reset`."""

    def state(self) -> dict[str, Any]:
        """Everything that the future depends on, as numbers, strings, arrays, and dictionaries and lists of them."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from a `state` of the same task."""


class Family(Protocol):
    """Where tasks come from; it is pickled, and the workers make the tasks."""

    @property
    def tasks(self) -> list[str]:
        """Their names, each once."""

    @property
    def pad(self) -> bool:
        """Whether observations of unequal size are filled up with zeros."""

    @property
    def whole_episodes(self) -> bool:
        """Whether an episode goes on after its first success, so that its return is a measure."""

    @property
    def reference_returns(self) -> Mapping[str, tuple[float, float]]:
        """By task the return of a random policy and of an expert, for normalised returns; empty without."""

    def make(self, task: str, seed: int) -> Task:
        """Makes a task."""

    def sizes(self) -> tuple[int, int]:
        """The sizes O and A of observations and actions, for whoever has no `TaskVector` to ask.

        Raises:
            InputError: if there are none in common.
        """

    def evaluated(self, *, whole_episodes: bool) -> Self:
        """The family as evaluation plays it, its episodes to their end or, where that is quicker, to a success."""

    def films(self, policy: Callable[[Any], Any], seed: int) -> Iterator["Film"]:
        """Films the first episode of every task; the policy maps observations ``[T, O]`` to actions ``[T, A]``."""

    def groups(self, num_groups: int) -> list[list[int]]:
        """Splits the tasks into groups that take about equally long to step; returns each one's indices, in order."""

    def identity(self) -> dict[str, Any]:
        """What a saved state has to agree on, besides seed and tasks: plain values."""


def block(memory: int, num_tasks: int, observation_size: int, action_size: int) -> NDArray[Any]:
    """A structured array in shared memory, one row a task: the action, whether to step, and what the step led to."""
    row = np.dtype(
        [
            ("actions", np.float32, (action_size,)),
            ("active", np.bool_),
            # What a step leads to; see `mtrl.rl.protocols.Step`.
            ("current_observations", np.float32, (observation_size,)),
            ("next_observations", np.float32, (observation_size,)),
            ("rewards", np.float64),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
            ("success", np.bool_),
            ("episode_success", np.bool_),
            ("episode_return", np.float64),
            ("unstable", np.bool_),
            ("tells_success", np.bool_),
            # Where a task is, for whoever waits in vain: whether it is at work, and on which step of which episode.
            ("busy", np.bool_),
            ("episode", np.int64),
            ("episode_length", np.int64),
        ],
        align=True,
    )
    size = num_tasks * row.itemsize
    os.ftruncate(memory, size)
    return np.ndarray(num_tasks, row, mmap(memory, size))


def widened(observation: ArrayLike, size: int) -> NDArray[Any]:
    """An observation, filled up with zeros where it is smaller than the size."""
    given = np.asarray(observation)
    return given if len(given) == size else np.concatenate([given, np.zeros(size - len(given), given.dtype)])
