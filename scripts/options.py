"""What all scripts have in common: where the configurations are, devices, and how often something is done."""

from collections.abc import Mapping
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


def check_integers(smallest: Mapping[str, tuple[int | None, int]]) -> None:
    """Refuses integers out of range.

    Args:
        smallest: the value and its lower bound by key; None is always good. Seeds have an upper bound too.

    Raises:
        InputError: on the first that is.
    """
    for key, (value, least) in smallest.items():
        if value is not None and value < least:
            raise InputError(f"{key}: expected an integer of at least {least}, got {value}")
        if key == "seed" and value is not None and value >= 2**31:
            raise InputError(f"seed: expected an integer below 2^31, got {value}")


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
