"""A cache of decoded samples, in memory that worker processes share."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mtrl.errors import InputError
from mtrl.supervised.problem import Batch, Samples
from mtrl.supervised.tasks import MaskedTargets, Targets

_SHARED = Path("/dev/shm")  # where Linux has the memory that processes share


def cached(splits: Mapping[str, Samples], gib: float, *, shared: bool) -> dict[str, Samples]:
    """The splits behind caches of so many GiB together; those that make their batches themselves stay as they are.

    Raises `InputError` if ``shared`` memory has less room than that.
    """
    slow = {name: split for name, split in splits.items() if not hasattr(split, "batch")}
    limit = int(gib * (1 << 30))
    total = sum(len(split) for split in slow.values())
    made = {name: Cached(split, limit * len(split) // total) for name, split in slow.items()}
    size = sum(cache.size for cache in made.values())
    if shared and _SHARED.is_dir() and size > (free := shutil.disk_usage(_SHARED).free):
        raise InputError(
            f"data.cache: {size / (1 << 30):.2f} GiB do not fit into the {free / (1 << 30):.2f} GiB that are free in "
            f"{_SHARED}, which workers share: a smaller data.cache, or data.workers=0"
        )
    for cache in made.values():
        cache.allocate(shared=shared)
    return dict(made)


class Cached:
    """The first samples of a data set, kept once they were read; each is a tensor or number by task, of one shape.

    Attributes:
        size: bytes that they take in the end.
    """

    def __init__(self, samples: Samples, limit: int) -> None:
        self.samples = samples
        self._sample = samples[0]
        self._like = _leaves(self._sample)
        each = 1 + sum(leaf.nbytes for leaf in self._like)
        self.count = min(len(samples), limit // each)
        self.size = self.count * each

    def allocate(self, *, shared: bool) -> None:
        """Takes the memory."""
        self._there = torch.zeros(self.count, dtype=torch.bool)
        self._kept = [torch.empty(self.count, *leaf.shape, dtype=leaf.dtype) for leaf in self._like]
        for tensor in (self._there, *self._kept) if shared else ():
            tensor.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        """A sample, from the cache if it is there; `InputError` if it has another shape or type than the first."""
        if index < self.count and bool(self._there[index]):
            return self._rebuilt([kept[index] for kept in self._kept])
        leaves = _leaves(self.samples[index])
        if index < self.count:
            if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(leaf.shape, leaf.dtype) for leaf in self._like]:
                raise InputError(f"data.cache: sample {index} is of another shape or type than sample 0")
            for kept, leaf in zip(self._kept, leaves, strict=True):
                kept[index] = leaf
            self._there[index] = True  # last: another worker may look
        return self._rebuilt(leaves)

    def _rebuilt(self, leaves: list[Tensor]) -> Batch:
        found = iter(leaves)
        inputs = next(found)
        targets: dict[str, Targets] = {}
        for task, target in self._sample[1].items():
            masked = isinstance(target, MaskedTargets)
            targets[task] = MaskedTargets(next(found), next(found)) if masked else next(found)
        return inputs, targets


def _leaves(sample: tuple[Any, Mapping[str, Any]]) -> list[Tensor]:
    """The tensors of a sample in their order, as torch's ``default_collate`` understands arrays and numbers."""
    parts = [sample[0]]
    for target in sample[1].values():
        parts += target if isinstance(target, MaskedTargets) else [target]
    return [default_collate([part])[0] for part in parts]
