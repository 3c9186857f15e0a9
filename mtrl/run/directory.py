"""A run's directory: one run, one configuration, one process at a time."""

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mtrl.errors import InputError, RunError
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.files import write_json, write_text
from mtrl.run.member_report import report

# What may differ between the parts of one run: where and how it is computed, not what.
_FREE_KEYS = ("device", "run_dir", "num_workers", "debug", "progress", "wandb", "plugins")


class RunDirectory:
    """The directory of one run, made where it is missing and locked while it is open.

    It holds ``config.yaml``, ``metrics.jsonl``, ``matrices.jsonl``, TensorBoard event files, ``checkpoints/`` and,
    once the run has finished, ``summary.json``. Its configuration is resolved, plain data.

    Raises:
        InputError: if it belongs to a run with another configuration (the key is named), or cannot be written.
        RunError: if another process has the run open.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = dict(config)
        if "run_dir" in config:
            self.config["run_dir"] = str(path)
        self.checkpoints = Checkpoints(path / "checkpoints")
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
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"run_dir '{self.path}' is in use by another process") from error
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def _claim(self) -> None:
        """Makes the directory this run's, or checks that it is."""
        file = self.path / "config.yaml"
        before: dict[str, Any] = {}
        if file.exists():
            before = read_config(self.path)
            old, new = _identity(before), _identity(self.config)
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    raise InputError(
                        f"run_dir '{self.path}' holds a run with {key}={old.get(key)!r}, not {new.get(key)!r}: "
                        "choose another run_dir, or the configuration that it was started with"
                    )
        elif any(entry.name not in (".lock", "config.yaml.tmp") for entry in self.path.iterdir()):
            raise InputError(f"run_dir '{self.path}' is not empty and has no config.yaml: choose another directory")
        if before != self.config and not self.finished:
            write_text(file, yaml.safe_dump(self.config, sort_keys=False))

    @property
    def finished(self) -> bool:
        """Whether the run has been completed."""
        return (self.path / "summary.json").exists()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``, which marks the run as completed."""
        measures = _headline(summary)
        if measures:
            from mtrl.run.metrics import log_outcome  # not above: most who open a run write no metrics

            log_outcome(self.path, self.config, _identity(self.config), measures)
        write_json(self.path / "summary.json", summary)
        means = {key: value for key, value in measures.items() if key.endswith("_mean")} or measures
        told = ", ".join(f"{key.partition('/')[2].replace('_mean', '')} {value:.3f}" for key, value in means.items())
        report(result=f"{told} in {summary.get('seconds', 0) / 60:.1f} min")

    def close(self) -> None:
        """Lets other processes open the run, once nothing is being written any more."""
        self.checkpoints.close()
        self._lock.close()


def directory_of(run_dir: str | None, name: str) -> Path:
    """The directory that the key ``run_dir`` means: ``{name}`` in it stands for the default name; None is ``runs/``."""
    return Path((run_dir or "runs/{name}").replace("{name}", name))


def _headline(summary: Mapping[str, Any]) -> dict[str, float]:
    """The final measures of a completed run: ``eval/success_mean``, or ``test/<measure>`` of a supervised one."""
    if "final" in summary:
        return {"eval/success_mean": summary["final"]["success_mean"]}
    return {f"test/{key}": value for key, value in summary.get("test", {}).items()}


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run another one, by dotted key."""
    return {key: value for key, value in flatten(config).items() if key.split(".")[0] not in _FREE_KEYS}


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
        raise InputError(f"'{path}' is not a run directory: it has no config.yaml")
    return config


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
