"""A run's directory: one run, one configuration, one process at a time."""

import difflib
import hashlib
import json
import math
import os
import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import yaml

from mtrl.errors import InputError, RunError
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.files import finite, write_json, write_text
from mtrl.run.machine import lock
from mtrl.run.member_report import report
from mtrl.text import number

# What may differ between the parts of one run: where and how it is computed, not what.
_FREE_KEYS = {"data", "device", "run_dir", "num_workers", "debug", "progress", "wandb", "plugins"}
_FREE_KEYS |= {"checkpoint.keep", "checkpoint.keep_replay", "eval.video"}
_LENGTHS = ("steps", "epochs")
"""What may become more, and then the run goes on, finished or not."""
_DATA = ("data_dir", "benchmark.data_dir")
"""What may differ until the run is finished, and is said: on another machine the same data are elsewhere."""

_LONGEST_NAME = 255  # bytes, on the usual file systems


class RunDirectory:
    """The directory of one run, made where it is missing and locked while it is open.

    It holds ``config.yaml``, ``metrics.jsonl``, ``matrices.jsonl``, TensorBoard event files, ``checkpoints/`` and,
    once the run has finished, ``summary.json``. Its configuration is resolved, plain data.

    Raises:
        InputError: if it belongs to a run with another configuration (the key is named), or cannot be written.
        RunError: if another process has the run open, or that cannot be found out; a file system without locks is no
            error, but said.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = dict(config)
        if "run_dir" in config:
            self.config["run_dir"] = str(path)
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.longer = False
        """Whether it holds a finished run that is to become longer; until `reopen` it stays as it is."""
        self.moved: list[str] = []
        """What to tell of data that are not where they were."""
        report(run_dir=str(path))
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise InputError(f"run_dir '{path}' cannot be written: {error.strerror}") from error
        try:
            self._acquire()
            self._claim()
        except BaseException:
            self.close()
            raise
        if self.finished:
            report(result="is finished already")

    def _acquire(self) -> None:
        try:
            locked = lock(self._lock)
        except OSError as error:
            raise RunError(f"run_dir '{self.path}' cannot be locked: {error.strerror}") from error
        if locked is False:
            raise RunError(f"run_dir '{self.path}' is in use by another process")
        if locked is None:
            message = f"run_dir '{self.path}' is not protected from a second process: its file system has no locks"
            warnings.warn(message, stacklevel=3)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        # A process that is forked from this one, and may outlive it, shall not hold the lock.
        os.register_at_fork(after_in_child=partial(_close, weakref.ref(self._lock)))

    def _claim(self) -> None:
        """Makes the directory this run's, or checks that it is."""
        before: dict[str, Any] = {}
        entries = {entry.name for entry in self.path.iterdir()} - {".lock", "config.yaml.tmp"}
        if "config.yaml" in entries:
            before = read_config(self.path)
        if before and not (len(entries) == 1 and before.keys() == self.config.keys()):  # else refused before it began
            old, new = _identity(before), _identity(self.config)
            different = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
            for key in sorted(different, key=_LENGTHS.__contains__):
                if key in _LENGTHS and _is_more(new.get(key), old.get(key)):
                    self.longer = self.finished
                    continue
                if key in _DATA and not self.finished:
                    paths = f"has read {old.get(key)} and goes on with {new.get(key)}"
                    self.moved.append(f"{key}: this run {paths}, which has to be the same data")
                    continue
                advice = "it can become longer, not shorter; " if key in _LENGTHS else ""
                raise InputError(
                    f"run_dir '{self.path}' holds a run with {key}={old.get(key)!r}, not {new.get(key)!r}: {advice}"
                    "choose another run_dir, or the configuration that it was started with"
                )
        elif entries and not before:
            raise InputError(f"run_dir '{self.path}' is not empty and has no config.yaml: choose another directory")
        if before != self.config and not self.finished and not self.longer:
            self._write_config()

    def _write_config(self) -> None:
        write_text(self.path / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))

    @property
    def finished(self) -> bool:
        """Whether the run has been completed."""
        return not self.longer and (self.path / "summary.json").exists()

    def reopen(self) -> None:
        """Makes a finished run that is to become longer an unfinished one."""
        (self.path / "summary.json").unlink()  # first: without it, both lengths are the same unfinished run's
        self.longer = False
        self._write_config()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``, which marks the run as completed; what is not finite becomes ``null`` there.

        Raises:
            RunError: if a final measure is not finite, so that nothing can be said of the run.
        """
        measures = _headline(summary)
        if lacking := [key for key, value in measures.items() if not math.isfinite(value)]:
            raise RunError(
                f"run_dir '{self.path}' cannot be completed: {', '.join(lacking)} of the trained model "
                f"{'is' if len(lacking) == 1 else 'are'} not finite"
            )
        if measures:
            from mtrl.run.metrics import log_outcome  # not above: most who open a run write no metrics

            log_outcome(self.path, self.config, _identity(self.config), measures)
        write_json(self.path / "summary.json", finite(summary))
        means = {key: value for key, value in measures.items() if key.endswith("_mean")} or measures
        told = ", ".join(
            f"{key.partition('/')[2].replace('_mean', '')} {number(value)}" for key, value in means.items()
        )
        report(result=f"{told} in {summary.get('seconds', 0) / 60:.1f} min")

    def close(self) -> None:
        """Lets other processes open the run, once nothing is being written any more."""
        self.checkpoints.close()
        self._lock.close()


def directory_of(run_dir: str | None, name: str) -> Path:
    """The directory that the key ``run_dir`` means: ``{name}`` in it stands for the default name; None is ``runs/``.

    A part that is longer than a file's name can be is cut, and ends in a hash of the whole. Raises `InputError` where
    the name is not UTF-8.
    """
    path = Path((run_dir or "runs/{name}").replace("{name}", name))
    try:
        return Path(*map(_shortened, path.parts))
    except UnicodeEncodeError as error:
        raise InputError(f"run_dir {str(path)!a}: expected a name in UTF-8") from error


def _shortened(part: str) -> str:
    name = part.encode()
    if len(name) <= _LONGEST_NAME:
        return part
    return f"{name[: _LONGEST_NAME - 17].decode(errors='ignore')}-{hashlib.sha256(name).hexdigest()[:16]}"


def _headline(summary: Mapping[str, Any]) -> dict[str, float]:
    """The final measures of a completed run: ``eval/<measure>_mean``, or ``test/<measure>`` of a supervised one."""
    if "final" in summary:
        key = f"{summary.get('measure', 'success')}_mean"
        return {f"eval/{key}": summary["final"][key]}
    return {f"test/{key}": value for key, value in summary.get("test", {}).items()}


def _close(file: weakref.ref[TextIO]) -> None:
    if opened := file():
        opened.close()


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run another one, by dotted key."""
    return {key: value for key, value in flatten(config).items() if not {key, key.split(".")[0]} & _FREE_KEYS}


