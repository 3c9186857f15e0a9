"""The machine that a run is on: what it has, and how much of it a run took."""

# PyTorch is imported where it is used: a sweep, and the simulators' processes, ask for the cores alone.
import os
import platform
import resource
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtrl.errors import InputError

if TYPE_CHECKING:
    import torch

_PACKAGES = ("mtrl", "torch", "numpy", "gymnasium", "metaworld", "mujoco")
_PEAKS_PER_GIB = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, others KiB


def cores() -> int:
    """How many processor cores this process may use; where the system does not tell, how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; asks no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def device_of(name: str) -> "torch.device":
    """The device of a name, `InputError` if there is none here; ``auto`` is CUDA where there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def machine() -> dict[str, Any]:
    """Versions and hardware, for ``summary.json``."""
    import torch

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "versions": versions,
        "processor": _processor(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory() -> dict[str, float]:
    """The largest memory so far, in GiB, of this process and on the GPU."""
    import torch

    peak = {"process_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PEAKS_PER_GIB}
    if torch.cuda.is_available():
        peak["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peak
