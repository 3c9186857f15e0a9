"""The replay buffer: transitions as the environments gave them."""

import warnings
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from mtrl.errors import InputError


class Batch(NamedTuple):
    """Transitions ``[T, B, ...]``, an equal slice per task."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    """Raw in the buffer; a mini-batch's are scaled by what learns from it (see `agents.reward_scale`)."""
    next_observations: Tensor
    """The true successor, at the end of an episode too."""
    terminated: Tensor
    """Whether the episode ended for good; a truncated one bootstraps."""


HOST = torch.device("cpu")


def free_memory(device: torch.device) -> int:
    """Bytes of memory that a device has free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def storage_device(needed: int, device: torch.device) -> torch.device:
    """Where to put so many bytes: on the training device if they fit there, or else in the host's memory."""
    return device if needed <= free_memory(device) else HOST


class ReplayBuffer:
    """One preallocated ring of transitions per task, ``[T, capacity, ...]`` per field, on the training device.

    Where they do not fit there, the fields live in the host's memory, and mini-batches are gathered there and sent.

    Args:
        num_tasks: T; observations are of size O, actions of size A.
        capacity: transitions per task.
        device: where mini-batches are used, and the fields live if they fit.

    Raises:
        InputError: if the fields fit neither into the device's free memory nor into the host's.
    """

    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        observation_size: int,
        action_size: int,
        device: torch.device,
    ) -> None:
        self.num_tasks, self.capacity = num_tasks, capacity
        needed = self.check_memory(num_tasks, capacity, observation_size, action_size, device)
        self.device, self.storage = device, storage_device(needed, device)
        """Where mini-batches go, and where the fields are."""
        if self.storage != device:
            warnings.warn(
                f"the replay buffer of {needed / 2**30:.2f} GiB does not fit on {device}: it lives in host memory",
                stacklevel=2,
            )
        device, shape = self.storage, (num_tasks, capacity)
        self.fields = Batch(
            observations=torch.empty(*shape, observation_size, device=device),
            actions=torch.empty(*shape, action_size, device=device),
            rewards=torch.empty(*shape, device=device),
            next_observations=torch.empty(*shape, observation_size, device=device),
            terminated=torch.empty(*shape, dtype=torch.bool, device=device),
        )
        """Everything stored, ``[T, capacity, ...]``; raw rewards."""
        self.added = 0
        """Transitions added so far, per task; the buffer holds the last ``min(added, capacity)``."""
        # Moments of the stored rewards, kept up to date in float64 as transitions come and go.
        self._mean = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self._squares = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        # First flat index of each task's ring
        self._offset = torch.arange(num_tasks, device=device).unsqueeze(1) * capacity

    @staticmethod
    def bytes_needed(num_tasks: int, capacity: int, observation_size: int, action_size: int) -> int:
        """The memory of all fields, in bytes: four per number, one per termination flag."""
        return num_tasks * capacity * (4 * (2 * observation_size + action_size + 1) + 1)

    @classmethod
    def check_memory(
        cls, num_tasks: int, capacity: int, observation_size: int, action_size: int, device: torch.device
    ) -> int:
        """The bytes that a buffer takes; an `InputError` where they fit neither on the device nor into host memory."""
        needed = cls.bytes_needed(num_tasks, capacity, observation_size, action_size)
        free = free_memory(storage_device(needed, device))
        if needed > free:
            raise InputError(
                f"the replay buffer ({num_tasks} tasks x {capacity:,} transitions) needs {needed / 2**30:.2f} GiB, "
                f"but the host has {free / 2**30:.2f} GiB free; lower agent.buffer_size"
            )
        return needed

    def __len__(self) -> int:
        """Transitions held per task."""
        return min(self.added, self.capacity)

    def add(self, *transition: Tensor, broken: Tensor | None = None) -> None:
        """Adds one raw transition of every task, ``[T, ...]`` as in `Batch`; of a ``broken`` one, its last again."""
        slot = self.added % self.capacity
        new = [value.to(field) for value, field in zip(transition, self.fields, strict=True)]
        if broken is not None and bool(broken.any()):
            again = broken.to(self.storage)
            pairs = zip(new, self.last(), strict=True)
            new = [torch.where(again if n.dim() == 1 else again[:, None], before, n) for n, before in pairs]
        self._count(Batch(*new).rewards.double(), slot)
        for field, value in zip(self.fields, new, strict=True):
            field[:, slot] = value
        self.added += 1

    def _count(self, new: Tensor, slot: int) -> None:
        """Brings the moments up to date: ``new`` (``[T]``) comes, and what is in the slot goes."""
        if self.added < self.capacity:
            shift = new - self._mean
            self._mean += shift / (self.added + 1)
            self._squares += shift * (new - self._mean)
        else:
            old = self.fields.rewards[:, slot].double()
            before = self._mean.clone()
            self._mean += (new - old) / self.capacity
            self._squares += (new - old) * (new - self._mean + old - before)

    def last(self) -> Batch:
        """The transition added last, ``[T, ...]``."""
        return Batch(*(field[:, (self.added - 1) % self.capacity] for field in self.fields))

    def reward_std(self) -> Tensor:
        """``[T]``, the standard deviation of each task's stored rewards; 1 where they do not vary."""
        std = (self._squares.clamp_min(0) / max(len(self), 1)).sqrt()
        # Rounding leaves a constant reward a spread of about 1e-8 of its size.
        constant = std <= 1e-6 * self._mean.abs()
        return torch.where(constant, 1.0, std)

    def reward_mean(self) -> Tensor:
        """``[T]``, the mean of each task's stored rewards."""
        return self._mean

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draws ``batch_size`` transitions per task, uniformly with replacement.

        Raises:
            InputError: if the buffer is empty.
        """
        if not len(self):
            raise InputError("the replay buffer is empty: collect at least one step before the first update")
        shape = (self.num_tasks, batch_size)
        index = torch.randint(len(self), shape, generator=generator, device=generator.device).to(self.storage)
        index += self._offset
        drawn = Batch(*(field.flatten(0, 1)[index] for field in self.fields))
        return Batch(*map(self._send, drawn._replace(terminated=drawn.terminated.to(drawn.rewards))))

    def _send(self, rows: Tensor) -> Tensor:
        """Brings a mini-batch's field to the training device; to a GPU it travels while the host goes on."""
        if self.device.type == "cuda" and self.storage == HOST:
            rows = rows.pin_memory()
        return rows.to(self.device, non_blocking=True)

    # ------------------------------------------------------------------------------- incremental checkpoints

    def slice(self, start: int, stop: int) -> dict[str, Tensor]:
        """The transitions numbered ``start`` to ``stop`` (counted from the first ever added), copied to the CPU.

        Those that the ring has overwritten by now are gone; the slice then starts later than asked for.
        """
        start = max(start, self.added - self.capacity)
        slots = torch.arange(start, stop, device=self.storage) % self.capacity
        return {name: field[:, slots].cpu() for name, field in self.fields._asdict().items()}

    def restore(self, start: int, transitions: dict[str, Tensor]) -> None:
        """Writes back a `slice` whose first transition has the number ``start``."""
        count = transitions["rewards"].shape[1]
        slots = torch.arange(start, start + count, device=self.storage) % self.capacity
        for name, field in self.fields._asdict().items():
            field[:, slots] = transitions[name].to(field)

    def clear(self) -> None:
        """Forgets all transitions."""
        self.added = 0
        self._mean.zero_()
        self._squares.zero_()

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything but the transitions themselves, which `slice` gives."""
        return {"added": self.added, "mean": self._mean.cpu(), "squares": self._squares.cpu()}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Restores what `state_dict` gave."""
        self.added = int(state["added"])
        self._mean.copy_(torch.as_tensor(state["mean"]))
        self._squares.copy_(torch.as_tensor(state["squares"]))
