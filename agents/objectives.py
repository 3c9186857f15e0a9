"""The objectives of one update, each with its own network and method: combined together, with one wait for all."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtrl.combiners import Combiner, NegativeLossError
from mtrl.errors import InputError, RunError
from mtrl.gradients import NonFiniteError, TaskBatched
from mtrl.gradients.conflict import conflict_metrics
from mtrl.gradients.pipeline import Source, accumulate, describe, gradients, look, norm_of, weigh


class Objectives:
    """Fills ``.grad`` of several networks with the combined gradients of their mean losses over tasks, in three pieces.

    `look` and `apply` read nothing back from the device, `weigh` is for the host.

    Args:
        tasks: their names.
        networks: the per-task gradients of each objective's network.
        combiners: each objective's, an instance of its own.
        max_norm: combined gradients are shortened to it; None leaves them.
        device: where the networks are.

    Attributes:
        norms: of the combined gradients, before they were shortened; not finite where an update must not be applied.

    Raises:
        InputError: if objectives share a combiner.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        networks: Mapping[str, TaskBatched],
        combiners: Mapping[str, Combiner],
        *,
        max_norm: float | None,
        device: torch.device,
    ) -> None:
        if len(set(combiners.values())) < len(combiners):
            raise InputError(f"{' and '.join(combiners)} need a combiner of their own: a combiner keeps state")
        self.tasks, self.networks, self.combiners = tasks, networks, combiners
        self.max_norm, self.device = max_norm, device
        for combiner in combiners.values():
            # Weights are found on the CPU; what combines whole gradients works, and remembers, where these are.
            combiner.to(device if combiner.needs == "jacobian" else "cpu")
        self.norms = torch.zeros(len(networks), device=device)
        self._losses: Sequence[Tensor] = ()
        self._sources: list[Source] = []
        self._seen: list[Tensor | None] = []

    def look(self, losses: Sequence[Tensor]) -> Tensor:
        """What combiners look at, from losses ``[T]`` that each objective's `TaskBatched` has recorded.

        Returns:
            All that the host has to know: the last update's norms, then each objective's losses and Gramian.
        """
        self._losses, told = losses, [self.norms]
        self._sources = [network.source(own) for network, own in zip(self.networks.values(), losses, strict=True)]
        with torch.no_grad():
            self._seen = [look(c, source) for c, source in zip(self.combiners.values(), self._sources, strict=True)]
            for combiner, own, seen in zip(self.combiners.values(), losses, self._seen, strict=True):
                told.append(own.detach())
                if combiner.needs == "gramian" and seen is not None:
                    told.append(seen.flatten())
        return torch.cat(told)

    def weigh(self, told: Tensor) -> list[Tensor]:
        """Each objective's task weights ``[T]``; a direction ``[P]`` where the method combines the Jacobian's entries.

        Raises:
            RunError: if a loss, gradient or weight is not finite, or the last update's combined gradient was not.
        """
        told, t = told.cpu(), len(self.tasks)  # the one wait of an update
        if not bool(told[: len(self.norms)].isfinite().all()):
            self.check()
        rest, found = told[len(self.norms) :], list[Tensor]()
        for row, (name, combiner) in enumerate(self.combiners.items()):
            losses, rest, seen = rest[:t], rest[t:], None
            if combiner.needs == "jacobian":
                losses, seen = losses.to(self.device), self._seen[row]
            elif combiner.needs == "gramian":
                seen, rest = rest[: t * t].view(t, t), rest[t * t :]
            with self.named_errors(name):
                found.append(weigh(combiner, losses, seen).to(self.device, non_blocking=True))
        return found

    def apply(self, found: list[Tensor]) -> None:
        """Fills ``.grad`` from what `weigh` found."""
        with torch.no_grad():
            for row, (combiner, source) in enumerate(zip(self.combiners.values(), self._sources, strict=True)):
                combined = gradients(combiner, source, found[row], 1 / len(self.tasks))
                self.norms[row] = norm_of(combined)
                accumulate(source.parameters, combined)
                if self.max_norm is not None:
                    factor = (self.max_norm / (self.norms[row] + 1e-12)).clamp(max=1)
                    for parameter in source.parameters:
                        assert parameter.grad is not None
                        parameter.grad.mul_(factor)

    def check(self) -> None:
        """Waits for `apply`.

        Raises:
            RunError: if a combined gradient is not finite; its task is named until `forget`.
        """
        for row, (name, finite) in enumerate(zip(self.networks, self.norms.isfinite().tolist(), strict=True)):
            if not finite:
                self.norms.zero_()
                with self.named_errors(name):
                    task = None
                    for source in self._sources[row : row + 1]:
                        task = source.offender([parameter.grad for parameter in source.parameters])
                    raise NonFiniteError("gradient", task)

    def describe(self, found: list[Tensor]) -> dict[str, Any]:
        """Measures of gradient conflict by ``conflict/<objective>/...``; before a step changes the parameters."""
        metrics: dict[str, Any] = {}
        with torch.no_grad():
            for row, (name, combiner) in enumerate(self.combiners.items()):
                seen = self._seen[row] if combiner.needs == "gramian" else None
                losses, source = self._losses[row].detach(), self._sources[row]
                done = describe(losses, combiner, source, found[row], self.norms[row], seen)
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
            obstacles = {
                "combines the gradients' entries": combiner.needs == "jacobian",
                "looks after the step": combiner.needs_losses_after_step,
                "does not look at the same in every update": combiner.needs_change,
            }
            for what, there in obstacles.items():
                if there:
                    return f"combiner '{combiner.name}' {what}"
        return None

    def forget(self) -> None:
        """Lets go of the graphs and records of this update."""
        self._losses, self._sources, self._seen = (), [], []
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
