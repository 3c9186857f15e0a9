"""What a supervised multi-task problem consists of: tasks, three splits, an encoder and one head per task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrl.errors import InputError, unknown_name


def _no_nan(targets: Tensor) -> Tensor:
    """Which samples' targets are complete."""
    return ~_entries(targets).isnan().any(1)


def _entries(targets: Tensor) -> Tensor:
    """``[N, ...]`` as ``[N, entries]``."""
    return targets.unsqueeze(1).flatten(1)


@dataclass(frozen=True)
class Metric:
    """How well a task is done: a mean over the samples that have a target.

    Attributes:
        name: for keys and tables, e.g. ``"accuracy"``.
        higher_is_better: the direction.
        per_sample: of a head's outputs and the task's targets, one number per sample: ``[N]``.
    """

    name: str
    higher_is_better: bool
    per_sample: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """One task: what is minimised, and what is reported.

    Attributes:
        loss: of a head's outputs and the task's targets, a scalar: the mean over the samples. It is shown those samples
            that have a target.
        metrics: at least one; the first is the one that the task is judged by.
        check: of a head's outputs for one sample and all targets of a split, whether these fit; raises `InputError`.
        present: of targets ``[N, ...]``, which samples have one: ``[N]``, true or false, or the share of a target that
            is there where `loss` and `metrics` take incomplete ones. By default those without a NaN.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: tuple[Metric, ...]
    check: Callable[[Tensor, Tensor], None] = lambda outputs, targets: None
    present: Callable[[Tensor], Tensor] = _no_nan


class MaskedTargets(NamedTuple):
    """Targets ``[N, ...]`` of a batch, and a mask ``[N]`` that is true where a sample has one."""

    values: Tensor
    mask: Tensor


Targets = Tensor | MaskedTargets


class Seen(NamedTuple):
    """Of a batch, what a task can be judged by: the samples that have a target."""

    outputs: Tensor
    targets: Tensor
    shares: Tensor
    """How much of each target is there, in (0, 1]."""


def seen(task: Task, outputs: Tensor, targets: Targets) -> Seen:
    """The samples of a batch that have a target, none left out where all have one."""
    values, mask = targets if isinstance(targets, MaskedTargets) else (targets, None)
    shares = task.present(values)
    if mask is not None:
        shares = shares * mask
    kept = shares > 0
    if bool(kept.all()):
        return Seen(outputs, values, shares)
    return Seen(outputs[kept], values[kept], shares[kept])


def has_any(task: Task, targets: Targets) -> Tensor:
    """Whether any sample of a batch has a target, as 0 or 1; nothing waits for the device."""
    values, mask = targets if isinstance(targets, MaskedTargets) else (targets, True)
    return ((task.present(values) > 0) & mask).any().long()


def task_loss(task: Task, outputs: Tensor, targets: Targets) -> Tensor:
    """A task's mean loss over the samples of a batch that have a target; without any, 0 with a gradient of zeros."""
    found = seen(task, outputs, targets)
    return task.loss(found.outputs, found.targets) if len(found.targets) else found.outputs.sum()


def _check_labels(ignore_index: int, outputs: Tensor, targets: Tensor) -> None:
    classes = outputs.shape[1]
    if targets.ndim != 1 or targets.dtype != torch.long:
        raise InputError(
            f"expected labels [N] of type int64, {ignore_index} where there is none, "
            f"got {list(targets.shape)} of {targets.dtype}"
        )
    outside = (((targets < 0) | (targets >= classes)) & (targets != ignore_index)).nonzero()
    if len(outside):
        record = int(outside[0])
        expected = f"expected 0 to {classes - 1}, or {ignore_index} where there is none"
        raise InputError(f"record {record} has label {int(targets[record])}, {expected}")


def _check_shapes(outputs: Tensor, targets: Tensor) -> None:
    given, expected = list(outputs.shape[1:]), list(targets.shape[1:])
    if given != expected:
        raise InputError(f"the head gives {given} per sample, but a target is {expected}")


def classification(ignore_index: int = -100) -> Task:
    """Cross-entropy of logits ``[N, classes]`` against labels ``[N]``; judged by accuracy.

    A label of ``ignore_index`` is a missing one.
    """
    accuracy = Metric("accuracy", True, lambda outputs, labels: (outputs.argmax(1) == labels).float())
    loss = partial(F.cross_entropy, ignore_index=ignore_index)
    return Task(loss, (accuracy,), partial(_check_labels, ignore_index), lambda labels: labels != ignore_index)


def _squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each sample's, the mean over the entries that it has: ``[N]``."""
    there = ~_entries(targets).isnan()
    errors = _entries((outputs - targets).square())
    return errors.mean(1) if bool(there.all()) else torch.where(there, errors, 0).sum(1) / there.sum(1)


def regression() -> Task:
    """Mean squared error of outputs and targets of one shape ``[N, ...]``; judged by the same.

    An entry that is NaN is a missing one: the mean is over the others.
    """
    error = Metric("squared_error", False, _squared_errors)
    return Task(
        _mean_squared_error, (error,), _check_shapes, lambda targets: (~_entries(targets).isnan()).float().mean(1)
    )


def _mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    there = ~targets.isnan()
    return F.mse_loss(outputs, targets) if bool(there.all()) else F.mse_loss(outputs[there], targets[there])


Values = Mapping[str, Tensor]
"""By task."""


