"""One member of a sweep: its process, its lock, its report."""

import dataclasses
import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mtrl.run.files import write_json
from mtrl.run.machine import lock
from mtrl.run.member_report import VARIABLE
from mtrl.run.signals import on_stop_request

STOP = "stop"
"""The file in a sweep's folder that asks all members to stop."""
SUPERVISOR = "supervisor"
"""The file there that the process above a sweep holds a lock of while it lives; it says on which machine."""
_CLOCK = "clock"
_SILENCE = 180.0
"""Seconds after which the process above a sweep is taken for dead: more than network file systems keep old times."""
PARENT = "MTRL_SWEEP_PARENT"
"""The environment variable that tells a process of a sweep which process it is not to outlive."""
POLL = 0.3
"""Seconds between two looks at what others do."""


@dataclass(frozen=True)
class Member:
    """What is known of a member.

    Attributes:
        number: its position in the sweep, from 0.
        label: what sets it apart from the others.
        status: ``running``, ``finished``, ``stopped`` or ``failed``.
        run_dir: its run directory; None where it did not come so far.
        result: what a finished run came to, in words.
        reason: why it stopped or failed, in words.
        error: the class of the error that it failed with, where that is one that a user is to expect.
    """

    number: int
    label: str
    status: str = "running"
    run_dir: str | None = None
    result: str | None = None
    reason: str | None = None
    error: str | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads its file in the sweep's folder."""
        return cls(**json.loads(path.read_text()))

    def ended(self, code: int) -> Self:
        """What is known of it after its end with an exit code; a signal that killed its process is negative."""
        if code == 0:
            return dataclasses.replace(self, status="finished")
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM):
            return dataclasses.replace(self, status="stopped", reason=self.reason or "stopped")
        reason = self.reason or f"exit code {code}"
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}{' (out of memory?)' if code == -signal.SIGKILL else ''}"
        return dataclasses.replace(self, status="failed", reason=reason)

    @property
    def outcome(self) -> str | None:
        """What became of it, in a few words."""
        outcomes = {"finished": self.result, "stopped": self.reason, "failed": f"failed: {self.reason}"}
        return outcomes.get(self.status, "lost: its process ended without a report")

    def __str__(self) -> str:
        """One line about it."""
        return ": ".join(filter(None, [self.run_dir, self.label, self.outcome]))


def stopping(folder: Path) -> bool:
    """Whether the members of a sweep are to stop: they were asked to, or the process above them has died."""
    if not (folder / STOP).exists() and abandoned(folder):
        (folder / STOP).touch()
    return (folder / STOP).exists()


def abandoned(folder: Path) -> bool:
    """Whether the process above a sweep has died; False where there was none.

    On its own machine that is told by its lock, which other machines may not see. They go by the time of its file, to
    which it gives a new one again and again, on the clock of the file system.
    """
    try:
        with (folder / SUPERVISOR).open("r+") as file:
            locked = lock(file) if file.read() == platform.node() else None
            if locked is not None:
                return locked
            (folder / _CLOCK).touch()
            return (folder / _CLOCK).stat().st_mtime - os.fstat(file.fileno()).st_mtime > _SILENCE
    except FileNotFoundError:
        return False


def run_member(
    member: Member, command: Sequence[str], folder: Path, environment: Mapping[str, str], cwd: str, *, log: bool
) -> int | None:
    """Runs a member's process to its end, and gives the signal that asked this process to stop, if any.

    The sweep's folder gets ``<number>.json``, the `Member`, to which its process adds what it tells, ``.lock``, which
    is held while the member runs, and ``.log``, the output, where that is not to go where this process's goes. The
    process gets SIGTERM where the sweep is to stop, or this process, or where this one's parent has died; it is not to
    outlive this one (`mtrl.sweep.supervision.follow_parent`).
    """
    path, parent = folder / f"{member.number}.json", os.getppid()
    with (
        path.with_suffix(".lock").open("w") as running,
        path.with_suffix(".log").open("ab") if log else nullcontext() as output,
    ):
        while lock(running) is False:
            time.sleep(POLL)
        write_json(path, dataclasses.asdict(member))
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, VARIABLE: str(path), PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[running.fileno()],  # held on where this process is killed
            start_new_session=True,  # the terminal's Ctrl-C and Slurm's warning signals are for the sweep
        )
        signals: list[int] = []
        with on_stop_request(signals.append):
            try:
                while process.poll() is None and not (signals or stopping(folder) or os.getppid() != parent):
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(POLL)
            finally:  # also where the launcher takes this process away: at Slurm's time limit, say
                process.terminate()
                code = process.wait()
                write_json(path, dataclasses.asdict(Member.read(path).ended(code)))
    return signals[0] if signals else None
