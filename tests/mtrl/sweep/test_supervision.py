"""The process above a sweep, over a launcher that is a few lines long."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtrl.errors import InputError, RunError
from mtrl.sweep.supervision import Supervision

LAUNCHER = """
import json, os, sys
from pathlib import Path
from mtrl.sweep.member import STOP, Member, run_member
from mtrl.sweep.supervision import FOLDER, SIZE

folder, codes = Path(os.environ[FOLDER]), sys.argv[1:]
(folder / SIZE).write_text(str(len(codes)))
for number, code in enumerate(codes):
    if not (folder / STOP).exists():
        command = [sys.executable, "-c", code]
        run_member(Member(number, f"member={number}"), command, folder, os.environ, os.getcwd(), log=True)
"""
SLEEP = "import time; time.sleep(100)"


def command(*codes: str) -> list[str]:
    return [sys.executable, "-c", LAUNCHER, *codes]


def test_members_are_given_as_they_end_and_logs_of_surprises_stay(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / ".sweep"
    with Supervision(command("pass", "1 / 0", "print(1)"), folder) as sweep:
        told = [f"{sweep.count} {member.label} {member.status}" for member in sweep]
    assert told == ["[1/3] member=0 finished", "[2/3] member=1 failed", "[3/3] member=2 finished"]
    assert (sweep.code, sweep.signal, sweep.size) == (0, None, "3")
    assert [path.name for path in folder.iterdir()] == ["1.log"]
    assert "ZeroDivisionError" in (folder / "1.log").read_text()
    assert sweep.told(sweep.members[1]) == f"member=1: failed: exit code 1 (log: {os.path.relpath(folder / '1.log')})"
    with Supervision(command("pass"), folder) as sweep:
        assert [member.status for member in sweep] == ["finished"]
    assert list(tmp_path.iterdir()) == []


def test_leaving_early_stops_the_rest(tmp_path: Path) -> None:
    with Supervision(command("pass", SLEEP, "pass"), tmp_path / ".sweep") as sweep:
        assert next(iter(sweep)).status == "finished"
    assert [member.status for member in sweep.members.values()] == ["finished", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_members_and_handlers_are_restored(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Supervision(command("pass", SLEEP, "pass"), tmp_path / ".sweep") as sweep:
        for member in sweep:
            if member.number == 0:
                os.kill(os.getpid(), number)
    assert [member.status for member in sweep.members.values()] == ["finished", "stopped"]
    assert sweep.signal == number
    assert signal.getsignal(number) is before


def test_a_lost_member_is_told_in_the_end(tmp_path: Path) -> None:
    lose = "import os; os.kill(os.getppid(), 9)"
    with Supervision(command(lose), tmp_path / ".sweep") as sweep:
        (member,) = list(sweep)
    assert str(member) == "member=0: lost: its process ended without a report"
    assert sweep.code == -signal.SIGKILL


def test_a_sweep_that_was_killed_ends_before_the_next_begins(tmp_path: Path) -> None:
    folder = tmp_path / ".sweep"
    code = f"""
import sys
from pathlib import Path
from mtrl.sweep.supervision import Supervision
with Supervision({command(SLEEP)!r}, Path({str(folder)!r})) as sweep:
    list(sweep)
"""
    killed = subprocess.Popen([sys.executable, "-c", code])
    while not (folder / "0.json").exists():
        time.sleep(0.02)
    with pytest.raises(RunError, match="another process sweeps into"):
        Supervision(command("pass"), folder).__enter__()
    killed.kill()
    killed.wait()
    with Supervision(command("pass"), folder) as sweep:
        assert [member.status for member in sweep] == ["finished"]
    assert list(tmp_path.parent.glob(f"{tmp_path.name}/*")) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        Supervision(command("pass"), tmp_path / "file" / ".sweep").__enter__()
