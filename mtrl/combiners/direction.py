"""What the methods that read the Jacobian entry by entry share."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mtrl.combiners.base import Combiner
from mtrl.errors import InputError

CPU_BLOCK = 2**18
"""Elements of a block that stays in the cache."""


def column_blocks(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same columns of matrices of one shape, few enough at a time for the processor's cache."""
    rows = matrices[0].shape[0]
    # An accelerator loses more by many small kernels than by temporaries of a GiB.
    elements = CPU_BLOCK if matrices[0].device.type == "cpu" else 2**28
    width = max(elements // rows, 1)
    return zip(*(torch.split(matrix, width, dim=1) for matrix in matrices), strict=True)


def by_map(jacobian: Tensor, activations: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each map of a representation the gradients by it, ``[T, N, F]``, and its value, ``[N, F]``.

    A map of one dimension has features and no samples.
    """
    for columns, z in zip(torch.split(jacobian, [z.numel() for z in activations], 1), activations, strict=True):
        samples = z.detach().reshape(len(z) if z.dim() > 1 else 1, -1)
        yield columns.view(len(jacobian), *samples.shape), samples


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """The generator itself on the CPU; elsewhere one that it seeds, so that masks are drawn where used."""
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))


def at_norm_of(direction: Tensor, reference: Tensor) -> Tensor:
    """A direction (``[P]``) stretched to the norm of another; a zero direction stays zero."""
    norm, target = lengths(torch.stack([direction, reference]))
    return direction * torch.where(norm > 0, target / norm, 0)


def lengths(rows: Tensor) -> Tensor:
    """The lengths ``[T]`` of rows ``[T, P]``, also of those whose squares leave the range of their type."""
    found: Tensor = torch.linalg.vector_norm(rows, dim=1)
    limits = torch.finfo(rows.dtype)
    doubtful = ~((found > (limits.tiny / limits.eps) ** 0.5) & found.isfinite())
    if bool(doubtful.any()):
        largest = rows[doubtful].abs().amax(1)
        units = torch.where(largest > 0, largest, 1)
        found[doubtful] = torch.linalg.vector_norm(rows[doubtful] / units[:, None], dim=1) * units
    return found


class RowMemory(Combiner):
    """Base of the methods that remember one vector per task, ``memory`` of shape ``[T, P]``.

    It is made at the first call, when P is known (`InputError` if that changes), and saved and restored like any other
    buffer. Papers that weigh the task-specific parameters too are not followed: these get their plain loss's gradient.
    """

    needs = "jacobian"
    memory: Tensor | None

    def _setup(self) -> None:
        self.register_buffer("memory", None)
        self.calls: Tensor = torch.nn.Buffer(torch.zeros((), dtype=torch.float64))

    def _recall(self, jacobian: Tensor) -> Tensor:
        """The memory for a Jacobian, zeros at first; counts the call."""
        self.calls += 1
        if self.memory is None:
            self.memory = torch.zeros_like(jacobian)
        if self.memory.shape != jacobian.shape:
            raise InputError(
                f"{self.name} remembers gradients of shape {tuple(self.memory.shape)}, "
                f"got a Jacobian of shape {tuple(jacobian.shape)}"
            )
        self.memory = self.memory.to(jacobian.device)  # a state that was restored is where the combiner is, or was
        return self.memory

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "memory")
        self.memory = None if saved is None else torch.empty_like(saved, device=self.calls.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
