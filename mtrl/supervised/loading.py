"""Batches made ahead of time by worker processes, in an order that is the same whatever their number."""

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mtrl.errors import InputError, RunError
from mtrl.ranges import Index, NotNegative, check_fields
from mtrl.run.machine import cores
from mtrl.run.processes import started, started_here
from mtrl.supervised.cache import cached
from mtrl.supervised.problem import Augmentation, Batch, Benchmark, Samples, batch_of, placed

_MOST_WORKERS = 8


@dataclass
class LoadingOptions:
    """How data sets are read; nothing here changes a number. `InputError` on values out of range."""

    workers: Index | None = None
    """Processes that make batches; 0 is none but this one. None is none for data in memory, else one a core up to 8."""
    cache: NotNegative = 0.0
    """GiB for samples of the training and validation split as they are read, decoded; of each process that trains."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_fields(self, "data.")

    def number(self, benchmark: Benchmark) -> int:
        """How many workers a benchmark gets."""
        in_memory = all(hasattr(split, "batch") for split in benchmark.splits.values()) and benchmark.augment is None
        automatic = 0 if in_memory else min(_MOST_WORKERS, max(cores() // started_here(), 1))
        return automatic if self.workers is None else self.workers


class Portion(NamedTuple):
    """Which samples one batch is made of."""

    split: str
    """One of `Benchmark.splits`."""
    indices: Sequence[int]
    drawn: int | None = None
    """The number of this pass, for what is random: where it is one of training."""


class Loader:
    """The batches of a benchmark's splits on a device, one request at a time.

    In a data set's ``__getitem__`` and in the augmentation, torch's global random numbers follow from the run's seed,
    the pass and the sample: no state of them has to be kept, and the number of workers does not matter. Raises
    `InputError` if the cache does not fit the data set or the memory.
    """

    def __init__(
        self, benchmark: Benchmark, device: torch.device, *, seed: int = 0, options: LoadingOptions | None = None
    ) -> None:
        options = options or LoadingOptions()
        self.device = device
        self.splits = benchmark.splits
        workers = options.number(benchmark)
        trained = {name: self.splits[name] for name in ("training", "validation")}
        kept = cached(trained, options.cache, shared=workers > 0) if options.cache else {}
        self._order = _Order()
        self._make = partial(
            DataLoader,
            _Batches(self.splits | kept, benchmark.augment, seed),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            collate_fn=as_it_is,
            worker_init_fn=leave_signals_to_the_parent,
            generator=torch.Generator(),  # torch's own draws a number for every pass from it: not from the global one
        )
        self._loader: DataLoader[Any] = self._make()
        self._made: Iterator[Any] = iter(())

    def batches(self, requests: Iterable[Sequence[Portion]]) -> Iterator[list[Batch]]:
        """What each request asks for, in their order; the next ones are worked on meanwhile.

        Raises `InputError` on what a data set says is wrong, `RunError` if a worker dies.
        """
        self._order.requests = requests
        self._made = iter(self._loader)
        while True:
            try:
                found = next(self._made, None)
            except RuntimeError as error:
                if "DataLoader" not in str(error):
                    raise
                raise RunError(f"reading the data set failed: {' '.join(str(error).split())}") from error
            if found is None:
                return
            if isinstance(found, InputError):
                raise found
            yield [placed(batch, self.device) for batch in found]

    def close(self) -> None:
        """Ends the workers; what is asked for later starts new ones.

        With the last reference alone they would not always: torch waits long for those of a loader within a cycle.
        """
        self._made = iter(())
        self._loader = self._make()

    def whole(
        self, split: str, size: int, part: Callable[[Sequence[int]], Sequence[int]] = lambda indices: indices
    ) -> Iterator[Batch]:
        """A whole split in its order, without augmentation, in batches of a size; of each, this process's part."""
        everything = range(len(self.splits[split]))
        requests = ([Portion(split, part(everything[start : start + size]))] for start in everything[::size])
        return (batch for (batch,) in self.batches(requests))


class _Order(Sampler[Sequence[Portion]]):
    """What the workers are to do next."""

    requests: Iterable[Sequence[Portion]] = ()

    def __iter__(self) -> Iterator[Sequence[Portion]]:
        return iter(self.requests)


class _Batches(Dataset[Any]):
    """Makes what is asked for. What a data set finds wrong is returned: raised in a worker, it would become a page."""

    def __init__(self, splits: Mapping[str, Samples], augment: Augmentation | None, seed: int) -> None:
        self.splits, self.augment, self.seed = splits, augment, seed

    def __getitem__(self, request: Sequence[Portion]) -> list[Batch] | InputError:
        try:
            return [self._batch(portion) for portion in request]
        except InputError as error:
            return error

    def _batch(self, portion: Portion) -> Batch:
        samples, augment = self.splits[portion.split], None if portion.drawn is None else self.augment
        if augment is None and hasattr(samples, "batch"):
            return batch_of(samples, portion.indices)
        with torch.random.fork_rng(devices=[]):
            return batch_of(_Drawn(samples, augment, (self.seed, portion.drawn or 0)), portion.indices)


class _Drawn:
    """A data set whose samples have random numbers of their own."""

    def __init__(self, samples: Samples, augment: Augmentation | None, seeds: tuple[int, int]) -> None:
        self.samples, self.augment, self.seeds = samples, augment, seeds

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Mapping[str, Any]]:
        seed = np.random.SeedSequence([*self.seeds, index]).generate_state(1, np.uint64)[0]
        torch.default_generator.manual_seed(int(seed))
        inputs, targets = self.samples[index]
        return (inputs, targets) if self.augment is None else self.augment(inputs, dict(targets))


def as_it_is(made: Any) -> Any:
    """For a loader whose data set makes whole batches."""
    return made


def leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C goes to all processes of a terminal, but the parent needs its workers until it has stopped in order.

    So does ``torchrun``'s SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if started() == 1 else signal.SIG_IGN)
