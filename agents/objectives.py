"""The objectives of one update, each with its own network and method, and one wait for each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner, NegativeLossError
from mtrl.errors import InputError, RunError
from mtrl.gradients import NonFiniteError, TaskBatched
from mtrl.gradients.conflict import conflict_metrics
from mtrl.gradients.graphs import pinned
from mtrl.gradients.pipeline import (
    DEFAULT_MEMORY_LIMIT,
    Source,
    check_finite,
    describe,
    direction,
    gradients,
    look,
    norm_of,
    weigh,
)
from mtrl.gradients.shared_input import ByParameters


class Looked(NamedTuple):
    """What is known of an objective in this update."""

    losses: Tensor
    source: Source
    seen: Tensor | None
    """The Gramian, or the Jacobian."""


class Told(NamedTuple):
    """What an objective's combiner looks at."""

    numbers: Tensor
    """For the host: the last update's norms, the losses, and the Gramian or the sums of the Jacobian's rows."""
    jacobian: Tensor | None
    """``[T, P]``, where the method combines its entries; it stays on the device."""


class Summed:
    """In the place of `TaskBatched`, where nobody asks for per-task gradients: one backward pass, with no recording."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = list(network.parameters())

    def record(self) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def source(self, losses: Tensor) -> Source:
        """The gradients of losses ``[T]``."""
        return ByParameters(list(losses), self.parameters, (), False, DEFAULT_MEMORY_LIMIT)

    def forget(self) -> None:
        """Nothing."""


class Objectives:
    """Fills ``.grad`` of several networks with the combined gradients of their mean losses over tasks, in three pieces.

    `look` and `combine` read nothing back from the device, `weigh` is for the host: it finds one objective's weights
    while the device is busy with another.

    Args:
        tasks: their names.
        networks: the per-task gradients of each objective's network.
        combiners: each objective's, an instance of its own.
        max_norm: combined gradients are shortened to it; None leaves them.
        device: where the networks are.
        scale: what the sum of the losses is multiplied by; None makes it their mean.

    Attributes:
        norms: of the combined gradients, before they were shortened; not finite where an update must not be applied.

    Raises:
        InputError: if objectives share a combiner.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        networks: Mapping[str, TaskBatched | Summed],
        combiners: Mapping[str, Combiner],
        *,
        max_norm: float | None,
        device: torch.device,
        scale: float | None = None,
    ) -> None:
        if len(set(combiners.values())) < len(combiners):
            raise InputError(f"{' and '.join(combiners)} need a combiner of their own: a combiner keeps state")
        self.tasks, self.networks, self.combiners = tasks, networks, combiners
        self.max_norm, self.device = max_norm, device
        self.scale = 1 / len(tasks) if scale is None else scale
        for combiner in combiners.values():
            # Weights are found on the CPU; what combines whole gradients works, and remembers, where these are.
            combiner.to(device if combiner.needs == "jacobian" else "cpu")
        self.norms = torch.zeros(len(networks), device=device)
        self._looked: dict[str, Looked] = {}

    def look(self, name: str, losses: Tensor) -> Told:
        """What an objective's combiner looks at, from losses ``[T]`` that its `TaskBatched` has recorded."""
        combiner, source = self.combiners[name], self.networks[name].source(losses)
        with torch.no_grad():
            seen = look(combiner, source)
        self._looked[name] = Looked(losses.detach(), source, seen)
        jacobian = seen if combiner.needs == "jacobian" else None
        numbers = [self.norms, losses.detach()]
        if seen is not None:
            numbers.append(seen.flatten() if jacobian is None else jacobian.sum(1))
        return Told(torch.cat(numbers), jacobian)

    def weigh(self, name: str, told: Told) -> Tensor:
        """An objective's task weights ``[T]``; a direction ``[P]`` where the method combines the Jacobian's entries.

        Args:
            name: of the objective.
            told: what `look` returned, its numbers on the host. Weights are `pinned` there, a direction is on the
                device; the Jacobian may be overwritten.

        Raises:
            RunError: if a loss, gradient or weight is not finite, or the last update's combined gradient was not.
        """
        combiner, t = self.combiners[name], len(self.tasks)
        norms, losses, seen = told.numbers.tensor_split([len(self.norms), len(self.norms) + t])
        if not math.isfinite(norms.sum()):
            self.check()
        with self.named_errors(name):
            if told.jacobian is not None:
                check_finite("loss", losses)
                check_finite("gradient", seen)
                return direction(combiner, losses.to(self.device), told.jacobian)
            size = math.isqrt(len(seen))
            return pinned(weigh(combiner, losses, seen.view(size, size) if len(seen) else None), self.device)

    def combine(self, name: str, found: Tensor) -> None:
        """Fills ``.grad`` of an objective's network, which has none yet, from what `weigh` found."""
        source, row = self._looked[name].source, list(self.networks).index(name)
        with torch.no_grad():
            found = found.to(self.device, non_blocking=True)
            combined = gradients(self.combiners[name], source, found, self.scale)
            self.norms[row] = norm = norm_of(combined)
            factor = None if self.max_norm is None else (self.max_norm / (norm + 1e-12)).clamp(max=1)
            for parameter, gradient in zip(source.parameters, combined, strict=True):
                if gradient is not None:
                    # As a fused optimizer reads it; nothing else is done to it before it is dropped.
                    parameter.grad = (gradient if factor is None else gradient * factor).contiguous()

    def check(self) -> None:
        """Waits for `combine`.

        Raises:
            RunError: if a combined gradient is not finite; its task is named until `forget`.
        """
        for name, finite in zip(self.networks, self.norms.isfinite().tolist(), strict=True):
            if not finite:
                self.norms.zero_()
                with self.named_errors(name):
                    source = self._looked[name].source if name in self._looked else None
                    task = source.offender([p.grad for p in source.parameters]) if source is not None else None
                    raise NonFiniteError("gradient", task)

    def describe(self, found: Mapping[str, Tensor]) -> dict[str, Any]:
        """Measures of gradient conflict by ``conflict/<objective>/...``; before a step changes the parameters."""
        metrics: dict[str, Any] = {}
        with torch.no_grad():
            for row, (name, combiner) in enumerate(self.combiners.items()):
                losses, source, seen = self._looked[name]
                seen = seen if combiner.needs == "gramian" else None
                done = describe(losses, combiner, source, found[name].to(self.device), self.norms[row], seen)
                metrics |= {
                    f"conflict/{name}/{key}": value for key, value in conflict_metrics(done, self.tasks).items()
                }
        return metrics

    def counts(self) -> dict[str, Any]:
        """``count/<objective>_stationary``, 1 where `weigh` has just found that its method had no solution."""
        return {f"count/{name}_stationary": 1 for name, combiner in self.combiners.items() if combiner.stationary}

    def obstacle(self) -> str | None:
        """Why the pieces cannot be captured as graphs, if so."""
        for combiner in self.combiners.values():
            if combiner.needs_change:
                return f"combiner '{combiner.name}' does not look at the same in every update"
        return None

    def forget(self) -> None:
        """Lets go of the graphs and records of this update."""
        self._looked.clear()
        for network in self.networks.values():
            network.forget()

    @contextmanager
    def named_errors(self, objective: str) -> Iterator[None]:
        """Gives errors the name of objective, method and task, and drops the gradients of an update that failed."""
        try:
            yield
        except (RunError, NegativeLossError) as error:
            for network in self.networks.values():
                for parameter in network.parameters:
                    parameter.grad = None
            if isinstance(error, NegativeLossError):
                raise error.named(self.tasks[error.task], f"in the {objective} objective") from error
            reason = str(error)
            if isinstance(error, NonFiniteError):
                task = "" if error.task is None else f" of task '{self.tasks[error.task]}'"
                reason = f"non-finite {error.quantity}{task}"
            name = self.combiners[objective].name
            raise RunError(f"{reason} in the {objective} objective under combiner '{name}'") from error
