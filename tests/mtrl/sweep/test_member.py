"""What becomes of a member of a sweep."""

import dataclasses
import errno
import fcntl
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mtrl.run.machine import lock
from mtrl.run.member_report import VARIABLE, report
from mtrl.sweep.member import STOP, SUPERVISOR, Member, run_member, stopping

MEMBER = Member(3, "seed=1")


def test_a_report_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report(run_dir="nowhere")  # outside of a sweep
    path = tmp_path / "3.json"
    path.write_text(json.dumps({"number": 3, "label": "seed=1"}))
    monkeypatch.setenv(VARIABLE, str(path))
    report(run_dir="x")
    report(result="fine")
    assert Member.read(path) == Member(3, "seed=1", run_dir="x", result="fine")


@pytest.mark.parametrize(
    ("code", "told", "status", "line"),
    [
        (0, {"run_dir": "x", "result": "success 1 in 2 min"}, "finished", "x: seed=1: success 1 in 2 min"),
        (0, {"run_dir": "x", "result": "is finished already"}, "finished", "x: seed=1: is finished already"),
        (130, {"reason": "stopped by SIGINT at step 3"}, "stopped", "seed=1: stopped by SIGINT at step 3"),
        (-signal.SIGTERM, {}, "stopped", "seed=1: stopped"),
        (143, {}, "stopped", "seed=1: stopped"),
        (2, {"reason": "seed: no", "error": "InputError"}, "failed", "seed=1: failed: seed: no"),
        (1, {}, "failed", "seed=1: failed: exit code 1"),
        (-signal.SIGKILL, {"reason": "?"}, "failed", "seed=1: failed: killed by SIGKILL (out of memory?)"),
        (-signal.SIGSEGV, {}, "failed", "seed=1: failed: killed by SIGSEGV"),
    ],
)
def test_exit_code_and_report_say_what_became_of_a_member(
    code: int, told: dict[str, Any], status: str, line: str
) -> None:
    ended = dataclasses.replace(MEMBER, **told).ended(code)
    assert (ended.status, str(ended)) == (status, line)


def test_a_member_without_an_end_is_lost() -> None:
    assert str(MEMBER) == "seed=1: lost: its process ended without a report"


def run_code(folder: Path, code: str) -> Member:
    command = [sys.executable, "-c", code]
    assert run_member(MEMBER, command, folder, {"GREETING": "hello"}, str(folder), log=True) is None
    return Member.read(folder / "3.json")


def test_a_process_reports_and_is_logged(tmp_path: Path) -> None:
    (tmp_path / "3.json").write_text('{"reason": "of an earlier part"}')
    tell = f"""import json, os, pathlib; print(os.environ["GREETING"], flush=True)
path = pathlib.Path(os.environ["{VARIABLE}"])
path.write_text(json.dumps(json.loads(path.read_text()) | {{"result": "fine"}}))"""
    assert run_code(tmp_path, tell) == Member(3, "seed=1", "finished", result="fine")
    assert (tmp_path / "3.log").read_text() == "hello\n"


def test_a_process_ends_where_the_sweep_stops(tmp_path: Path) -> None:
    (tmp_path / STOP).touch()
    assert run_code(tmp_path, "import time; time.sleep(100)").status == "stopped"


@pytest.mark.parametrize("cannot_lock", [False, True])
def test_the_death_of_the_process_above_is_told_by_its_lock_or_its_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cannot_lock: bool
) -> None:
    """Where there are no locks, and for members on other machines, on which a lock may not be seen."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    assert not stopping(tmp_path)
    with (tmp_path / SUPERVISOR).open("w") as held:
        assert lock(held)
        held.write(platform.node())
        held.flush()
        assert not stopping(tmp_path)
        if cannot_lock:
            monkeypatch.setattr(fcntl, "flock", fail)
        else:
            monkeypatch.setattr(platform, "node", lambda: "another")
        assert not stopping(tmp_path)
        for silence, dead in ((100, False), (1000, True)):
            before = time.time() - silence
            os.utime(held.fileno(), (before, before))
            assert stopping(tmp_path) is dead
    (tmp_path / STOP).unlink()
    monkeypatch.undo()
    assert stopping(tmp_path)
    assert (tmp_path / STOP).exists()  # for the others
