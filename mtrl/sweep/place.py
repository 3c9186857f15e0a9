"""Where a member of a sweep is computed: how many cores are its own, and which GPU."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrl.run.machine import cores, gpus, lock
from mtrl.sweep.member import POLL, stopping
from mtrl.sweep.supervision import follow_parent


@dataclass(frozen=True)
class Place:
    """Where a member is computed."""

    cores: int | None  # its own; None where the whole machine is, and the launcher's own process waits for it
    gpu: str | None = None  # the only one that it sees; None where its launcher decides
    threads: str | None = None  # how many it has; None is one per core

    def environment(self, outside: Mapping[str, str]) -> dict[str, str]:
        """The environment of the member's process, made from its launcher's."""
        environment = dict(outside)
        if self.cores is not None:
            environment.pop("OPENBLAS_NUM_THREADS", None)  # a launcher's choice; scripts make their own
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), self.threads or str(self.cores))
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        return environment


@contextmanager
def taking_place(settings: Any, folder: Path, size: int | None, threads: str | None) -> Iterator[Place]:
    """Waits until this machine has a place for one more member, which is taken until the end of the context.

    Where the sweep is to stop, there is a place at once.

    Args:
        settings: Hydra's own configuration: which launcher, and its options.
        folder: of the sweep.
        size: how many members there are; None where that is unknown.
        threads: ``OMP_NUM_THREADS`` where the sweep began; launchers set their own.
    """
    launcher, here = settings.launcher, cores()
    match str(launcher["_target_"]).rpartition(".")[2]:
        case "BasicLauncher":
            yield Place(None)
        case "JoblibLauncher":
            follow_parent()  # joblib's workers do not on their own
            at_once = workers(launcher.n_jobs, size)
            visible: list[str | None] = [*gpus()] or [None]
            with _taking_slot(folder, at_once, settings.job.num) as slot:
                yield Place(max(here // at_once, 1), visible[slot % len(visible)], threads)
        case "RayLauncher":
            yield Place(max(int(launcher.ray.remote.get("num_cpus", 1)), 1))
        case "LocalLauncher":  # submitit's, which starts a batch at once
            at_once = min(size or here, settings.sweeper.get("max_batch_size") or size or here)
            yield Place(launcher.cpus_per_task or max(here // at_once, 1))
        case _:  # the scheduler's allocation
            yield Place(int(os.environ.get("SLURM_CPUS_PER_TASK", here)))


def workers(n_jobs: int, size: int | None) -> int:
    """How many members joblib runs at once: of negative ``n_jobs``, -1 is one a core, -2 one fewer, and so on."""
    at_once = n_jobs if n_jobs > 0 else max(cores() + 1 + n_jobs, 1)
    return min(at_once, size or at_once)


@contextmanager
def _taking_slot(folder: Path, count: int, member: int) -> Iterator[int]:
    """Waits for one of ``count`` numbered slots, and holds it by a lock; without locks, members take them in turn."""
    while not stopping(folder):
        for number in range(count):
            with (folder / f"slot-{number}").open("w") as slot:
                locked = lock(slot)
                if locked is not False:
                    yield number if locked else member % count
                    return
        time.sleep(POLL)
    yield 0
