"""What all scripts have in common: where the configurations are, devices, and how often something is done."""

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import MISSING

from mtrl.errors import InputError

CONFIGS = str(Path(__file__).parents[1] / "configs")


@dataclass
class EveryConfig:
    """How often something is done, in vector steps (of `scripts/train.py`) or epochs (of `scripts/supervised.py`)."""

    every: int = MISSING


def device_of(name: str) -> torch.device:
    """The device of a name; ``auto`` is CUDA where there is one.

    Raises:
        InputError: if the name is unknown, or there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error
    return device
