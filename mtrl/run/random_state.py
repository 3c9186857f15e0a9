"""Random generators that go on where they were, or on another kind of device."""

import hashlib

import torch
from torch import Tensor

_OF_A_GPU = 16
"""Bytes: a seed and an offset."""


def of_device(device: torch.device) -> torch.Generator:
    """What models on a device draw from, for dropout."""
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


def restore(generator: torch.Generator, state: Tensor) -> None:
    """Gives a generator the state (bytes) that another one had.

    The states of a CPU's and of a GPU's generator are of different kinds: where one meets the other, the generator is
    seeded by the state, so that what follows is new but still follows from the run's seed. What is neither is a
    `RuntimeError` or `TypeError`.
    """
    kinds, own = {_OF_A_GPU, torch.Generator().get_state().numel()}, generator.get_state().numel()
    if state.dtype == torch.uint8 and state.numel() in kinds - {own}:
        digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
        generator.manual_seed(int.from_bytes(digest[:7], "little"))
    else:
        generator.set_state(state.cpu().clone())  # torch reads from where a view's memory begins
