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
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: tuple[Metric, ...]


def _accurate(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float()


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).mean(1)


def classification() -> Task:
    """Cross-entropy of logits ``[N, classes]`` against labels ``[N]``; judged by accuracy."""
    return Task(F.cross_entropy, (Metric("accuracy", True, _accurate),))


def regression() -> Task:
    """Mean squared error of outputs and targets of one shape ``[N, ...]``; judged by the same."""
    return Task(F.mse_loss, (Metric("squared_error", False, _squared_error),))


@dataclass(frozen=True)
class Split:
    """Samples in memory. Another class with ``__len__`` and ``batch`` can take its place.

    Attributes:
        inputs: ``[N, ...]``.
        targets: ``[N, ...]`` by task.

    Raises:
        InputError: if the split is empty, or a task has another number of samples than the inputs.
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
    """A shared encoder and one head per task (hard parameter sharing).

    Args:
        encoder: from inputs to the shared representation z.
        heads: from z to outputs, by task.
    """

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
    """A problem, and the model for it. `mtrl.supervised.example` is one to copy.

    Attributes:
        tasks: by name, in order.
        model: untrained.
        train: what is trained on.
        validation: what models are selected by.
        test: what is reported; read once, after training.
    """

    tasks: Mapping[str, Task]
    model: MultiTaskModel
    train: Split
    validation: Split
    test: Split


def check_tasks(names: Sequence[str], valid: Sequence[str]) -> list[str]:
    """The names, if they are a selection of the valid ones.

    Raises:
        InputError: if there are none, one is unknown, or one comes twice.
    """
    if not names:
        raise InputError(f"no task was chosen; valid: {', '.join(valid)}")
    for name in names:
        if name not in valid:
            raise unknown_name("task", name, valid)
    if len(set(names)) < len(names):
        raise InputError(f"a task comes twice in [{', '.join(names)}]")
    return list(names)