def _is_more(new: object, old: object) -> bool:
    return isinstance(new, int) and isinstance(old, int) and new > old


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def read_config(path: Path) -> dict[str, Any]:
    """The configuration that a run directory was started with; `InputError` if it is not one."""
    config = _read(path / "config.yaml", yaml.safe_load, "configuration")
    if config is None:
        lacking = "it has no config.yaml" if path.exists() else "there is no such directory"
        beside = [file.parent.name for file in path.parent.glob("*/config.yaml")]
        near = difflib.get_close_matches(path.name, beside, n=1)
        offer = f"; did you mean '{path.with_name(near[0])}'?" if near else ""
        raise InputError(f"'{path}' is not a run directory: {lacking}{offer}")
    return config


def stored_checkpoints(path: Path) -> Checkpoints:
    """The checkpoints in a run directory; `InputError`, which says whether to wait for one, if it has none."""
    checkpoints = Checkpoints(path / "checkpoints")
    if not checkpoints.steps():
        finished = (path / "summary.json").exists()
        why = ": it is finished, but they are not here" if finished else " yet: wait for the first one"
        raise InputError(f"run '{path}' has no checkpoint{why}")
    return checkpoints


def read_summary(path: Path) -> dict[str, Any] | None:
    """What a completed run left in ``summary.json``, or an `InputError`; None where it has not been completed."""
    return _read(path / "summary.json", json.loads, "summary")


def _read(file: Path, parse: Callable[[str], Any], what: str) -> dict[str, Any] | None:
    try:
        content = parse(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except RecursionError as error:  # what it says depends on how deep the call was
        raise InputError(f"{file} cannot be read: something in it is nested too deeply") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} does not hold a {what}")
    return content
