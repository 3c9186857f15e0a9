"""The replay buffer: transitions as the environments gave them, and mini-batches of their n-step returns."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.errors import InputError
from mtrl.gradients.graphs import pinned
from mtrl.run import machine


class Transitions(NamedTuple):
    """What the buffer holds, ``[T, ...]``."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    """Raw, but under `reward_scale=collected`."""
    next_observations: Tensor
    """The true successor, at the end of an episode too."""
    terminated: Tensor
    """Whether the episode ended for good; a truncated one bootstraps."""
    begins: Tensor
    """Whether it does not follow from the transition stored before it: the first of an episode."""


class Batch(NamedTuple):
    """A mini-batch ``[T, B, ...]``, an equal slice per task: actions, and what n steps from there led to."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    """``sum_k gamma^k r_k``; what learns from it scales it."""
    next_observations: Tensor
    """The true successor of the last of these steps."""
    discounts: Tensor
    """What the value of the successor counts: ``gamma^n``; 0 where the episode ended for good."""


HOST = torch.device("cpu")


def free_memory(device: torch.device) -> int:
    """Bytes of memory that a device has free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return machine.free_memory()


def storage_device(needed: int, device: torch.device) -> torch.device:
    """Where to put so many bytes: on the training device if they fit there, or else in the host's memory."""
    return device if needed <= free_memory(device) else HOST


def _side_by_side(transition: Iterable[Tensor]) -> Tensor:
    return torch.cat([field.double().reshape(len(field), -1) for field in transition], 1)


