"""Sweeps: the runs of a Hydra multirun, each in a process of its own, whichever launcher started it.

A process of its own gives a run its own threads, memory and GPU, and lets it fail alone. The sweep and its members
talk through a folder beside the run directories, so that a laptop, a Slurm queue and a Ray cluster with a shared file
system look the same.
"""

import ctypes
import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig

from mtrl.errors import InputError
from mtrl.run.files import write_json
from mtrl.run.signals import on_stop_request

_STATE = "MTRL_SWEEP"
"""The environment variable that tells the launcher the folder of its sweep's reports and logs."""
_REPORT = "MTRL_SWEEP_REPORT"
"""The one that tells a member where to report."""
_POLL = 0.3  # seconds
_PR_SET_PDEATHSIG = 1


def requested(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for a multirun."""
    return any(argument in ("-m", "--multirun", "hydra.mode=MULTIRUN") for argument in arguments)


def report(**entries: Any) -> None:
    """Tells the sweep that this process is a member of; nothing happens outside of a sweep."""
    if path := os.environ.get(_REPORT):
        write_json(Path(path), _read(Path(path)) | entries)


def follow_parent() -> None:
    """Asks for SIGTERM when the process dies that started this one for a sweep (Linux): none is left behind."""
    if sys.platform == "linux" and (_STATE in os.environ or _REPORT in os.environ):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def supervise() -> None:
    """Where the command line asks for a multirun, runs it in a process of its own, and ends with its exit code.

    The first SIGINT or SIGTERM lets all members write checkpoints and stop; launchers, which would kill them, do not
    get to see it. To be called before anything large is loaded.

    Exit codes: 1 where a run failed, 128 + signal where the sweep was stopped, else the launcher's.
    """
    if not requested(sys.argv) or _STATE in os.environ:
        return
    state = _directory(sys.argv).absolute() / f".sweep-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        state.mkdir(parents=True)
    except OSError as error:
        _say(f"error: sweep directory '{state.parent}' cannot be written: {error.strerror}")
        sys.exit(2)
    supervisor = _Supervisor(state)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, supervisor.stop)
    sys.exit(supervisor.run())


def _directory(arguments: Sequence[str]) -> Path:
    """Where run directories with default names go."""
    given = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("hydra.sweep.dir=")]
    return Path(given[-1] if given else "runs")


def sweep(config_dir: str, config_name: str, named: Collection[str]) -> None:
    """Has Hydra launch the multirun that the command line asks for, below `supervise`.

    Args:
        config_dir: the absolute path of the configuration files.
        config_name: of the script's configuration.
        named: the keys that a run directory's default name tells.

    Raises:
        InputError: if the members would share one run directory.
    """
    state, directory = Path(os.environ[_STATE]), _directory(sys.argv)
    arguments = [a for a in sys.argv[1:] if "=" in a and not a.startswith("-")]
    flags = [a for a in sys.argv[1:] if a not in arguments and a not in ("-m", "--multirun") and not a.startswith("~")]
    overrides = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(arguments)}
    swept = {key: override for key, override in overrides.items() if override.is_sweep_override()}
    size = _size(list(swept.values()))
    (state / "size").write_text(str(size or ""))
    run_dir = overrides.get("run_dir")
    if run_dir is not None and size != 1 and not re.search(r"\$\{|{name}|,", run_dir.get_value_string()):
        raise InputError("run_dir is the directory of one run, and this is a sweep: set hydra.sweep.dir=DIR instead")
    member = Member(
        script=str(Path(sys.argv[0]).absolute()),
        flags=flags,
        directory=None if run_dir is not None else str(directory),
        state=str(state),
        swept=sorted(swept),
        named=sorted(named),
        size=size,
    )
    sys.argv += [
        f"hydra.sweep.dir={_quoted(directory.absolute())}",
        "hydra.sweep.subdir=.",
        f"hydra.job.name={config_name}",
    ]
    if "hydra.launcher.ray.init.address" in overrides:
        # The launcher always sets it, and Ray refuses it for a cluster that is up.
        sys.argv.append("+hydra.launcher.ray.init.object_store_memory=null")
    elif "hydra/launcher" in overrides and overrides["hydra/launcher"].value() == "ray":
        sys.argv.append("hydra.launcher.ray.init.address=local")  # not whatever cluster Ray finds
    hydra.main(version_base="1.3", config_path=config_dir, config_name=config_name)(member)()


def _size(swept: list[Override]) -> int | None:
    """How many members there are; None where only Hydra knows."""
    if any(isinstance(override.value(), Glob) or not override.is_discrete_sweep() for override in swept):
        return None
    return math.prod(sum(1 for _ in override.sweep_iterator()) for override in swept)


@dataclass(frozen=True)
class Member:
    """The task that Hydra's launchers call for every member: it runs the script as a process and reports.

    Attributes:
        script: the script's absolute path.
        flags: Hydra's own flags on the command line.
        directory: where run directories with default names go; None where ``run_dir`` is given.
        state: the folder of this sweep's reports and logs.
        swept: the keys that differ between members.
        named: the keys that a run directory's default name tells.
        size: how many members there are, None where that is unknown.
    """

    script: str
    flags: list[str]
    directory: str | None
    state: str
    swept: list[str]
    named: list[str]
    size: int | None

    def __call__(self, config: DictConfig) -> None:
        """Runs the member that Hydra's configuration describes."""
        settings: Any = HydraConfig.get()
        stop = Path(self.state) / "stop"
        if stop.exists():
            return
        path = Path(self.state) / f"{settings.job.num}.json"
        overrides = [str(override) for override in settings.overrides.task]
        member: dict[str, Any] = {
            "number": settings.job.num,
            "label": " ".join(override for override in overrides if _key(override) in self.swept),
            "status": "running",
        }
        lock = path.with_suffix(".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)  # the sweep sees by it whether this process still lives
        with lock, _Place.of(settings, Path(self.state), self.size) as place:
            write_json(path, member)
            if self.directory is not None:
                overrides = [*overrides, f"run_dir={_quoted(self.run_dir(overrides))}"]
            if place.cores is not None and config.get("num_workers", 0) is None:
                overrides = [*overrides, f"num_workers={place.cores}"]
            reported = path.with_suffix(".report")
            reported.unlink(missing_ok=True)  # of a part of this run before Slurm queued it again
            log = None if place.in_terminal else path.with_suffix(".log").open("ab")
            child = subprocess.Popen(
                [sys.executable, self.script, *self.flags, *overrides],
                cwd=settings.runtime.cwd,
                env=place.environment() | {_REPORT: str(reported)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the terminal's Ctrl-C and Slurm's warning signals are for the sweep
            )
            signals: list[int] = []
            try:
                with on_stop_request(signals.append):
                    code = _wait(child, lambda: bool(signals) or stop.exists())
            except BaseException:  # the launcher takes this process away: at Slurm's time limit, say
                child.terminate()
                write_json(path, member | _outcome(child.wait(), _read(reported)))
                raise
            finally:
                if log is not None:
                    log.close()
            write_json(path, member | _outcome(code, _read(reported)))
            if signals and place.in_terminal:
                sys.exit(128 + signals[0])  # the signal was for the launcher too

    def run_dir(self, overrides: list[str]) -> str:
        """Where a member goes: the default name, and what the sweep varies beyond it."""
        assert self.directory is not None
        keys = set(self.swept) - set(self.named)
        told = [override.lstrip("+") for override in overrides if _key(override) in keys]
        clean = [
            re.sub("[^a-zA-Z0-9_.-]+", "_", override).strip("_") for override in told
        ]  # plain for a shell and Hydra
        return "-".join([f"{self.directory}/{{name}}", *clean])


@dataclass
class _Place:
    """Where a member runs: how many cores are its own, which GPU, and whether the terminal is.

    Members that run side by side on one machine take numbered slots, for which they hold locks.
    """

    cores: int | None
    in_terminal: bool = False
    slot: IO[str] | None = None
    gpu: str | None = None

    @classmethod
    def of(cls, settings: DictConfig, state: Path, size: int | None) -> Self:
        launcher = settings.launcher
        cores = len(os.sched_getaffinity(0))
        match str(launcher["_target_"]).rpartition(".")[2]:
            case "BasicLauncher":
                return cls(None, in_terminal=True)
            case "JoblibLauncher":
                jobs = launcher.n_jobs if launcher.n_jobs > 0 else max(cores + 1 + launcher.n_jobs, 1)
                jobs = min(jobs, size or jobs)
                number, slot = _take_slot(state, jobs)
                gpus = _gpus()
                return cls(max(cores // jobs, 1), slot=slot, gpu=gpus[number % len(gpus)] if gpus else None)
            case "RayLauncher":
                return cls(max(int(launcher.ray.remote.get("num_cpus", 1)), 1))
            case "LocalLauncher":
                jobs = min(size or cores, settings.sweeper.get("max_batch_size") or size or cores)
                return cls(launcher.cpus_per_task or max(cores // jobs, 1))
            case _:  # the scheduler's allocation
                return cls(int(os.environ.get("SLURM_CPUS_PER_TASK", cores)))

    def environment(self) -> dict[str, str]:
        """The environment of the member's process."""
        environment = dict(os.environ)
        if self.cores is not None:
            environment.pop("OPENBLAS_NUM_THREADS", None)  # a launcher's choice; scripts make their own
            environment |= {"OMP_NUM_THREADS": str(self.cores), "MKL_NUM_THREADS": str(self.cores)}
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        return environment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.slot is not None:
            self.slot.close()


def _take_slot(state: Path, count: int) -> tuple[int, IO[str]]:
    while True:
        for number in range(count):
            slot = (state / f"slot-{number}").open("w")
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return number, slot
            except BlockingIOError:
                slot.close()
        time.sleep(_POLL)


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _wait(child: subprocess.Popen[bytes], stop: Callable[[], bool]) -> int:
    asked = False
    while True:
        try:
            return child.wait(_POLL)
        except subprocess.TimeoutExpired:
            if stop() and not asked:
                child.terminate()
                asked = True


def _outcome(code: int, reported: dict[str, Any]) -> dict[str, Any]:
    """What a member's exit code and its own report say about it."""
    outcome = dict(reported)
    if code == 0:
        outcome["status"] = "skipped" if reported.get("was_finished") else "finished"
    elif code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM):
        outcome["status"] = "stopped"
    else:
        outcome["status"] = "failed"
        if code < 0:
            outcome["reason"] = f"killed by {signal.Signals(-code).name}" + (
                " (out of memory?)" if code == -signal.SIGKILL else ""
            )
        outcome.setdefault("reason", f"exit code {code}")
    return outcome


class _Supervisor:
    """Starts the launcher, prints what becomes of the members, and asks them to stop."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.signal: int | None = None
        self.launcher: subprocess.Popen[bytes] | None = None
        self.members: dict[int, dict[str, Any]] = {}

    def run(self) -> int:
        """Runs the sweep and returns the exit code."""
        self.launcher = subprocess.Popen(
            [sys.executable, *sys.argv],
            env=os.environ | {_STATE: str(self.state)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process
        )
        while self.launcher.poll() is None or self._running():
            time.sleep(_POLL)
            self._print(ended=False)
        self._print(ended=True)
        self._clean_up()
        if self.signal is not None:
            _say(f"stopped by {signal.Signals(self.signal).name}: the same command goes on from here")
            return 128 + self.signal
        failures = [member for member in self.members.values() if member["status"] not in ("finished", "skipped")]
        if failures:
            _say(f"{len(failures)} of {self._size() or len(self.members)} runs did not finish:")
        for member in failures:
            log = self.state / f"{member['number']}.log"
            _say(f"  {_told(member)}" + (f" (log: {os.path.relpath(log)})" if log.exists() else ""))
        return self.launcher.returncode or int(bool(failures))

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Asks every member to write a checkpoint and stop; the second time, does not wait for that."""
        (self.state / "stop").touch()
        if self.signal is not None:
            _say("not waiting: runs are still writing checkpoints")
            os._exit(128 + number)
        self.signal = number
        _say("stopping: running members write a checkpoint (once more to not wait for that)")

    def _running(self) -> bool:
        """Whether a member runs on although the launcher gave up."""
        for path in self.state.glob("*.lock"):
            with path.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
        return False

    def _size(self) -> str:
        path = self.state / "size"
        return path.read_text() if path.exists() else ""

    def _print(self, *, ended: bool) -> None:
        for path in sorted(self.state.glob("*.json"), key=lambda path: int(path.stem)):
            number, member = int(path.stem), _read(path)
            if member == self.members.get(number) or (member["status"] == "running" and not ended):
                continue
            self.members[number] = member
            _say(f"[{len(self.members)}{'/' + self._size() if self._size() else ''}] {_told(member)}")

    def _clean_up(self) -> None:
        """Removes all but the logs of members that failed for no known reason."""
        for number, member in self.members.items():
            if member["status"] in ("finished", "skipped", "stopped") or member.get("expected"):
                (self.state / f"{number}.log").unlink(missing_ok=True)
        for path in self.state.iterdir():
            if path.suffix != ".log":
                path.unlink()
        (self.state.parent / "multirun.yaml").unlink(missing_ok=True)
        for empty in (self.state, self.state.parent):
            with suppress(OSError):
                empty.rmdir()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _told(member: dict[str, Any]) -> str:
    """One line about a member."""
    stories = {
        "finished": member.get("result"),
        "skipped": "is finished already",
        "stopped": member.get("reason", "stopped"),
        "failed": f"failed: {member.get('reason')}",
        "running": "lost: its process ended without a report",
    }
    return ": ".join(filter(None, [member.get("run_dir"), member["label"], stories[member["status"]]]))


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _quoted(value: object) -> str:
    return "'" + str(value).replace("'", "\\'") + "'"
