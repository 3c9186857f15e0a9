"""One model trained by several processes, each with a replica of it and its own part of every batch.

What a combiner sees is of the whole batch: losses are averaged over the processes, Jacobians by parameters too, those
by the representation stand side by side (their Gramians add up). So every process finds the same weights, and the
combined gradient, reduced once, is the one that a single process would have found.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from mtrl.errors import InputError, RunError
from mtrl.gradients.pipeline import Gradients, wide_type
from mtrl.gradients.promises import entries

BUCKET = 1 << 25
"""Bytes that are reduced at once (32 MiB)."""


_SPARSE = "sparse gradients are not averaged over processes: use dense ones"


@dataclass(frozen=True)
class Replicas:
    """The processes of a group; without one, a process alone, which has nobody to wait for.

    Every method waits for all processes of the group, which have to make the same calls in the same order.
    """

    group: "distributed.ProcessGroup | None" = None

    @classmethod
    def of(cls, group: "distributed.ProcessGroup | None") -> "Replicas":
        """The processes of a group, `InputError` if this one is not among them or a group was forgotten."""
        if group is None:
            refuse_several("give group=torch.distributed.group.WORLD")
        elif not isinstance(group, distributed.ProcessGroup):
            raise InputError("this process is not a member of the group: let only its members call backward")
        return cls(group if group is not None and group.size() > 1 else None)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.group is None else self.group.size()

    def losses(self, losses: Tensor, parameters: Sequence[Tensor], columns: int) -> Tensor:
        """The losses ``[T]`` of the whole batch; `RunError` where processes differ in what has to be the same.

        Args:
            losses: ``[T]``, of this process's part.
            parameters: of the model.
            columns: how many entries the representation has here; 0 where none is given.
        """
        if self.group is None:
            return losses
        total = torch.stack([entries(p.detach()).sum(dtype=torch.float64) for p in parameters]).sum()
        told = torch.cat([losses.to(torch.float64), total[None], total.new_tensor([columns])])
        of_all = self._gathered(told)
        self._same(
            "parameters", of_all[:, -2], "begin with the same weights, and let only combined gradients move them"
        )
        self._same("sizes of the representation", of_all[:, -1], "give every process as many samples")
        return of_all[:, : len(losses)].mean(0).to(losses)

    def agreed(self, found: Tensor) -> Tensor:
        """What the combiner found (weights, or a direction), `RunError` if it is not the same in every process."""
        if self.group is not None:
            norm = found.to(torch.float64).norm()[None]
            self._same(
                "weights", self._gathered(norm)[:, 0], "make every process's combiner with the same seed and options"
            )
        return found

    def mean_(self, tensor: Tensor) -> Tensor:
        """Averages a contiguous tensor in place."""
        if self.group is not None:
            for piece in torch.split(tensor.view(-1), max(BUCKET // tensor.element_size(), 1)):
                distributed.all_reduce(piece, group=self.group)
            tensor /= self.size
        return tensor

    def norm(self, part: Tensor) -> Tensor:
        """The Euclidean norm of what the processes hold parts of."""
        norm = part.norm()
        return norm if self.group is None else (self.mean_(norm.square()) * self.size).sqrt()

    def gramian(self, gramian: Tensor) -> Tensor:
        """The Gramian ``[T, T]`` of gradients by the whole batch's representation, from that by this process's part."""
        return self.mean_(gramian).div_(self.size) if self.group is not None else gramian

    def beside(self, jacobian: Tensor, sizes: Sequence[int]) -> Tensor:
        """The Jacobian ``[T, size D]`` by the whole batch's representation, map by map, from this part's ``[T, D]``."""
        if self.group is None:
            return jacobian
        pieces = [self._gathered(piece.contiguous()) for piece in torch.split(jacobian, list(sizes), 1)]
        return torch.cat([part for piece in pieces for part in piece], 1).div_(self.size)

    def activations(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of the whole batch's representation, whose first dimension is that of samples."""
        return [z if self.group is None else self._gathered(z.detach().contiguous()).flatten(0, 1) for z in maps]

    def own(self, direction: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """This process's part of a direction for the whole batch's representation, by map."""
        pieces = torch.split(direction, [self.size * size for size in sizes])
        return [piece.view(self.size, -1)[self._rank] for piece in pieces]

    def averaged(self, gradients: Gradients, parameters: Sequence[Tensor]) -> Gradients:
        """The gradients averaged; where no process has one, there is None."""
        if self.group is None:
            return gradients
        if any(gradient is not None and gradient.is_sparse for gradient in gradients):
            raise InputError(_SPARSE)
        there = self.anywhere([gradient is not None for gradient in gradients], parameters)
        averaged: Gradients = [None] * len(gradients)
        for bucket in _buckets([index for index, reached in enumerate(there) if reached], parameters):
            given = [(gradients[index], parameters[index]) for index in bucket]
            parts = [entries(torch.zeros_like(p) if g is None else g).detach() for g, p in given]
            flat = self.mean_(torch.cat([part.flatten().to(wide_type(parts)) for part in parts]))
            for index, piece in zip(bucket, torch.split(flat, [part.numel() for part in parts]), strict=True):
                averaged[index] = _as(parameters[index], piece)
        return averaged

    def added(self, gradients: Gradients, parameters: Sequence[Tensor]) -> Gradients:
        """The gradients added up; where no process has one, there is None."""
        mean = self.averaged(gradients, parameters)
        return [None if gradient is None else gradient * self.size for gradient in mean] if self.group else mean

    def anywhere(self, flags: Sequence[Tensor | bool], parameters: Sequence[Tensor]) -> list[Tensor | bool]:
        """Which flags are set in any process; the parameters say on which device processes meet."""
        if self.group is None or not flags:
            return list(flags)
        if any(isinstance(flag, Tensor) for flag in flags):  # the rows of a sparse gradient
            raise InputError(_SPARSE)
        told = torch.tensor(flags, dtype=torch.uint8, device=parameters[0].device)
        return [bool(flag) for flag in self._gathered(told).amax(0)]

    def first(self, task: int | None, losses: Sequence[Tensor]) -> int | None:
        """The first task that any process names."""
        if self.group is None:
            return task
        named = self.anywhere([index == task for index in range(len(losses))], losses)
        return named.index(True) if any(named) else None

    @property
    def _rank(self) -> int:
        return 0 if self.group is None else self.group.rank()

    def _gathered(self, tensor: Tensor) -> Tensor:
        """``[size, ...]``, every process's tensor."""
        of_all = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(of_all, tensor, group=self.group)
        return torch.stack(of_all)

    def _same(self, what: str, of_all: Tensor, advice: str) -> None:
        if not torch.allclose(of_all, of_all[:1], rtol=1e-9, atol=1e-9, equal_nan=True):
            other = int((~torch.isclose(of_all, of_all[:1], rtol=1e-9, atol=1e-9, equal_nan=True)).nonzero()[0])
            raise RunError(f"the {what} differ between processes 0 and {other} of the group: {advice}")


def mean_losses(losses: Tensor, group: "distributed.ProcessGroup | None") -> Tensor:
    """The losses ``[T]`` of the whole batch, from those of this process's part: for `Combiner.after_step`."""
    return Replicas(group).mean_(losses.detach().clone())


def refuse_several(advice: str) -> None:
    """Raises `InputError` in one of several processes, whose replicas would drift apart."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        count = distributed.get_world_size()
        raise InputError(f"torch.distributed runs {count} processes, whose replicas would drift apart: {advice}")


def refuse_wrapped(*modules: nn.Module) -> None:
    """Raises `InputError` where a wrapper averages or shards gradients itself: it does not see combined ones."""
    for part in (part for module in modules for part in module.modules()):
        if type(part).__name__ in _WRAPPERS:
            kind = f"wrapped in {type(part).__name__}"
            raise InputError(f"a module is {kind}, which does not see combined gradients: give the module itself")


def refuse_sharded(parameters: Sequence[Tensor]) -> None:
    """Raises `InputError` where parameters are sharded over processes: what shards them reduces gradients itself."""
    # In a forward pass fully_shard puts plain parameters in place of its own: only it knows of them.
    kept = getattr(sys.modules.get("torch.distributed._composable_state"), "_module_state_mapping", {})
    kept = {id(parameter) for module in kept for parameter in module.parameters()}
    if any(hasattr(parameter, "device_mesh") or id(parameter) in kept for parameter in parameters):
        raise InputError(
            "parameters are sharded, by fully_shard or the like, which does not see combined gradients: keep a replica "
            "of the module in each process (group=)"
        )


_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel")  # by name: the second is slow to import


def _buckets(indices: Sequence[int], parameters: Sequence[Tensor]) -> Iterator[list[int]]:
    """Runs of parameters that are reduced at once: up to `BUCKET` bytes, or one."""
    bucket: list[int] = []
    filled = 0
    for index in indices:
        size = entries(parameters[index].detach()).numel() * wide_type([parameters[index]]).itemsize
        if bucket and filled + size > BUCKET:
            yield bucket
            bucket, filled = [], 0
        bucket.append(index)
        filled += size
    if bucket:
        yield bucket


def _as(parameter: Tensor, numbers: Tensor) -> Tensor:
    """Flat numbers in the shape and type of a parameter."""
    if parameter.is_complex():
        return torch.view_as_complex(numbers.view(*parameter.shape, 2).contiguous()).to(parameter.dtype)
    return numbers.view_as(parameter).to(parameter.dtype)
