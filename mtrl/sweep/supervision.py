"""The process above a sweep: starts the launcher, tells what becomes of the members, and asks them to stop.

Nothing large is imported here, nor Hydra: a sweep is to begin, and to obey signals, at once.
"""

import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Self

from mtrl.errors import InputError, RunError
from mtrl.run.machine import lock
from mtrl.sweep.member import PARENT, POLL, STOP, SUPERVISOR, Member, abandoned
from mtrl.text import unquoted

FOLDER = "MTRL_SWEEP"
"""The environment variable that tells the launcher the folder of its sweep's reports and logs."""
SIZE = "size"
"""The file there that says how many members there are, where that is known."""
QUIET = "quiet"
"""The file there that keeps members' output out of the terminal."""
_ATTEMPTS = 5
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def requested(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for a multirun."""
    return any(argument in ("-m", "--multirun", "hydra.mode=MULTIRUN") for argument in arguments)


def sweep_directory(arguments: Sequence[str]) -> Path:
    """Where run directories with default names go, by a command line."""
    given = [unquoted(a.partition("=")[2]) for a in arguments if a.startswith("hydra.sweep.dir=")]
    return Path(given[-1] if given else "runs")


def _fixed(directory: Path) -> Path:
    """The part of a sweep's directory that its members have in common, whatever keys of theirs it names."""
    varying = next((place for place, part in enumerate(directory.parts) if "${" in part), None)
    return Path(*directory.parts[:varying])


def at_one_time(arguments: Sequence[str]) -> list[str]:
    """A command line with ``${now:FORMAT}`` filled in: each of a sweep's processes would have a time of its own."""
    now = time.localtime()
    return [re.sub(r"\$\{now:([^}]*)\}", lambda found: time.strftime(found[1], now), a) for a in arguments]


def follow_parent() -> None:
    """Has this process, if a sweep's process started it, get SIGTERM soon after that one's death: none is left behind.

    The leader of a process group takes the group along, such as joblib's workers that wait for work.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is not None and int(parent) != os.getpid():  # joblib computes a sole member in the launcher itself
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def supervise() -> None:
    """Where the command line asks for a multirun, runs it in a process of its own, and ends with its exit code.

    To be called before anything large is loaded.

    Exit codes: 1 where a run failed, 128 + signal where the sweep was stopped, else the launcher's.
    """
    follow_parent()
    if not requested(sys.argv) or FOLDER in os.environ:
        return
    sys.argv = at_one_time(sys.argv)
    folder = _fixed(sweep_directory(sys.argv)) / f".sweep-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
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

    The first SIGINT, SIGTERM or SIGHUP (unless that is ignored) lets all members write checkpoints and stop, as does
    leaving the context early; the second one ends this process. Launchers, which would kill their members, do not get
    to see them. Where this process or the launcher is killed, members do the same on their own.

    Args:
        command: of the launcher, in which `mtrl.sweep.launch.launch` is called.
        folder: where the sweep and its members talk, below the directory of their runs. It is made, and removed but
            for the logs of members that failed for no known reason. A sweep that was killed, there or beside it, is
            ended first.
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
            self._lock = (self.folder / SUPERVISOR).open("w")
        except OSError as error:
            raise InputError(f"sweep directory '{self.folder.parent}' cannot be written: {error.strerror}") from error
        for attempt in range(_ATTEMPTS):  # members of a killed sweep look, for an instant, whether it is held
            if lock(self._lock) is not False:
                break
            if attempt == _ATTEMPTS - 1:
                self._lock.close()
                raise RunError(f"another process sweeps into '{self.folder.parent}'")
            time.sleep(0.1)
        self._lock.write(platform.node())
        self._lock.flush()
        _end(self.folder)
        _clear(self.folder, but=[SUPERVISOR])
        for left in self.folder.parent.glob(f".sweep*/{SUPERVISOR}"):
            if left.parent != self.folder:
                _end_killed(left.parent)
        stops = [number for number in _STOPS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._stop) for number in stops}
        if self.quiet:
            (self.folder / QUIET).touch()
        self._launcher = subprocess.Popen(
            self.command,
            env=os.environ | {FOLDER: str(self.folder), PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process
        )
        return self

    def __iter__(self) -> Iterator[Member]:
        """Gives members as they end, and in the end those that were lost."""
        ended = False
        while not ended:
            ended = self._launcher.poll() is not None and not _running(self.folder)
            self._end_if_killed()
            os.utime(self._lock.fileno())  # for members on other machines
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
        _clear(self.folder, but=[f"{member.number}.log" for member in unforeseen])
        (self.folder.parent / "multirun.yaml").unlink(missing_ok=True)
        for empty in (self.folder, self.folder.parent):
            with suppress(OSError):
                empty.rmdir()
        self._lock.close()

    def _end_if_killed(self) -> None:
        """Has the rest of a launcher that was killed end too."""
        if (self._launcher.returncode or 0) < 0 and not (self.folder / STOP).exists():
            (self.folder / STOP).touch()
            with suppress(ProcessLookupError):
                os.killpg(self._launcher.pid, signal.SIGTERM)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        (self.folder / STOP).touch()
        if self.signal is not None:
            _say("not waiting: runs are still writing checkpoints")
            os._exit(128 + number)
        self.signal = number
        _say("stopping: running members write a checkpoint (once more to not wait for that)")


def _running(folder: Path) -> bool:
    """Whether a member runs, also one whose launcher gave up; without locks, it is not known, and the answer is no."""
    for path in folder.glob("*.lock"):
        with path.open("a") as held:
            if lock(held) is False:
                return True
    return False


def _end(folder: Path) -> None:
    """Has all members stop, and waits for that."""
    (folder / STOP).touch()
    while _running(folder):
        time.sleep(POLL)


def _end_killed(folder: Path) -> None:
    """Ends a sweep and removes its folder, if the process above it was killed."""
    with suppress(OSError):  # somebody else may do the same
        if abandoned(folder):
            _end(folder)
            _clear(folder)
            folder.rmdir()


def _clear(folder: Path, but: Collection[str] = ()) -> None:
    for path in folder.iterdir():
        if path.name not in but:
            path.unlink(missing_ok=True)


def _say(line: str) -> None:
    with suppress(OSError):  # the terminal may be closed
        os.write(sys.stderr.fileno(), f"{line}\n".encode())  # a signal may come while the stream is written to
