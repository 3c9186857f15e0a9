"""What a container or a service may use of a machine: the limits of Linux's control groups, of either version.

Neither the system's own counts nor PyTorch look at them.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_PROCESSOR = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}
_MEMORY = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
_CACHE = {1: "total_inactive_file", 2: "inactive_file"}


def processor_time() -> float:
    """How many cores' time this process may use, with all others of its groups; infinite without a limit."""
    least = math.inf
    for group, version in _groups("cpu"):
        with suppress(OSError, ValueError):
            quota, period = _numbers(group, _PROCESSOR[version])
            least = min(least, quota / period) if quota > 0 else least
    return least


def free_memory() -> float:
    """How many bytes more its groups may take; infinite without a limit. What only keeps files for later is free."""
    least = math.inf
    for group, version in _groups("memory"):
        with suppress(OSError, ValueError, KeyError):
            limit, used = _numbers(group, _MEMORY[version])
            parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            least = min(least, max(limit - used + int(parts[_CACHE[version]]), 0))
    return least


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the groups that this process is in and of those around them, with their version."""
    with suppress(OSError):  # other systems have none
        for line in _OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = _ROOT / controller if controllers else _ROOT
            inside = top / path.lstrip("/")
            for group in (inside, *inside.parents):
                yield group, 1 if controllers else 2
                if group == top:
                    break


def _numbers(group: Path, files: tuple[str, ...]) -> list[int]:
    """The numbers in a group's files; `ValueError` where one says that there is no limit."""
    return [int(word) for file in files for word in (group / file).read_text().split()]
