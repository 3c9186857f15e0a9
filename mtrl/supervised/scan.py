"""A look at every sample of a benchmark before training: what is wrong with the data, all of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtrl.errors import InputError
from mtrl.supervised.loading import LoadingOptions, as_it_is, leave_signals_to_the_parent
from mtrl.supervised.problem import Benchmark, Samples, batch_of, check_names, check_targets
from mtrl.supervised.tasks import Task, unmasked

_AT_ONCE = 64


def problems(benchmark: Benchmark, options: LoadingOptions | None = None) -> Iterator[str]:
    """Everything that is wrong with a benchmark's samples, one line each, with its split and its number from 0.

    The model is on the CPU. Raises `InputError` if not even the first training sample can be read.
    """
    outputs = benchmark.first_outputs(torch.device("cpu"))
    for name, split in benchmark.splits.items():
        workers = (options or LoadingOptions()).number(benchmark)
        loader: DataLoader[list[str]] = DataLoader(
            _Findings(split, benchmark.tasks, outputs),
            batch_size=None,
            sampler=range(0, len(split), _AT_ONCE),
            num_workers=workers,
            collate_fn=as_it_is,
            worker_init_fn=leave_signals_to_the_parent,
            generator=torch.Generator(),
        )
        for found in loader:
            yield from (f"{name} split, {line}" for line in found)


class _Findings(Dataset[list[str]]):
    """What is wrong with the samples from one on."""

    def __init__(self, samples: Samples, tasks: Mapping[str, Task], outputs: Mapping[str, Tensor]) -> None:
        self.samples, self.tasks, self.outputs = samples, tasks, outputs

    def __getitem__(self, start: int) -> list[str]:
        found = []
        for index in range(start, min(start + _AT_ONCE, len(self.samples))):
            try:
                self._check(batch_of(self.samples, [index])[1])
            except InputError as error:
                found.append(f"sample {index}: {error}")
        return found

    def _check(self, targets: Mapping[str, Any]) -> None:
        check_names("it has no target", targets, self.tasks)
        for task, described in self.tasks.items():
            try:
                check_targets(described, self.outputs[task], *unmasked(targets[task]), some=False)
            except InputError as error:
                raise InputError(f"task {task}: {error}") from error
