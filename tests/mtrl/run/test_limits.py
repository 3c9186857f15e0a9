"""Control groups as containers, services and schedulers lay them out, and one that the system made."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from mtrl.errors import InputError
from mtrl.run import limits
from mtrl.run.machine import cores, free_memory, keep_to_cores
from scripts.train import train
from tests.configured import configured

GIB = 2**30
UNLIMITED = 9223372036854771712  # what version 1 says


class Groups:
    """A tree of control groups in a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.own = folder / "cgroup", folder / "own"
        monkeypatch.setattr(limits, "_ROOT", self.root)
        monkeypatch.setattr(limits, "_OWN", self.own)

    def make(self, own: str, files: dict[str, str]) -> None:
        self.own.write_text(own)
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    return Groups(tmp_path, monkeypatch)


def memory(limit: object, used: int, cache: int, at: str = "") -> dict[str, str]:
    """The files of a group of version 2 about memory."""
    numbers = {"max": limit, "current": used, "stat": f"anon 5\ninactive_file {cache}"}
    return {f"{at}memory.{name}": f"{number}\n" for name, number in numbers.items()}


def memory_in_bytes(limit: int, used: int, cache: int) -> dict[str, str]:
    """Those of version 1."""
    stat = f"cache 7\ninactive_file 1\ntotal_inactive_file {cache}"
    numbers = {"limit_in_bytes": limit, "usage_in_bytes": used, "stat": stat}
    return {f"memory/memory.{name}": f"{number}\n" for name, number in numbers.items()}


def test_a_container_of_version_2(groups: Groups) -> None:
    groups.make("0::/\n", {"cpu.max": "150000 100000\n"} | memory(8 * GIB, 3 * GIB, GIB))
    assert limits.processor_time() == 1.5
    assert limits.free_memory() == 6 * GIB


def test_a_service_has_the_least_of_all_that_it_is_in(groups: Groups) -> None:
    files = {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n", "a/b/c/cpu.max": "500000 100000\n"}
    files |= memory("max", 5, 0, at="a/") | memory(GIB, 2 * GIB, 0, at="a/b/")
    groups.make("0::/a/b/c\n", files)
    assert limits.processor_time() == 3
    assert limits.free_memory() == 0  # more was taken before the limit came


def test_a_container_of_version_1_does_not_see_the_groups_of_its_host(groups: Groups) -> None:
    files = {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}
    own = "4:memory:/docker/12\n3:cpu,cpuacct:/docker/12\n2:pids:/docker/12\n1:name=systemd:/docker/12\n0::/\n"
    groups.make(own, files | memory_in_bytes(4 * GIB, GIB, GIB // 2))
    assert limits.processor_time() == 4
    assert limits.free_memory() == 3.5 * GIB


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"} | memory("max", 5, 0)),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}),
        ("0::/gone\n", {}),
        ("", {}),
    ],
)
def test_no_limit(groups: Groups, own: str, files: dict[str, str]) -> None:
    groups.make(own, files)
    assert limits.processor_time() == limits.free_memory() == math.inf


def test_version_1_has_a_number_for_no_limit(groups: Groups) -> None:
    groups.make("1:memory:/\n", memory_in_bytes(UNLIMITED, GIB, 0))
    assert limits.free_memory() > 2**60


def test_other_systems_have_no_groups(groups: Groups) -> None:
    assert limits.processor_time() == limits.free_memory() == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(50_000, 1), (300_000, 3), (350_000, 4), (900_000, 6)])
def test_cores_and_threads_are_no_more_than_the_limit(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, quota: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    groups.make("0::/\n", {"cpu.max": f"{quota} 100000\n"})
    assert cores() == expected
    set_to: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    keep_to_cores()
    assert set_to == ([expected] if expected < 4 else [])


def test_memory_is_no_more_than_the_limit(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5 * GIB))
    groups.make("0::/\n", memory(4 * GIB, GIB, 0))
    assert free_memory() == 3 * GIB
    groups.make("0::/\n", memory(40 * GIB, GIB, 0))
    assert free_memory() == 5 * GIB


@pytest.mark.parametrize(("own", "expected"), [((), 1), (("threads=3",), 3)])
def test_training_keeps_to_the_limit_unless_it_is_told_otherwise(
    groups: Groups, monkeypatch: pytest.MonkeyPatch, own: tuple[str, ...], expected: int
) -> None:
    groups.make("0::/\n", {"cpu.max": "100000 100000\n"})
    set_to: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    with pytest.raises(InputError, match="precision=tf32"):  # which ends it before there is a run
        train(configured("precision=tf32", "device=cpu", *own))
    assert set_to == [expected]
