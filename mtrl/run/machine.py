"""The machine that a run is on: what it has, how much of it a run took, and what its system and file system can do.

Systems differ in these, and file systems too. They are asked here alone, and a run does without what is not there.
"""

# PyTorch and psutil are imported where they are used: a sweep, and the simulators' processes, ask for the cores alone.
import ctypes
import errno
import fcntl
import math
import os
import platform
import resource
import sys
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mtrl import __version__
from mtrl.errors import InputError
from mtrl.run import limits

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "numpy", "gymnasium", "metaworld", "mujoco")
_CANNOT = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""What file systems answer that lack an operation."""


def cores() -> int:
    """How many processor cores this process may use, by what it is bound to and by limits of its time.

    Where the system does not tell, how many there are.
    """
    there = os.cpu_count() or 1
    with suppress(AttributeError, OSError):  # macOS has no such function
        there = len(os.sched_getaffinity(0))
    return max(math.ceil(min(there, limits.processor_time())), 1)


def keep_to_cores() -> None:
    """Has PyTorch compute with no more threads than `cores`; by itself it takes no notice of a container's limit."""
    import torch

    most = cores()
    if torch.get_num_threads() > most:
        torch.set_num_threads(most)


def free_memory() -> int:
    """Bytes of memory that the host has free, or that this process may take of it."""
    import psutil

    return int(min(psutil.virtual_memory().available, limits.free_memory()))


def lock(file: IO[Any]) -> bool | None:
    """Locks an open file until it is closed, unless somebody else has it: whether that went well.

    None where the file system has no locks; other errors (`OSError`) are raised.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in _CANNOT:
            return None
        raise
    return True


def sync(descriptor: int) -> None:
    """Has the disk hold what was written to an open file, as far as the file system can; `OSError` if it fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def sync_directory(path: Path) -> None:
    """Has the disk hold the names in a directory, as `sync` does its files; some may be written to but not opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in (*_CANNOT, errno.EACCES, errno.EPERM, errno.EISDIR):
            return
        raise
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Of glibc's ``mallopt``."""


def keep_freed_memory() -> None:
    """Has the C library keep what this process frees, up to 32 MiB in one piece, for what it allocates next.

    glibc gives larger pieces back to the system, which then has to find and clear every page of the activations of the
    next update anew. Other libraries are left as they are.
    """
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 2**25)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; asks no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def device_of(name: str) -> "torch.device":
    """The device of a name, `InputError` if there is none here; ``auto`` is CUDA where it can be used.

    Where there is a GPU that cannot be, that is said in a warning with the reason.
    """
    import torch

    if name == "auto":
        obstacle = _cuda_obstacle() if gpus() else None
        if obstacle is not None:
            warnings.warn(f"device=auto: there is a GPU, but PyTorch cannot use it: {obstacle}", stacklevel=2)
        return torch.device("cuda" if obstacle is None and torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, got '{name}'") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _cuda_obstacle() -> str | None:
    """Why PyTorch computes nothing on the GPU, in one line; None where it does."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if not torch.cuda.is_available():
            reason = str(said[-1].message) if said else "no driver answers"
            return " ".join(reason.split())
        try:
            torch.zeros(1, device="cuda").add_(1).item()  # an architecture that it was not built for is found out here
        except RuntimeError as error:
            return str(error).splitlines()[0]
    return None


def machine(device: "torch.device | None" = None) -> dict[str, Any]:
    """Versions and hardware, for ``summary.json``; the GPU is the device, where that is one."""
    import torch

    versions = {"python": platform.python_version(), "mtrl": __version__}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "versions": versions,
        "processor": _processor(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else None,
    }


def conditions(device: "torch.device | None" = None) -> dict[str, str]:
    """What random numbers and the last bits of a result depend on, beside the configuration, by name."""
    import torch

    about = machine(device)
    named = {"device": device and device.type, "processor": about["processor"], "GPU": about["gpu"]}
    named |= {"threads": torch.get_num_threads()} | about["versions"]
    return {name: str(value) for name, value in named.items() if value is not None and name != "python"}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory(device: "torch.device | None" = None) -> dict[str, float]:
    """The largest memory so far, in GiB, of this process and on the device if that is a GPU, as the system tells."""
    import torch

    peak = {}
    with suppress(OSError):
        unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, others KiB
        peak["process_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    if device is not None and device.type == "cuda":
        peak["gpu_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return peak
