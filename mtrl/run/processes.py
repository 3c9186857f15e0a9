"""The processes that train one model together, as ``torchrun`` starts them; usually there is one."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from mtrl.errors import InputError, RunError
from mtrl.run.machine import device_of

Value = TypeVar("Value")
_TOLD = "mtrl/told"


@dataclass(frozen=True)
class Processes:
    """The processes of a group; without one, a process alone, for which nothing is done.

    Every method but `part` waits for all of them, which have to make the same calls in the same order.
    """

    group: "distributed.ProcessGroup | None" = None

    @property
    def size(self) -> int:
        """How many there are."""
        return 1 if self.group is None else self.group.size()

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""
        return 0 if self.group is None else self.group.rank()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def part(self, indices: Sequence[int]) -> Sequence[int]:
        """This process's part; parts are equally long, the last index is repeated where they would not be."""
        each = -(-len(indices) // self.size)
        own = indices[self.rank * each : (self.rank + 1) * each]
        return own if len(own) == each else [*own, *[indices[-1]] * (each - len(own))]

    def of_all(self, tensor: Tensor) -> Tensor:
        """``[size, ...]``, every process's tensor of one shape and type."""
        if self.group is None:
            return tensor[None]
        own = tensor.detach().contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        # As bytes: gloo knows few types.
        distributed.all_gather([_bytes(one) for one in found], _bytes(own), group=self.group)
        return torch.stack(found)

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest of all processes' entries, at every place."""
        return tensor if self.group is None else self.of_all(tensor).amax(0)

    def shared(self, value: Value) -> Value:
        """What the first process has: plain data and tensors, which the others get on the CPU."""
        if self.group is None:
            return value
        content = torch.empty(0, dtype=torch.uint8)
        if self.first:
            buffer = io.BytesIO()
            torch.save(value, buffer)
            content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
        length = torch.tensor(len(content))
        distributed.broadcast(length, group_src=0, group=self.group)
        if self.first:
            distributed.broadcast(content, group_src=0, group=self.group)
            return value
        content = torch.empty(int(length), dtype=torch.uint8)
        distributed.broadcast(content, group_src=0, group=self.group)
        received: Value = torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)
        return received


def started() -> int:
    """How many processes ``torchrun`` has started, for one model; 1 where it has not."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def started_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if started() > 1 else 1


def own_device(name: str) -> torch.device:
    """`device_of` a name; of several processes, each has the GPU of its number on its machine."""
    device = device_of(name)
    if started() == 1 or device.type != "cuda":
        return device
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index is not None or number >= count:
        advice = "give every process a GPU of its own" if device.index is None else "use device=cuda"
        raise InputError(f"device={name}: {started_here()} processes on a machine with {count} GPUs: {advice}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def together() -> Iterator[Processes]:
    """The processes that ``torchrun`` has started, this one among them; of one alone, nothing is started.

    Raises `RunError` in place of what torch raises where one of them cannot be reached any more.
    """
    if started() == 1:
        yield Processes()
        return
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        yield Processes(distributed.group.WORLD)
        # A thread of gloo's that frees what was sent last while Python ends aborts the process. This sends no tensors,
        # and is not over before the slowest process is here, long after that.
        distributed.barrier()
        distributed.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise RunError(
                f"one of the {started()} processes has ended, or cannot be reached: this run goes on from its last "
                "checkpoint when it is started again"
            ) from error
        raise


def first_to_tell() -> bool:
    """Whether this process is the first of all that has a reason to give why they end; alone, it always is."""
    if started() == 1:
        return True
    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )
        return bool(store.add(_TOLD, 1) == 1)
    except (KeyError, ValueError, RuntimeError):  # nobody there to ask any more
        return os.environ["RANK"] == "0"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)
