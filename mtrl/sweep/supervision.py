"""The process above a sweep: starts the launcher, tells what becomes of the members, and asks them to stop.

Nothing large is imported here, nor Hydra: a sweep is to begin, and to obey signals, at once.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Self

from mtrl.errors import InputError, RunError
from mtrl.run.member_report import VARIABLE
from mtrl.sweep.member import POLL, STOP, Member, try_lock

FOLDER = "MTRL_SWEEP"
"""The environment variable that tells the launcher the folder of its sweep's reports and logs."""
SIZE = "size"
"""The file there that says how many members there are, where that is known."""
QUIET = "quiet"
"""The file there that keeps members' output out of the terminal."""
_LOCK = "supervisor"
_PR_SET_PDEATHSIG = 1


def requested(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for a multirun."""
    return any(argument in ("-m", "--multirun", "hydra.mode=MULTIRUN") for argument in arguments)


def sweep_directory(arguments: Sequence[str]) -> Path:
    """Where run directories with default names go, by a command line."""
    given = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("hydra.sweep.dir=")]
    return Path(given[-1] if given else "runs")


def follow_parent() -> None:
    """Asks for SIGTERM when the process dies that started this one for a sweep (Linux): none is left behind."""
    if sys.platform == "linux" and (FOLDER in os.environ or VARIABLE in os.environ):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def supervise() -> None:
    """Where the command line asks for a multirun, runs it in a process of its own, and ends with its exit code.

    To be called before anything large is loaded.

    Exit codes: 1 where a run failed, 128 + signal where the sweep was stopped, else the launcher's.
    """
    if not requested(sys.argv) or FOLDER in os.environ:
        return
    folder = sweep_directory(sys.argv) / f".sweep-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        with Supervision([sys.executable, *sys.argv], folder) as sweep:
            for member in sweep:
                _say(f"{sweep.count} {member}")
    except InputError as error:
        _say(f"error: {error}")
        sys.exit(2)
    if sweep.signal is not None:
        _say(f"stopped by {signal.Signals(sweep.signal).name}: the same command goes on from here")
        sys.exit(128 + sweep.signal)
    failures = [member for member in sweep.members.values() if member.status != "finished"]
    if failures:
        _say(f"{len(failures)} of {sweep.size or len(sweep.members)} runs did not finish:")
    for member in failures:
        _say(f"  {sweep.told(member)}")
    sys.exit(sweep.code or int(bool(failures)))


class Supervision:
    """A sweep under way: a context, and an iterable of the members as they end.

    The first SIGINT or SIGTERM lets all members write checkpoints and stop, as does leaving the context early; the
    second one ends this process. Launchers, which would kill their members, do not get to see them.

    Args:
        command: of the launcher, in which `mtrl.sweep.launch.launch` is called.
        folder: where the sweep and its members talk, below the directory of their runs. It is made, and removed but
            for the logs of members that failed for no known reason. A sweep that was killed there is ended first.
        quiet: keep members' output out of the terminal.

    Raises:
        InputError: on entry, if the folder cannot be written.
        RunError: on entry, if another sweep is under way there.
    """

    def __init__(self, command: Sequence[str], folder: Path, *, quiet: bool = False) -> None:
        self.command = command
        self.folder = folder.absolute()
        self.quiet = quiet
        self.signal: int | None = None  # which asked the sweep to stop
        self.members: dict[int, Member] = {}  # those that have ended, by number
        self.size = ""  # how many there will be, where that is known
        self.code = 0  # the launcher's exit code, in the end

    @property
    def count(self) -> str:
        """How many members have ended, of how many."""
        return f"[{len(self.members)}{'/' + self.size if self.size else ''}]"

    def told(self, member: Member) -> str:
        """One line about a member, with the log that was kept of it."""
        log = self.folder / f"{member.number}.log"
        return f"{member} (log: {os.path.relpath(log)})" if log.exists() else str(member)

    def __enter__(self) -> Self:
        """Starts the launcher."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / _LOCK).open("w")
        except OSError as error:
            raise InputError(f"sweep directory '{self.folder.parent}' cannot be written: {error.strerror}") from error
        if not try_lock(self._lock):
            self._lock.close()
            raise RunError(f"another process sweeps into '{self.folder.parent}'")
        (self.folder / STOP).touch()
        while self._running():
            time.sleep(POLL)
        self._clear(but=[_LOCK])
        self._handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        if self.quiet:
            (self.folder / QUIET).touch()
        self._launcher = subprocess.Popen(
            self.command,
            env=os.environ | {FOLDER: str(self.folder)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process
        )
        return self

    def __iter__(self) -> Iterator[Member]:
        """Gives members as they end, and in the end those that were lost."""
        ended = False
        while not ended:
            ended = self._launcher.poll() is not None and not self._running()
            time.sleep(0 if ended else POLL)
            if (self.folder / SIZE).exists():
                self.size = (self.folder / SIZE).read_text()
            for path in sorted(self.folder.glob("*.json"), key=lambda path: int(path.stem)):
                member = Member.read(path)
                if member != self.members.get(member.number) and (ended or member.status != "running"):
                    self.members[member.number] = member
                    yield member

    def __exit__(self, *error: object) -> None:
        """Has those stop that have not ended, waits for them, and cleans up."""
        if self._launcher.poll() is None:
            (self.folder / STOP).touch()
        for _ in self:
            pass
        self.code = self._launcher.returncode
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        unforeseen = [m for m in self.members.values() if m.status in ("failed", "running") and m.error is None]
        self._clear(but=[f"{member.number}.log" for member in unforeseen])
        (self.folder.parent / "multirun.yaml").unlink(missing_ok=True)
        for empty in (self.folder, self.folder.parent):
            with suppress(OSError):
                empty.rmdir()
        self._lock.close()

    def _clear(self, but: Collection[str]) -> None:
        for path in self.folder.iterdir():
            if path.name not in but:
                path.unlink()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        (self.folder / STOP).touch()
        if self.signal is not None:
            _say("not waiting: runs are still writing checkpoints")
            os._exit(128 + number)
        self.signal = number
        _say("stopping: running members write a checkpoint (once more to not wait for that)")

    def _running(self) -> bool:
        """Whether a member runs, also one whose launcher gave up."""
        for path in self.folder.glob("*.lock"):
            with path.open("a") as lock:
                if not try_lock(lock):
                    return True
        return False


def _say(line: str) -> None:
    os.write(sys.stderr.fileno(), f"{line}\n".encode())  # a signal may come while the stream is written to
