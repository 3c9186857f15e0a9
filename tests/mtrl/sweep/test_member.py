"""What becomes of a member of a sweep."""

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from mtrl.run.member_report import VARIABLE, report
from mtrl.sweep.member import STOP, Member, run_member

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
