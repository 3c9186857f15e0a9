"""What a supervised multi-task problem consists of: tasks, three splits, an encoder and one head per task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrl.errors import InputError, unknown_name


@dataclass(frozen=True)
class Metric:
    """How well a task is done: a mean over samples.

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
        loss: of a head's outputs and the task's targets, a scalar: the mean over the samples.
        metrics: at least one; the first is the one that the task is judged by.
        check: of a head's outputs for one sample and all targets of a split, whether these fit; raises `InputError`.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: tuple[Metric, ...]
    check: Callable[[Tensor, Tensor], None] = lambda outputs, targets: None


def _check_labels(outputs: Tensor, targets: Tensor) -> None:
    classes = outputs.shape[1]
    if targets.ndim != 1 or targets.dtype != torch.long:
        raise InputError(f"expected labels [N] of type int64, got {list(targets.shape)} of {targets.dtype}")
    outside = ((targets < 0) | (targets >= classes)).nonzero()
    if len(outside):
        record = int(outside[0])
        raise InputError(f"record {record} has label {int(targets[record])}, expected 0 to {classes - 1}")


def _check_shapes(outputs: Tensor, targets: Tensor) -> None:
    given, expected = list(outputs.shape[1:]), list(targets.shape[1:])
    if given != expected:
        raise InputError(f"the head gives {given} per sample, but a target is {expected}")


def classification() -> Task:
    """Cross-entropy of logits ``[N, classes]`` against labels ``[N]``; judged by accuracy."""
    accuracy = Metric("accuracy", True, lambda outputs, labels: (outputs.argmax(1) == labels).float())
    return Task(F.cross_entropy, (accuracy,), _check_labels)


def regression() -> Task:
    """Mean squared error of outputs and targets of one shape ``[N, ...]``; judged by the same."""
    error = Metric("squared_error", False, lambda outputs, targets: (outputs - targets).square().flatten(1).mean(1))
    return Task(F.mse_loss, (error,), _check_shapes)


Values = Mapping[str, Tensor]
"""By task."""


def task_losses(tasks: Mapping[str, Task], outputs: Values, targets: Values) -> list[Tensor]:
    """The losses in the order of the tasks."""
    return [task.loss(outputs[name], targets[name]) for name, task in tasks.items()]


@dataclass(frozen=True)
class Split:
    """Samples in memory: inputs and, by task, as many targets, ``[N, ...]``, N at least 1; else an `InputError`.

    Another class with ``__len__`` and ``batch`` can take its place.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Refuses an empty or uneven split."""
        if not len(self.inputs):
            raise InputError("a split has no samples")
        for task, target in self.targets.items():
            if len(target) != len(self.inputs):
                raise InputError(f"{len(self.inputs)} inputs, but {len(target)} targets of {task}")

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples at ``indices``: inputs, and targets by task."""
        targets = {task: target[indices].to(device) for task, target in self.targets.items()}
        return self.inputs[indices].to(device), targets


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

        Splits of other classes than `Split` are not looked at.
        """
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            outputs = self.model(self.train.batch(torch.tensor([0]), device)[0])
        self.model.train(training)
        _check_names("the model has no head", outputs, self.tasks)
        for name, split in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            if isinstance(split, Split):
                _check_names(f"the {name} split has no targets", split.targets, self.tasks)
                for task, described in self.tasks.items():
                    try:
                        described.check(outputs[task], split.targets[task])
                    except InputError as error:
                        raise InputError(f"{name} split, task {task}: {error}") from error


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
