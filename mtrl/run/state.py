"""What a run is checkpointed by; needs no PyTorch, which the simulators' processes do without."""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Resumable(Protocol):
    """Something in the middle of its work."""

    def state_dict(self) -> dict[str, Any]:
        """All that it goes on from, bit for bit: nested dictionaries and lists of tensors, numbers, strings, None."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""


class Stream(Protocol):
    """An append-only stream of which the last ``capacity`` entries count: what a replay buffer is to a disk."""

    @property
    def added(self) -> int:
        """How many entries there ever were."""

    @property
    def capacity(self) -> int:
        """How many of them are kept."""

    def slice(self, start: int, stop: int) -> "dict[str, Tensor]":
        """The entries numbered ``start`` to ``stop``, on the CPU."""

    def restore(self, start: int, entries: "dict[str, Tensor]") -> None:
        """Writes back a `slice`."""

    def clear(self) -> None:
        """Forgets all entries, and that there were any."""
