"""What a member of a sweep gets of a machine."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mtrl.sweep.place import Place, gpu_of, joblib_slots, taking_place, taking_slot, visible_gpus

CORES = len(os.sched_getaffinity(0))


def settings(name: str, max_batch_size: int | None = None, **options: Any) -> Any:
    launcher = {"_target_": f"hydra_plugins.some.{name}"} | options
    return OmegaConf.create({"launcher": launcher, "sweeper": {"max_batch_size": max_batch_size}})


@pytest.mark.parametrize(
    ("n_jobs", "size", "slots"),
    [(-1, None, 8), (-2, None, 7), (-20, None, 1), (3, None, 3), (3, 2, 2), (-1, 3, 3), (16, 40, 16)],
)
def test_joblib_has_a_slot_for_every_member_at_once(n_jobs: int, size: int | None, slots: int) -> None:
    assert joblib_slots(n_jobs, 8, size) == slots


def test_slots_are_taken_one_by_one_and_waited_for(tmp_path: Path) -> None:
    with taking_slot(tmp_path, 2) as first, taking_slot(tmp_path, 2) as second:
        assert (first, second) == (0, 1)
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with taking_slot(tmp_path, 1):
            taken.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    threading.Timer(0.5, release.set).start()
    begun = time.monotonic()
    with taking_slot(tmp_path, 1) as slot:
        assert slot == 0
        assert release.is_set()
        assert time.monotonic() - begun > 0.4
    holder.join()


def test_slots_get_gpus_in_turn() -> None:
    assert [gpu_of(slot, ["4", "GPU-5"]) for slot in range(4)] == ["4", "GPU-5", "4", "GPU-5"]
    assert gpu_of(3, []) is None


def test_gpus_are_those_that_are_visible(tmp_path: Path) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2,GPU-3"}, tmp_path) == ["2", "GPU-3"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ["0", "1"]


def test_a_place_is_told_by_the_environment() -> None:
    outside = {"OPENBLAS_NUM_THREADS": "7", "OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "0,1", "HOME": "/x"}
    assert Place(None).environment(outside) == outside
    assert Place(3, gpu="1").environment(outside) == {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "CUDA_VISIBLE_DEVICES": "1",
        "HOME": "/x",
    }


@pytest.mark.parametrize(
    ("of_launcher", "cores"),
    [
        (settings("BasicLauncher"), None),
        (settings("JoblibLauncher", n_jobs=1), CORES),
        (settings("JoblibLauncher", n_jobs=CORES), 1),
        (settings("RayLauncher", ray={"remote": {}}), 1),
        (settings("RayLauncher", ray={"remote": {"num_cpus": 4}}), 4),
        (settings("LocalLauncher", cpus_per_task=5), 5),
        (settings("LocalLauncher", max_batch_size=1, cpus_per_task=None), CORES),
        (settings("LocalLauncher", cpus_per_task=None), max(CORES // 6, 1)),
    ],
)
def test_every_launcher_shares_the_cores(tmp_path: Path, of_launcher: Any, cores: int | None) -> None:
    with taking_place(of_launcher, tmp_path, 6) as place:
        assert place.cores == cores
        assert place.in_launcher == (cores is None)


def test_slurm_gives_what_it_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    with taking_place(settings("SlurmLauncher"), tmp_path, None) as place:
        assert place == Place(12)
