"""What becomes of a member of a sweep."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from mtrl.run.member_report import VARIABLE, read_report, report
from mtrl.sweep.member import STOP, Member, run_member

MEMBER = Member(3, "seed=1")


def test_a_report_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report(run_dir="nowhere")  # outside of a sweep
    monkeypatch.setenv(VARIABLE, str(tmp_path / "3.report"))
    assert read_report(tmp_path / "3.report") == {}
    report(run_dir="x")
    report(was_finished=False)
    assert read_report(tmp_path / "3.report") == {"run_dir": "x", "was_finished": False}


@pytest.mark.parametrize(
    ("code", "told", "status", "line"),
    [
        (0, {"run_dir": "x", "result": "success 1 in 2 min"}, "finished", "x: seed=1: success 1 in 2 min"),
        (0, {"run_dir": "x", "was_finished": True}, "skipped", "x: seed=1: is finished already"),
        (130, {"reason": "stopped by SIGINT at step 3"}, "stopped", "seed=1: stopped by SIGINT at step 3"),
        (-signal.SIGTERM, {}, "stopped", "seed=1: stopped"),
        (143, {}, "stopped", "seed=1: stopped"),
        (2, {"reason": "seed: no", "expected": True}, "failed", "seed=1: failed: seed: no"),
        (1, {}, "failed", "seed=1: failed: exit code 1"),
        (-signal.SIGKILL, {"reason": "?"}, "failed", "seed=1: failed: killed by SIGKILL (out of memory?)"),
        (-signal.SIGSEGV, {}, "failed", "seed=1: failed: killed by SIGSEGV"),
    ],
)
def test_exit_code_and_report_say_what_became_of_a_member(
    code: int, told: dict[str, Any], status: str, line: str
) -> None:
    ended = MEMBER.ended(code, told)
    assert (ended.status, str(ended)) == (status, line)
    assert ended.completed == (status in ("finished", "skipped"))


def test_a_member_without_an_end_is_lost() -> None:
    assert str(MEMBER) == "seed=1: lost: its process ended without a report"
    assert not MEMBER.completed


def run_code(folder: Path, code: str) -> Member:
    command = [sys.executable, "-c", code]
    assert run_member(MEMBER, command, folder, {"GREETING": "hello"}, str(folder), log=True) is None
    return Member(**json.loads((folder / "3.json").read_text()))


def test_a_process_reports_and_is_logged(tmp_path: Path) -> None:
    (tmp_path / "3.report").write_text('{"reason": "of an earlier part"}')
    tell = f"""import os; print(os.environ["GREETING"], flush=True)
open(os.environ["{VARIABLE}"], "w").write('{{"result": "fine"}}')"""
    assert run_code(tmp_path, tell) == Member(3, "seed=1", "finished", result="fine")
    assert (tmp_path / "3.log").read_text() == "hello\n"


def test_a_process_ends_where_the_sweep_stops(tmp_path: Path) -> None:
    (tmp_path / STOP).touch()
    assert run_code(tmp_path, "import time; time.sleep(100)").status == "stopped"