class ReplayBuffer:
    """One preallocated ring of transitions per task, ``[T, capacity, ...]`` per field, on the training device.

    Where they do not fit there, the fields live in the host's memory, and mini-batches are gathered there and sent.

    Args:
        num_tasks: T; observations are of size O, actions of size A.
        capacity: transitions per task.
        device: where mini-batches are used, and the fields live if they fit.
        discount: gamma.
        n_step: how many steps a mini-batch looks ahead; fewer where the episode, or what is stored of it, ends before.
        reserve: bytes that have to stay free there, for updates.

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
        *,
        discount: float,
        n_step: int = 1,
        reserve: int = 0,
    ) -> None:
        self.num_tasks, self.capacity = num_tasks, capacity
        self.discount, self.n_step = discount, n_step
        needed = self.check_memory(num_tasks, capacity, observation_size, action_size, device)
        self.device, self.storage = device, storage_device(needed + reserve, device)
        """Where mini-batches go, and where the fields are."""
        if self.storage != device:
            warnings.warn(
                f"the replay buffer of {needed / 2**30:.2f} GiB does not fit on {device} beside updates of up to "
                f"{reserve / 2**30:.2f} GiB: it lives in host memory",
                stacklevel=2,
            )
        storage, shape = self.storage, (num_tasks, capacity)
        self.fields = Transitions(
            observations=torch.empty(*shape, observation_size, device=storage),
            actions=torch.empty(*shape, action_size, device=storage),
            rewards=torch.empty(*shape, device=storage),
            next_observations=torch.empty(*shape, observation_size, device=storage),
            terminated=torch.empty(*shape, dtype=torch.bool, device=storage),
            begins=torch.empty(*shape, dtype=torch.bool, device=storage),
        )
        """Everything stored, ``[T, capacity, ...]``; raw rewards."""
        self.added = 0
        """Transitions added so far, per task; the buffer holds the last ``min(added, capacity)``."""
        self.begins = torch.ones(num_tasks, dtype=torch.bool)
        """``[T]``, whether the transition added next is the first of an episode."""
        # Where the next ones go, and how many there are where the moments are: graphs read no number of the host's.
        self._slot = torch.zeros((), dtype=torch.int64, device=storage)
        self._held = torch.zeros((), dtype=torch.float64, device=device)
        # Moments of the stored rewards, kept up to date in float64 as transitions come and go.
        self._mean = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self._squares = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        # First flat index of each task's ring
        self._offset = torch.arange(num_tasks, device=storage) * capacity

    @staticmethod
    def bytes_needed(num_tasks: int, capacity: int, observation_size: int, action_size: int) -> int:
        """The memory of all fields, in bytes: four per number, one per flag."""
        return num_tasks * capacity * (4 * (2 * observation_size + action_size + 1) + 2)

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

    def add(
        self,
        *transition: Tensor,
        ended: Tensor,
        broken: Tensor | None = None,
        write: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Adds one raw transition of every task, ``[T, ...]``: the fields of `Transitions` up to ``terminated``.

        Args:
            transition: the fields.
            ended: ``[T]``, whether the episode is over with it.
            broken: ``[T]``, whether it is none: the last one is added again, as an episode of its own.
            write: `write` or a graph of it.
        """
        rows = pinned(_side_by_side([*transition, self.begins]), self.storage)
        if broken is not None and bool(broken.any()):
            rows, again = (tensor.to(self.storage) for tensor in (rows, broken.unsqueeze(1)))
            last = self.last()
            rows = torch.where(again, _side_by_side(last._replace(begins=torch.ones_like(last.begins))), rows)
            ended = ended | broken
        (write or self.write)(rows)
        self.added += 1
        self.begins = ended

    def write(self, rows: Tensor) -> None:
        """The part of `add` that reads nothing back from the device: a transition's fields side by side, in float64."""
        rows, at, start = rows.to(self.storage, non_blocking=True), self._offset + self._slot, 0
        flat = [field.view(-1, *field.shape[2:]) for field in self.fields]
        old = flat[2][at]
        for field in flat:
            size = math.prod(field.shape[1:])
            field.index_copy_(0, at, rows[:, start : start + size].to(field.dtype).view(len(rows), *field.shape[1:]))
            start += size
        self._count(*(self._send(rewards.double()) for rewards in (flat[2][at], old)))
        self._slot.add_(1).remainder_(self.capacity)

    def _count(self, new: Tensor, old: Tensor) -> None:
        """Brings the moments up to date: ``new`` (``[T]``) comes, and where the ring is full, ``old`` goes."""
        full, before = self._held >= self.capacity, self._mean.clone()
        self._held.add_(1).clamp_(max=self.capacity)
        shift = torch.where(full, new - old, new - before)
        self._mean += shift / self._held
        self._squares += shift * torch.where(full, new - self._mean + old - before, new - self._mean)

    def last(self) -> Transitions:
        """The transition added last, ``[T, ...]``."""
        return Transitions(*(field[:, (self.added - 1) % self.capacity] for field in self.fields))

    def reward_std(self) -> Tensor:
        """``[T]``, the standard deviation of each task's stored rewards; 1 where they do not vary."""
        std = (self._squares.clamp_min(0) / self._held.clamp_min(1)).sqrt()
        # Rounding leaves a constant reward a spread of about 1e-8 of its size.
        constant = std <= 1e-6 * self._mean.abs()
        return torch.where(constant, 1.0, std)

    def reward_mean(self) -> Tensor:
        """``[T]``, the mean of each task's stored rewards."""
        return self._mean

    def draw(self, batch_size: int, generator: torch.Generator) -> Tensor | Batch:
        """Draws ``batch_size`` transitions per task, uniformly with replacement: what `batch` makes a mini-batch.

        Args:
            batch_size: B.
            generator: of the device that the fields are on.

        Returns:
            Which they are, ``[T, B]``; the mini-batch itself where it has yet to go to the training device.

        Raises:
            InputError: if the buffer is empty.
        """
        if not len(self):
            raise InputError("the replay buffer is empty: collect at least one step before the first update")
        shape = (self.num_tasks, batch_size)
        drawn = torch.randint(len(self), shape, generator=generator, device=self.storage)
        if self.storage == self.device:
            return drawn
        return Batch(*(pinned(rows, self.device) for rows in self._rows(drawn)))

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """A mini-batch of what `draw` draws."""
        return self.batch(self.draw(batch_size, generator))

    def batch(self, drawn: Tensor | Batch, tasks: Tensor | None = None) -> Batch:
        """What `draw` drew, on the training device; raw rewards.

        With the numbers of some tasks, ``[N]``, theirs alone: ``[N, B, ...]``.
        """
        rows = drawn if isinstance(drawn, Batch) else self._rows(drawn)
        batch = Batch(*(field.to(self.device, non_blocking=True) for field in rows))
        return batch if tasks is None else Batch(*(field[tasks] for field in batch))

    def _send(self, tensor: Tensor) -> Tensor:
        return pinned(tensor, self.device).to(self.device, non_blocking=True)

    def _rows(self, drawn: Tensor) -> Batch:
        flat = Transitions(*(field.flatten(0, 1) for field in self.fields))
        first = drawn + self._offset.unsqueeze(1)
        one = self.n_step == 1
        rewards, last, discount = (flat.rewards[first], first, self.discount) if one else self._ahead(drawn, flat)
        discounts = discount * (1 - flat.terminated[last].to(rewards))
        return Batch(flat.observations[first], flat.actions[first], rewards, flat.next_observations[last], discounts)

    def _ahead(self, drawn: Tensor, flat: Transitions) -> tuple[Tensor, Tensor, Any]:
        """Of n steps from those drawn: the sums of rewards, the flat index of the last, and ``gamma^n``."""
        ahead = torch.arange(self.n_step, device=self.storage)
        at = (drawn.unsqueeze(-1) + ahead) % self.capacity + self._offset.view(-1, 1, 1)
        stored = ahead <= ((self._slot - 1 - drawn) % self.capacity).unsqueeze(-1)
        goes_on = (stored & ~flat.begins[at] | (ahead == 0)).long().cumprod(-1)
        n = goes_on.sum(-1)
        last = at.gather(-1, n.unsqueeze(-1) - 1).squeeze(-1)
        rewards = torch.where(goes_on > 0, flat.rewards[at], 0.0)  # where nothing is stored yet there can be anything
        return (rewards * self.discount**ahead).sum(-1), last, self.discount**n

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
        self._set_added(0)
        self.begins.fill_(True)
        self._mean.zero_()
        self._squares.zero_()

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything but the transitions themselves, which `slice` gives."""
        moments = {"mean": self._mean.cpu(), "squares": self._squares.cpu()}
        return {"added": self.added, "begins": self.begins.clone(), **moments}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Restores what `state_dict` gave."""
        self._set_added(int(state["added"]))
        self.begins = torch.as_tensor(state["begins"]).clone()
        self._mean.copy_(torch.as_tensor(state["mean"]))
        self._squares.copy_(torch.as_tensor(state["squares"]))

    def _set_added(self, added: int) -> None:
        self.added = added
        self._slot.fill_(added % self.capacity)
        self._held.fill_(len(self))
