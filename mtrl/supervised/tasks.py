"""What a task is: its loss, its metrics, and which samples have a target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrl.errors import InputError, unknown_name
from mtrl.gradients.distributed import Replicas


def _no_nan(targets: Tensor) -> Tensor:
    """Which samples' targets are complete."""
    return ~_entries(targets).isnan().any(1)


def _entries(targets: Tensor) -> Tensor:
    """``[N, ...]`` as ``[N, entries]``."""
    return targets.unsqueeze(1).flatten(1)


class Meter(Protocol):
    """What measures one pass over a split, as ``torchmetrics``' metrics do."""

    def update(self, outputs: Tensor, targets: Tensor, /) -> None:
        """Takes in a batch: a head's outputs and the task's targets of the samples that have one."""

    def compute(self) -> Any:
        """What all batches came to, one number; they were at least one."""


class Measure(Protocol):
    """How well a task is done over a split: `Metric` or `WholeSplit`."""

    @property
    def name(self) -> str:
        """For keys and tables, e.g. ``"accuracy"``."""

    @property
    def higher_is_better(self) -> bool:
        """The direction."""

    def meter(self, task: "Task", device: torch.device) -> Meter:
        """A new meter for the task's outputs and targets on a device."""


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

    def meter(self, task: "Task", device: torch.device) -> Meter:
        """See `Measure`."""
        return _Mean(self.per_sample, task.present)


class _Mean:
    """A mean over samples, of which one whose target is there in part counts in part."""

    def __init__(self, per_sample: Callable[[Tensor, Tensor], Tensor], present: Callable[[Tensor], Tensor]) -> None:
        self.per_sample, self.present = per_sample, present
        self.total = self.count = 0.0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        values, shares = self.per_sample(outputs, targets), self.present(targets)
        self.total += float(values.sum() if bool((shares == 1).all()) else (values.flatten() * shares).sum())
        self.count += float(shares.sum())

    def compute(self) -> float:
        return self.total / self.count


@dataclass(frozen=True)
class WholeSplit:
    """How well a task is done, where that is no mean over samples: F1, an intersection over union, a median.

    Attributes:
        name: for keys and tables, e.g. ``"f1"``.
        make: of nothing, a new meter with a ``higher_is_better``: the class of a metric of ``torchmetrics``, say.
        prepare: what of a head's outputs the meter is shown, e.g. classes in place of logits.
    """

    name: str
    make: Callable[[], Any]
    prepare: Callable[[Tensor], Tensor] = lambda outputs: outputs

    @property
    def higher_is_better(self) -> bool:
        """The meter's direction; `InputError` where it has none."""
        direction = getattr(self.make(), "higher_is_better", None)
        if not isinstance(direction, bool):
            raise InputError(f"metric {self.name}: its meter does not say by higher_is_better which values are better")
        return direction

    def meter(self, task: "Task", device: torch.device) -> Meter:
        """See `Measure`."""
        made: Any = self.make()
        return _Prepared(made.to(device) if hasattr(made, "to") else made, self.prepare)


class _Prepared:
    def __init__(self, meter: Meter, prepare: Callable[[Tensor], Tensor]) -> None:
        self.meter, self.prepare = meter, prepare

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.meter.update(self.prepare(outputs), targets)

    def compute(self) -> float:
        return float(self.meter.compute())


@dataclass(frozen=True)
class Task:
    """One task: what is minimised, and what is reported.

    Attributes:
        loss: of a head's outputs and the task's targets, a scalar: the mean over the samples. It is shown those samples
            that have a target. One that looks for missing entries can have an attribute ``complete``: the same, where
            none is missing and nobody looks.
        metrics: at least one; the first is the one that the task is judged by.
        check: of a head's outputs for one sample and all targets of a split, whether these fit; raises `InputError`.
        present: of targets ``[N, ...]``, which samples have one: ``[N]``, true or false, or the share of a target that
            is there where `loss` and `metrics` take incomplete ones. By default those without a NaN.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: tuple[Measure, ...]
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


def unmasked(targets: Targets) -> tuple[Tensor, Tensor | None]:
    """Targets and their mask, if there is one."""
    return targets if isinstance(targets, MaskedTargets) else (targets, None)


def seen(task: Task, outputs: Tensor, targets: Targets) -> Seen:
    """The samples of a batch that have a target, none left out where all have one."""
    values, mask = unmasked(targets)
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


def binary() -> Task:
    """Cross-entropy of one logit ``[N]`` against targets ``[N]`` of 0 or 1, as floats; judged by accuracy.

    A target that is NaN is a missing one.
    """
    accuracy = Metric("accuracy", True, lambda logits, targets: ((logits > 0) == (targets > 0.5)).float())
    return Task(F.binary_cross_entropy_with_logits, (accuracy,), _check_binary)


def _check_binary(outputs: Tensor, targets: Tensor) -> None:
    _check_shapes(outputs, targets)
    outside = ((targets != 0) & (targets != 1) & ~targets.isnan()).nonzero()
    if len(outside):
        record = int(outside[0, 0])
        raise InputError(f"record {record} has target {float(targets[record].flatten()[0]):g}, expected 0 or 1, or NaN")


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
        _MeanSquaredError(), (error,), _check_shapes, lambda targets: (~_entries(targets).isnan()).float().mean(1)
    )


class _MeanSquaredError:
    """Of the entries that are there."""

    complete = staticmethod(F.mse_loss)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        there = ~targets.isnan()
        return F.mse_loss(outputs, targets) if bool(there.all()) else F.mse_loss(outputs[there], targets[there])


Values = Mapping[str, Tensor]
"""By task."""


def task_losses(
    tasks: Mapping[str, Task],
    outputs: Values,
    targets: Mapping[str, Targets],
    replicas: Replicas = Replicas(),  # noqa: B008  (it is immutable)
) -> list[Tensor]:
    """The losses in the order of the tasks, each over the samples that have its target.

    Of a part of a batch that several processes hold, those whose mean over the processes is that of the whole batch.
    """
    losses = [task_loss(task, outputs[name], targets[name]) for name, task in tasks.items()]
    if replicas.size == 1:
        return losses
    counts = torch.stack([_count(task, targets[name]) for name, task in tasks.items()])
    means = replicas.mean_(counts.clone())
    shares = torch.where(means > 0, counts / means, 1)
    return [share.to(loss) * loss for share, loss in zip(shares, losses, strict=True)]


def complete_losses(tasks: Mapping[str, Task], outputs: Values, targets: Mapping[str, Targets]) -> list[Tensor]:
    """`task_losses` where every sample has all targets: nobody looks, so that nothing waits for the device."""
    losses = {name: getattr(task.loss, "complete", task.loss) for name, task in tasks.items()}
    return [loss(outputs[name], unmasked(targets[name])[0]) for name, loss in losses.items()]


def _count(task: Task, targets: Targets) -> Tensor:
    """How many samples of a batch have a target."""
    values, mask = unmasked(targets)
    shares = task.present(values).double()
    return (shares if mask is None else shares * mask).sum()


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
