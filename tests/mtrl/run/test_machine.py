"""Systems and file systems that lack something: made here by having the function fail as it does there."""

import errno
import fcntl
import json
import os
import platform
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from mtrl.errors import RunError
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.directory import RunDirectory
from mtrl.run.files import write_json
from mtrl.run.machine import cores, device_of, keep_freed_memory, machine, peak_memory
from mtrl.run.metrics import MetricsWriter, read_metrics

MISSING = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL]


def failing(number: int) -> Callable[..., NoReturn]:
    def fail(*_: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_system_that_does_not_tell_which_cores_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(os, "sched_getaffinity", failing(errno.ENOSYS), raising=False)
    assert cores() == 6
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == machine()["cores"] == 6


@pytest.mark.parametrize(("system", "peak"), [("darwin", 3 * 2**30), ("linux", 3 * 2**20)])
def test_peak_memory_is_in_gib_whatever_the_system_counts_in(
    monkeypatch: pytest.MonkeyPatch, system: str, peak: int
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=peak))
    assert peak_memory()["process_gib"] == 3


def test_activations_take_the_memory_of_the_last_update() -> None:
    update = (
        "import resource, torch; from mtrl.run.machine import keep_freed_memory; keep_freed_memory()\n"
        "for _ in range(10):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    tensors = [torch.zeros(2**20) for _ in range(20)]\n"
        "    del tensors\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    # A process of its own, since the heap that other tests leave is any; its pieces fit after some updates.
    found = subprocess.run([sys.executable, "-c", update], check=True, capture_output=True, text=True).stdout
    # A page of each 1024 numbers: 20,480 where they are given back. Other C libraries are left as they are.
    assert int(found) < 2**12 or platform.libc_ver()[0] != "glibc"


def test_a_c_library_without_the_switch_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtrl.run.machine.ctypes.CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()


def test_a_system_that_does_not_tell_the_memory_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrusage", failing(errno.EINVAL))
    assert "process_gib" not in peak_memory()


@pytest.mark.parametrize("number", MISSING)
def test_without_locks_a_run_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with pytest.warns(UserWarning, match=f"'{tmp_path}' is not protected.* no locks") as said:
        directory = RunDirectory(tmp_path, {"seed": 1})
    assert len(said) == 1
    directory.finish({"seconds": 1.0})
    directory.close()
    assert directory.finished


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EWOULDBLOCK, "is in use by another process"),
        (errno.EACCES, "is in use by another process"),
        (errno.EIO, "cannot be locked: Input/output error"),
        (errno.ESTALE, "cannot be locked: Stale file handle"),
    ],
)
def test_only_a_lock_that_is_held_means_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with pytest.raises(RunError, match=message):
        RunDirectory(tmp_path, {"seed": 1})


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_mount_that_cannot_sync_holds_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    write_json(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    store = Checkpoints(tmp_path / "checkpoints")
    store.save(1, {"x": 1})
    assert store.load() == (1, {"x": 1})
    (tmp_path / "run").mkdir()
    writer = MetricsWriter(tmp_path / "run")
    writer.write(1, 0.0, {"loss": 2.0})
    writer.flush()
    writer.close()
    assert [entry["loss"] for entry in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [2.0]


def test_a_disk_that_fails_is_still_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_json(tmp_path / "x.json", {"a": 1})


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EISDIR, errno.EINVAL])
def test_a_directory_that_cannot_be_opened_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "open", failing(number))
    write_json(tmp_path / "x.json", {"a": 1})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [tmp_path / "x.json"]


def test_nothing_is_said_where_nothing_is_missing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RunDirectory(tmp_path, {"seed": 1}).close()


def build_without_cuda(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.version, "cuda", None)


def old_driver(patch: pytest.MonkeyPatch) -> None:
    def unavailable() -> bool:
        warnings.warn("The NVIDIA driver on your system\nis too old (found version 11040).", stacklevel=2)
        return False

    patch.setattr(torch.version, "cuda", "13.0")
    patch.setattr(torch.cuda, "is_available", unavailable)


def another_architecture(patch: pytest.MonkeyPatch) -> None:
    def zeros(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nand more")

    patch.setattr(torch.version, "cuda", "13.0")
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch, "zeros", zeros)


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        (build_without_cuda, r"torch [\w.+]+ was built without CUDA"),
        (old_driver, r"The NVIDIA driver on your system is too old \(found version 11040\)."),
        (another_architecture, "CUDA error: no kernel image is available for execution on the device"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_said_with_the_reason(
    obstacle: Callable[[pytest.MonkeyPatch], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    obstacle(monkeypatch)
    with pytest.warns(UserWarning, match=f"^device=auto: there is a GPU, but PyTorch cannot use it: {reason}$") as said:
        assert device_of("auto") == torch.device("cpu")
    assert len(said) == 1


def test_a_machine_without_a_gpu_is_not_asked_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")


def test_memory_and_name_are_those_of_the_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    second = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: {second: 3 * 2**30}[device])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: {second: "the second"}[device])
    assert peak_memory(second)["gpu_gib"] == 3
    assert machine(second)["gpu"] == "the second"
    assert "gpu_gib" not in peak_memory(torch.device("cpu"))
    assert machine(torch.device("cpu"))["gpu"] is None
