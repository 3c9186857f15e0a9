"""What a supervised multi-task problem consists of: tasks, three splits, an encoder and one head per task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from mtrl.errors import InputError, unknown_name
from mtrl.supervised.tasks import MaskedTargets, Targets, Task, unmasked

Precision = Literal["fp32", "bf16"]


Batch = tuple[Any, dict[str, Targets]]
"""Inputs ``[N, ...]``, or what else the encoder takes that has a ``to(device)``, and targets ``[N, ...]`` by task."""


class Samples(Protocol):
    """A map-style data set, such as a ``torch.utils.data.Dataset``: `Split`, or whatever reads files.

    Where it has a method ``batch`` as `Split` has one, that makes batches; else torch's ``default_collate`` does.
    """

    def __len__(self) -> int:
        """How many samples there are."""

    def __getitem__(self, index: int, /) -> tuple[Any, Mapping[str, Any]]:
        """A sample's input and its targets by task (one with a mask is a `MaskedTargets`)."""


Augmentation = Callable[[Any, dict[str, Any]], tuple[Any, Mapping[str, Any]]]
"""Of a training sample's input and targets, what is made of them; it draws from torch's global random generator."""


@dataclass(frozen=True)
class Split:
    """Samples in memory: inputs and, by task, as many targets, ``[N, ...]``, N at least 1; else an `InputError`.

    ``masks`` (``[N]``, true or false) are for tasks of which some samples have no target; what stands in its place does
    not matter then.
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

    def __getitem__(self, index: int) -> Batch:
        """One sample: its input, and its targets by task."""
        return self.batch(index)

    def whole(self) -> dict[str, Targets]:
        """All targets by task."""
        return {
            task: MaskedTargets(values, self.masks[task]) if task in self.masks else values
            for task, values in self.targets.items()
        }

    def batch(self, indices: Tensor | Sequence[int] | int) -> Batch:
        """The samples at ``indices``: inputs, and targets by task."""
        chosen = torch.as_tensor(indices)
        return self.inputs[chosen], {task: self._of(task, chosen) for task in self.targets}

    def _of(self, task: str, indices: Tensor) -> Targets:
        values, mask = self.targets[task][indices], self.masks.get(task)
        return values if mask is None else MaskedTargets(values, mask[indices])


class MultiTaskModel(nn.Module):
    """A shared encoder, from inputs to the representation z, and one head per task, from z to outputs.

    Attributes:
        autocast: the type of products and activations, by torch's autocast; z and the outputs are float32 again, and so
            are weights, losses and gradients. None computes in the parameters' own type.
        channels_last: whether images ``[N, C, H, W]`` are laid out by pixels.
    """

    def __init__(self, encoder: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        try:
            self.heads = nn.ModuleDict(heads)
        except KeyError as error:
            raise InputError(f"a task's name cannot be that of a part of torch's modules: {error.args[0]}") from error
        self.autocast: torch.dtype | None = None
        self.channels_last = False

    def compute(self, precision: Precision, *, channels_last: bool) -> None:
        """Sets the arithmetic (``fp32`` is the parameters' own type) and the layout of images and their weights."""
        self.autocast = torch.bfloat16 if precision == "bf16" else None
        self.channels_last = channels_last
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by task."""
        return self.outputs(self.representations(inputs))

    def representations(self, inputs: Tensor) -> list[Tensor]:
        """What each task's head reads: T times the same z."""
        return [self.encode(inputs)] * len(self.heads)

    def outputs(self, representations: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs by task, each head reading its own of T representations."""
        return {name: self.output(name, z) for name, z in zip(self.heads, representations, strict=True)}

    def encode(self, inputs: Tensor) -> Tensor:
        """What the encoder makes of the inputs."""
        if self.channels_last and isinstance(inputs, Tensor) and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return self._computed(self.encoder, inputs)

    def output(self, task: str, z: Tensor) -> Tensor:
        """What a task's head makes of a representation."""
        return self._computed(self.heads[task], z)

    def _computed(self, part: nn.Module, given: Tensor) -> Tensor:
        if self.autocast is None:
            made: Tensor = part(given)
            return made
        with torch.autocast(next(self.parameters()).device.type, self.autocast):
            made = part(given)
        return made.float()

    def last_shared_layer(self) -> list[nn.Parameter]:
        """The parameters of the encoder's last layer that has any."""
        layers = [list(module.parameters(recurse=False)) for module in self.encoder.modules()]
        return next(layer for layer in reversed(layers) if layer)


@dataclass(frozen=True)
class Benchmark:
    """A problem, and the untrained model for it. `mtrl.supervised.data.example` is one to copy.

    Models are selected by the validation split; the test split is read once, after training.

    Attributes:
        tasks: by name.
        model: an encoder and a head for each of them.
        train: the samples that the model learns from.
        validation: those that it is selected by.
        test: those that the selected one is reported on.
        augment: changes training samples, inputs and targets together; None leaves them as they are.
        evaluation_batch: how many samples are evaluated at once.
        capturable: whether CUDA graphs may hold updates: on batches of one shape the model does the same operations in
            every update, whatever the values, and only its tensors change.
    """

    tasks: Mapping[str, Task]
    model: MultiTaskModel
    train: Samples
    validation: Samples
    test: Samples
    augment: Augmentation | None = field(default=None, kw_only=True)
    evaluation_batch: int = field(default=1000, kw_only=True)
    capturable: bool = field(default=False, kw_only=True)

    @property
    def splits(self) -> dict[str, Samples]:
        """By what messages call them."""
        return {"training": self.train, "validation": self.validation, "test": self.test}

    @property
    def complete(self) -> bool:
        """Whether every training sample is known to have all targets; of other classes than `Split` it is not."""
        if not isinstance(self.train, Split) or not self.tasks.keys() <= self.train.targets.keys():
            return False
        return all(bool((_shares(self.train, name, task) == 1).all()) for name, task in self.tasks.items())

    def first_outputs(self, device: torch.device) -> dict[str, Tensor]:
        """The model's outputs for the first training sample, ``[1, ...]`` by task; `InputError` if one is missing."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            outputs: dict[str, Tensor] = self.model(placed(batch_of(self.train, [0]), device)[0])
        self.model.train(training)
        check_names("the model has no head", outputs, self.tasks)
        return outputs

    def check(self, device: torch.device) -> None:
        """Raises `InputError` on the first target that does not fit its head (split, task and record named).

        Likewise on a split in which all targets of a task are missing. Of splits of other classes than `Split` the
        first sample is looked at; `mtrl.supervised.scan` looks at all.
        """
        outputs = self.first_outputs(device)
        for name, split in self.splits.items():
            whole = isinstance(split, Split)
            targets = split.whole() if isinstance(split, Split) else placed(batch_of(split, [0]), device)[1]
            check_names(f"the {name} split has no targets", targets, self.tasks)
            for task, described in self.tasks.items():
                try:
                    check_targets(described, outputs[task], *unmasked(targets[task]), some=whole)
                except InputError as error:
                    raise InputError(f"{name} split, task {task}: {error}") from error

    def missing(self) -> list[str]:
        """What to tell of targets that are missing, in words; nothing of splits of other classes than `Split`."""
        told = []
        for name, split in self.splits.items():
            if not isinstance(split, Split):
                continue
            for task, described in self.tasks.items():
                if count := int((_shares(split, task, described) < 1).sum()):
                    told.append(f"{name} split, task {task}: {count:,} of {len(split):,} targets are missing")
        return told


def _shares(split: Split, name: str, task: Task) -> Tensor:
    """How much of each target of a task is there."""
    return task.present(split.targets[name]) * split.masks.get(name, torch.tensor(True))


def batch_of(samples: Samples, indices: Sequence[int]) -> Batch:
    """The samples of a data set at ``indices``, as one batch; `InputError` if they are no inputs and targets."""
    together = getattr(samples, "batch", None)
    found = together(indices) if together else default_collate([samples[index] for index in indices])
    if not isinstance(found, tuple | list) or len(found) != 2 or not isinstance(found[1], Mapping):
        raise InputError(f"{type(samples).__name__}: a sample is not a pair of an input and targets by task")
    return found[0], dict(found[1])


def placed(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device; from pinned memory nothing waits for it."""

    def put(targets: Targets) -> Targets:
        if isinstance(targets, MaskedTargets):
            return MaskedTargets(*(part.to(device, non_blocking=True) for part in targets))
        return targets.to(device, non_blocking=True)

    return batch[0].to(device, non_blocking=True), {task: put(targets) for task, targets in batch[1].items()}


def check_targets(task: Task, outputs: Tensor, targets: Tensor, mask: Tensor | None, *, some: bool = True) -> None:
    """Raises `InputError` if targets do not fit a head's outputs, or none is there where ``some`` have to be."""
    if mask is not None and not bool(mask.all()):
        # Nobody looks at what is masked; records keep their numbers.
        targets = targets[torch.where(mask, torch.arange(len(mask)), mask.int().argmax())]
    task.check(outputs, targets)
    there = task.present(targets)
    if there.shape != (len(targets),):
        raise InputError(f"present gives {list(there.shape)}, expected one entry for each of {len(targets)} targets")
    if some and (not bool((there > 0).any()) or (mask is not None and not bool(mask.any()))):
        raise InputError(f"all {len(targets)} targets are missing")


def check_names(what: str, found: Mapping[str, Any], tasks: Mapping[str, Task]) -> None:
    """Raises `InputError` if ``found`` lacks a task."""
    for task in tasks:
        if task not in found:
            raise InputError(f"{what} of task {task}; there are {', '.join(found) or 'none'}")
