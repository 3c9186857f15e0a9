"""One member of a sweep: its process, its lock, its report."""

import dataclasses
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mtrl.run.files import write_json
from mtrl.run.member_report import VARIABLE, read_report
from mtrl.run.signals import on_stop_request

STOP = "stop"
"""The file in a sweep's folder that asks all members to stop."""
_POLL = 0.3  # seconds


@dataclass(frozen=True)
class Member:
    """What is known of a member.

    Attributes:
        number: its position in the sweep, from 0.
        label: what sets it apart from the others.
        status: ``running``, ``finished``, ``skipped`` (it was finished before), ``stopped`` or ``failed``.
        run_dir: its run directory; None where it did not come so far.
        was_finished: whether the run was finished when it was opened.
        result: what a finished run came to, in words.
        reason: why it stopped or failed, in words.
        error: the class of the error that it failed with; None where it could not tell.
        expected: whether the reason is all that there is to know.
    """

    number: int
    label: str
    status: str = "running"
    run_dir: str | None = None
    was_finished: bool = False
    result: str | None = None
    reason: str | None = None
    error: str | None = None
    expected: bool = False

    def ended(self, code: int, report: Mapping[str, Any]) -> Self:
        """What is known of it after its end.

        Args:
            code: its process's exit code; a signal that killed it is negative.
            report: what it told itself.
        """
        told = dataclasses.replace(self, **report)
        if code == 0:
            return dataclasses.replace(told, status="skipped" if told.was_finished else "finished")
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM):
            return dataclasses.replace(told, status="stopped")
        reason = told.reason or f"exit code {code}"
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}{' (out of memory?)' if code == -signal.SIGKILL else ''}"
        return dataclasses.replace(told, status="failed", reason=reason)

    @property
    def completed(self) -> bool:
        """Whether its run is finished."""
        return self.status in ("finished", "skipped")

    @property
    def outcome(self) -> str:
        """What became of it, in a few words."""
        outcomes = {
            "finished": self.result,
            "skipped": "is finished already",
            "stopped": self.reason or "stopped",
            "failed": f"failed: {self.reason}",
            "running": "lost: its process ended without a report",
        }
        return outcomes[self.status] or ""

    def __str__(self) -> str:
        """One line about it."""
        return ": ".join(filter(None, [self.run_dir, self.label, self.outcome]))


def run_member(
    member: Member, command: Sequence[str], folder: Path, environment: Mapping[str, str], cwd: str, *, log: bool
) -> int | None:
    """Runs a member's process to its end, and writes into the sweep's folder what becomes of it.

    The process gets SIGTERM where the sweep is to stop, or this process, or where this one's parent has died.

    Args:
        member: which one.
        command: of the process.
        folder: of the sweep: gets ``<number>.json``, `Member` as far as it is known, beside ``.lock``, which is held
            while the member runs, ``.report``, what it tells itself, and ``.log``.
        environment: of the process.
        cwd: its working directory.
        log: whether its output goes to the log, and not where that of this process goes.

    Returns:
        The signal that asked this process to stop, if any.
    """
    path, parent = folder / f"{member.number}.json", os.getppid()
    report = path.with_suffix(".report")
    with (
        path.with_suffix(".lock").open("w") as lock,
        path.with_suffix(".log").open("ab") if log else nullcontext() as output,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_json(path, dataclasses.asdict(member))
        report.unlink(missing_ok=True)  # of a part of this run before Slurm queued it again
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, VARIABLE: str(report)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[lock.fileno()],  # held on where this process is killed
            start_new_session=True,  # the terminal's Ctrl-C and Slurm's warning signals are for the sweep
        )
        signals: list[int] = []
        try:
            with on_stop_request(signals.append):
                _wait(process, lambda: bool(signals) or (folder / STOP).exists() or os.getppid() != parent)
        finally:
            if process.poll() is None:  # the launcher takes this process away: at Slurm's time limit, say
                process.terminate()
            write_json(path, dataclasses.asdict(member.ended(process.wait(), read_report(report))))
    return signals[0] if signals else None


def _wait(process: subprocess.Popen[bytes], stop: Callable[[], bool]) -> None:
    asked = False
    while process.poll() is None:
        if stop() and not asked:
            process.terminate()
            asked = True
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)