def task_losses(tasks: Mapping[str, Task], outputs: Values, targets: Mapping[str, Targets]) -> list[Tensor]:
    """The losses in the order of the tasks, each over the samples that have its target."""
    return [task_loss(task, outputs[name], targets[name]) for name, task in tasks.items()]


@dataclass(frozen=True)
class Split:
    """Samples in memory: inputs and, by task, as many targets, ``[N, ...]``, N at least 1; else an `InputError`.

    ``masks`` (``[N]``, true or false) are for tasks of which some samples have no target; what stands in its place does
    not matter then. Another class with ``__len__`` and ``batch`` can take its place.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses an empty or uneven split."""
        if not len(self.inputs):
            raise InputError("a split has no samples")
        for task, target in self.targets.items():
            if len(target) != len(self.inputs):
                raise InputError(f"{len(self.inputs)} inputs, but {len(target)} targets of {task}")
        for task, mask in self.masks.items():
            if task not in self.targets:
                raise unknown_name("task of a mask", task, self.targets)
            if mask.dtype != torch.bool or mask.shape != (len(self.inputs),):
                got = f"{list(mask.shape)} of {mask.dtype}"
                raise InputError(f"expected a mask [{len(self.inputs)}] of type bool for {task}, got {got}")

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, dict[str, Targets]]:
        """The samples at ``indices``: inputs, and targets by task."""
        return self.inputs[indices].to(device), {task: self._of(task, indices, device) for task in self.targets}

    def _of(self, task: str, indices: Tensor, device: torch.device) -> Targets:
        values, mask = self.targets[task][indices].to(device), self.masks.get(task)
        return values if mask is None else MaskedTargets(values, mask[indices].to(device))


class MultiTaskModel(nn.Module):
    """A shared encoder, from inputs to the representation z, and one head per task, from z to outputs."""

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by task."""
        return self.outputs(self.representations(inputs))

    def representations(self, inputs: Tensor) -> list[Tensor]:
        """What each task's head reads: T times the same z."""
        return [self.encoder(inputs)] * len(self.heads)

    def outputs(self, representations: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs by task, each head reading its own of T representations."""
        return {name: head(z) for (name, head), z in zip(self.heads.items(), representations, strict=True)}

    def last_shared_layer(self) -> list[nn.Parameter]:
        """The parameters of the encoder's last layer that has any."""
        layers = [list(module.parameters(recurse=False)) for module in self.encoder.modules()]
        return next(layer for layer in reversed(layers) if layer)


@dataclass(frozen=True)
class Benchmark:
    """A problem, and the untrained model for it. `mtrl.supervised.data.example` is one to copy.

    Models are selected by the validation split; the test split is read once, after training.
    """

    tasks: Mapping[str, Task]
    model: MultiTaskModel
    train: Split
    validation: Split
    test: Split

    def check(self, device: torch.device) -> None:
        """Raises `InputError` on the first target that does not fit its head (split, task and record named).

        Likewise on a split in which all targets of a task are missing.

        Splits of other classes than `Split` are not looked at.
        """
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            outputs = self.model(self.train.batch(torch.tensor([0]), device)[0])
        self.model.train(training)
        _check_names("the model has no head", outputs, self.tasks)
        for name, split in self._splits():
            if isinstance(split, Split):
                _check_names(f"the {name} split has no targets", split.targets, self.tasks)
                for task, described in self.tasks.items():
                    try:
                        _check_targets(described, outputs[task], split.targets[task], split.masks.get(task))
                    except InputError as error:
                        raise InputError(f"{name} split, task {task}: {error}") from error

    def missing(self) -> list[str]:
        """What to tell of targets that are missing, in words; nothing of splits of other classes than `Split`."""
        told = []
        for name, split in self._splits():
            for task, described in self.tasks.items() if isinstance(split, Split) else ():
                shares = described.present(split.targets[task]) * split.masks.get(task, torch.tensor(True))
                if count := int((shares < 1).sum()):
                    told.append(f"{name} split, task {task}: {count:,} of {len(split):,} targets are missing")
        return told

    def _splits(self) -> tuple[tuple[str, Split], ...]:
        return ("training", self.train), ("validation", self.validation), ("test", self.test)


def _check_targets(task: Task, outputs: Tensor, targets: Tensor, mask: Tensor | None) -> None:
    if mask is not None and not bool(mask.all()):
        # Nobody looks at what is masked; records keep their numbers.
        targets = targets[torch.where(mask, torch.arange(len(mask)), mask.int().argmax())]
    task.check(outputs, targets)
    there = task.present(targets)
    if there.shape != (len(targets),):
        raise InputError(f"present gives {list(there.shape)}, expected one entry for each of {len(targets)} targets")
    if not bool((there > 0).any()) or (mask is not None and not bool(mask.any())):
        raise InputError(f"all {len(targets)} targets are missing")


def _check_names(what: str, found: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> None:
    for task in tasks:
        if task not in found:
            raise InputError(f"{what} of task {task}; there are {', '.join(found) or 'none'}")


def check_tasks(names: Sequence[str], valid: Sequence[str]) -> list[str]:
    """The names; `InputError` if there are none, one is not among the valid ones, or one comes twice."""
    if not names:
        raise InputError(f"no task was chosen; valid: {', '.join(valid)}")
    for name in names:
        if name not in valid:
            raise unknown_name("task", name, valid)
    if len(set(names)) < len(names):
        raise InputError(f"a task comes twice in [{', '.join(names)}]")
    return list(names)
