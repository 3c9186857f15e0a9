"""What a member of a sweep gets of a machine."""

import threading
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mtrl.sweep import place
from mtrl.sweep.place import Place, taking_place


def settings(name: str, max_batch_size: int | None = None, **options: Any) -> Any:
    launcher = {"_target_": f"hydra_plugins.some.{name}"} | options
    return OmegaConf.create({"launcher": launcher, "sweeper": {"max_batch_size": max_batch_size}, "job": {"num": 0}})


def taking(
    folder: Path, of_launcher: Any, size: int | None = None, threads: str | None = None
) -> AbstractContextManager[Place]:
    """A place of a sweep."""
    return taking_place(of_launcher, folder, size, threads)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 8 cores and no GPU."""
    monkeypatch.setattr(place, "cores", lambda: 8)
    monkeypatch.setattr(place, "gpus", list)


@pytest.mark.parametrize(
    ("n_jobs", "size", "cores"),
    [(-1, None, 1), (-5, None, 2), (-20, None, 8), (3, None, 2), (3, 2, 4), (-1, 1, 8), (16, 40, 1), (16, None, 1)],
)
def test_members_side_by_side_share_the_cores(tmp_path: Path, n_jobs: int, size: int | None, cores: int) -> None:
    with taking(tmp_path, settings("JoblibLauncher", n_jobs=n_jobs), size) as taken:
        assert taken == Place(cores)


def test_slots_get_gpus_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "gpus", lambda: ["4", "GPU-5"])
    joblib = settings("JoblibLauncher", n_jobs=4)
    with ExitStack() as members:
        places = [members.enter_context(taking(tmp_path, joblib, 9)) for _ in range(4)]
    assert places == [Place(2, gpu=gpu) for gpu in ("4", "GPU-5", "4", "GPU-5")]


def test_a_member_waits_for_a_slot(tmp_path: Path) -> None:
    alone, taken, release = settings("JoblibLauncher", n_jobs=1), threading.Event(), threading.Event()

    def hold() -> None:
        with taking(tmp_path, alone):
            taken.set()
            release.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    threading.Timer(0.5, release.set).start()
    with taking(tmp_path, alone):
        assert release.is_set()
    holder.join()


def test_threads_asked_for_are_what_joblib_gives(tmp_path: Path) -> None:
    with taking(tmp_path, settings("JoblibLauncher", n_jobs=2), threads="1") as taken:
        assert taken == Place(4, threads="1")
    assert taken.environment({})["OMP_NUM_THREADS"] == taken.environment({})["MKL_NUM_THREADS"] == "1"
    with taking(tmp_path, settings("RayLauncher", ray={"remote": {"num_cpus": 4}}), threads="1") as taken:
        assert taken.environment({})["OMP_NUM_THREADS"] == "4"


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
    ("of_launcher", "expected"),
    [
        (settings("BasicLauncher"), Place(None)),
        (settings("RayLauncher", ray={"remote": {}}), Place(1)),
        (settings("RayLauncher", ray={"remote": {"num_cpus": 4}}), Place(4)),
        (settings("LocalLauncher", cpus_per_task=5), Place(5)),
        (settings("LocalLauncher", cpus_per_task=None), Place(2)),
        (settings("LocalLauncher", max_batch_size=1, cpus_per_task=None), Place(8)),
        (settings("SlurmLauncher"), Place(12)),
    ],
)
def test_every_launcher_says_what_a_member_gets(
    tmp_path: Path, of_launcher: Any, expected: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    with taking(tmp_path, of_launcher, 4) as taken:
        assert taken == expected
