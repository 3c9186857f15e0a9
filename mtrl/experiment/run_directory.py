"""A run's directory: one run, one configuration, one process at a time."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from mtrl.errors import InputError, RunError
from mtrl.experiment.checkpoints import Checkpoints
from mtrl.experiment.files import write_json, write_text

# What may differ between the parts of one run: where and how it is computed, not what.
_FREE_KEYS = ("device", "run_dir", "num_workers", "debug", "progress")


class RunDirectory:
    """The directory of one run, locked while it is open.

    It holds ``config.yaml``, ``metrics.jsonl``, TensorBoard event files, ``checkpoints/`` and, once the run has
    finished, ``summary.json``.

    Args:
        path: the directory; made where it is missing.
        config: the resolved configuration, plain data.

    Raises:
        InputError: if the directory belongs to a run with another configuration (the key is named), or cannot
            be written.
        RunError: if another process has the run open.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = dict(config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise InputError(f"run_dir '{path}' cannot be written: {error.strerror}") from error
        try:
            _acquire(self._lock, path)
            self._claim()
        except BaseException:
            self._lock.close()
            raise
        self.checkpoints = Checkpoints(path / "checkpoints")

    def _claim(self) -> None:
        """Makes the directory this run's, or checks that it is."""
        file = self.path / "config.yaml"
        if file.exists():
            _compare(read_config(self.path), self.config, self.path)
        elif any(entry.name != ".lock" for entry in self.path.iterdir()):
            raise InputError(f"run_dir '{self.path}' is not empty and has no config.yaml: choose another directory")
        else:
            write_text(file, yaml.safe_dump(self.config, sort_keys=False))

    @property
    def finished(self) -> bool:
        """Whether the run has been completed."""
        return (self.path / "summary.json").exists()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``, which marks the run as completed."""
        write_json(self.path / "summary.json", summary)

    def close(self) -> None:
        """Lets other processes open the run."""
        self._lock.close()


def _acquire(lock: IO[str], path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RunError(f"run_dir '{path}' is in use by another process") from error
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    old, new = flatten(before), flatten(now)
    for key in sorted(old.keys() | new.keys()):
        if key.split(".")[0] not in _FREE_KEYS and old.get(key) != new.get(key):
            raise InputError(
                f"run_dir '{path}' holds a run with {key}={old.get(key)!r}, not {new.get(key)!r}: "
                "choose another run_dir, or the configuration that it was started with"
            )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_config(path: Path) -> dict[str, Any]:
    """The configuration that a run directory was started with.

    Raises:
        InputError: if there is no readable ``config.yaml``.
    """
    file = path / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise InputError(f"'{path}' is not a run directory: it has no config.yaml") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise InputError(f"{file} does not hold a configuration")
    return config


def read_summary(path: Path) -> dict[str, Any] | None:
    """What a completed run left in ``summary.json``; None where it has not been completed."""
    file = path / "summary.json"
    if not file.exists():
        return None
    summary: dict[str, Any] = json.loads(file.read_text())
    return summary
