"""Maximum Roaming: every task sees its own part of the encoder's units, and visits all of them in turn."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from mtrl.errors import InputError
from mtrl.ranges import Count, PositiveFraction, check
from mtrl.supervised.methods import method
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.problem import Batch, MultiTaskModel
from mtrl.supervised.updates import Setup

_SIZES = ("out_features", "out_channels", "num_features")  # what layers call the number of their units


class RoamingModel(MultiTaskModel):
    """A model whose encoder shows each task only the units that the task's mask keeps.

    Units are the outputs of linear layers and the channels of convolutions (`InputError` where there are none); those
    of the others are 0. A batch normalisation behind a layer is masked in its place. A task has a ``share``, in (0, 1],
    of a layer's units; more where the tasks would leave a unit to nobody. The seed draws masks and, later, swaps.
    """

    def __init__(self, model: MultiTaskModel, *, share: float, seed: int) -> None:
        check("share", share, PositiveFraction)
        super().__init__(model.encoder, dict(model.heads.items()))
        self.generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for module in model.encoder.modules():
            if isinstance(module, nn.Linear | _ConvNd):
                layers.append(module)
            elif isinstance(module, _NormBase) and layers:
                layers[-1] = module
        if not layers:
            raise InputError("maximum_roaming masks linear layers and convolutions, but the encoder has none")
        self.masks = [f"mask_{number}" for number in range(len(layers))]
        """The names of the buffers ``[T, units]``."""
        self._task = 0
        for name, layer in zip(self.masks, layers, strict=True):
            units = next(vars(layer)[size] for size in _SIZES if size in vars(layer))
            self.register_buffer(name, _initial_mask(len(model.heads), units, share, self.generator))
            layer.register_forward_hook(partial(self._masked, name))
        self.to(next(self.parameters()).device)

    def representations(self, inputs: Tensor) -> list[Tensor]:
        """What the encoder makes of the inputs with each task's units."""
        found = []
        for task in range(len(self.heads)):
            self._task = task
            found.append(self.encode(inputs))
        return found

    def _masked(self, name: str, layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        behind = 0 if isinstance(layer, nn.Linear) else output.ndim - 2
        mask = self.get_buffer(name)[self._task].to(output.dtype)
        return output * mask.view(-1, *[1] * behind)


@method("maximum_roaming")
class MaximumRoamingUpdate(CombinedUpdate):
    """Maximum Roaming (Pascal, Michiardi, Bost, Huet & Zuluaga, 2021) around any combiner.

    Each task trains its own part of every layer's units. At regular intervals it gives one of them back, drawn
    uniformly, for one that it never had, until it has had all. Each layer has its own interval, so that all layers end
    after about ``roaming_updates``. Every task's forward and backward pass goes through the encoder alone, so that
    there is no common ``representation`` to take gradients by (`InputError`). The share is that of `RoamingModel`.
    """

    model: RoamingModel

    def __init__(self, setup: Setup, *, share: PositiveFraction = 0.8, roaming_updates: Count = 2000) -> None:
        if setup.wrt == "representation":
            raise InputError("wrt=representation: with maximum_roaming every task has its own; use shared or last")
        model = RoamingModel(setup.benchmark.model, share=share, seed=setup.seed)
        super().__init__(replace(setup, benchmark=replace(setup.benchmark, model=model)))
        self._updates = 0
        self._visited = [model.get_buffer(name).bool().cpu() for name in model.masks]
        swaps = [int((~visited).sum(1).max()) for visited in self._visited]
        self._intervals = [max(roaming_updates // count, 1) if count else 0 for count in swaps]

    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """See `mtrl.supervised.updates.Update`."""
        logged = super().step(batch, draw, moved)
        self._updates += 1
        for name, visited, interval in zip(self.model.masks, self._visited, self._intervals, strict=True):
            if interval and self._updates % interval == 0:
                self._swap(self.model.get_buffer(name), visited)
        return logged

    def _swap(self, mask: Tensor, visited: Tensor) -> None:
        for task in (~visited).any(1).nonzero().flatten().tolist():
            given = torch.multinomial(mask[task].cpu(), 1, generator=self.model.generator)
            taken = torch.multinomial((~visited[task]).float(), 1, generator=self.model.generator)
            mask[task, given], mask[task, taken] = 0, 1
            visited[task, taken] = True

    def state_dict(self) -> dict[str, Any]:
        """See `mtrl.supervised.updates.Update`; the masks are the model's."""
        own = {"updates": self._updates, "visited": self._visited, "generator": self.model.generator.get_state()}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `mtrl.supervised.updates.Update`."""
        super().load_state_dict(state)
        self._updates, self._visited = state["updates"], state["visited"]
        self.model.generator.set_state(state["generator"])


def _initial_mask(num_tasks: int, units: int, share: float, generator: torch.Generator) -> Tensor:
    """``[T, units]`` of 0 and 1: every unit for some task, then more by chance up to each task's share."""
    mask = torch.zeros(num_tasks, units)
    mask[torch.arange(units) % num_tasks, torch.arange(units)] = 1
    wanted = math.ceil(share * units)
    for row in mask:
        free = (row == 0).nonzero().flatten()
        missing = max(wanted - units + len(free), 0)
        row[free[torch.randperm(len(free), generator=generator)[:missing]]] = 1
    return mask
