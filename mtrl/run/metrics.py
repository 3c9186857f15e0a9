"""Metrics over the steps of a run: one JSON object per line, the same keys for TensorBoard and Weights & Biases."""

import importlib.util
import json
import math
import os
import platform
import time as clock
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary
from torch.utils.tensorboard.summary import hparams

from mtrl.errors import InputError, RunError, unknown_name
from mtrl.run.files import naming, write_text

WANDB_MODES = ("disabled", "offline", "online")
_CELL = 12  # pixels of a matrix entry


class MetricsWriter:
    """Writes ``metrics.jsonl``, TensorBoard event files and, where the configuration says so, Weights & Biases.

    Where a run goes on, what it had written beyond its checkpoint is dropped, and the event files are written anew
    from the rest: curves have neither gaps nor doubles, whatever had reached the disk and whatever the clock says.

    Args:
        directory: the run directory.
        step: the step that the run goes on from.
        entries: how many entries it had written by then; None is all up to that step.

    Attributes:
        entries: how many entries there are by now.
        dropped: how many were dropped, a half-written one not counted.
        missing: how many of those that the run had written by then are not there.

    Raises:
        InputError: if Weights & Biases is not installed.
        RunError: if it refuses (no account, no network).
    """

    def __init__(self, directory: Path, step: int = 0, entries: int | None = None) -> None:
        self._path = path = directory / "metrics.jsonl"
        found = read_metrics(path) if path.exists() else []
        kept = [entry for entry in found if entry["step"] <= step][:entries]
        self.entries, self.dropped = len(kept), len(found) - len(kept)
        self.missing = 0 if entries is None else entries - len(kept)
        for file in directory.glob("events.out.tfevents.*"):
            file.unlink()
        self._tensorboard = _EventFile(directory)
        self._wandb = _open_wandb(directory)
        now = clock.time()
        for entry in kept:
            values = {key: value for key, value in entry.items() if key not in ("step", "time")}
            try:
                self._plot(entry["step"], values, now + entry.get("time", 0) - kept[-1].get("time", 0))
            except Exception as error:  # a damaged entry can fail in any way
                self._tensorboard.close()
                raise InputError(
                    f"{path}, the entry of step {entry['step']}: {' '.join(str(error).split())}"
                ) from error
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = path.open("a")

    def write(self, step: int, time: float, values: Mapping[str, Any]) -> None:
        """Writes scalars and matrices; values that are not finite become ``null``.

        Args:
            step: vector steps so far.
            time: seconds of training so far, those before a restart included.
            values: numbers or zero-dimensional tensors by flat key, e.g. ``eval/success_mean``; or matrices with
                entries in [-1, 1], as nested lists. Those are heat maps in TensorBoard: red is 1, blue is -1.

        Raises:
            OSError: as the file system does.
        """
        finite = {key: _finite(value) for key, value in values.items()}
        with naming(self._path):
            self._file.write(json.dumps({"step": step, "time": round(time, 3), **finite}) + "\n")
            self._file.flush()
        self.entries += 1
        self._plot(step, finite, clock.time())
        self._tensorboard.flush()
        if self._wandb is not None:
            scalars = {key: value for key, value in finite.items() if not isinstance(value, list)}
            self._wandb.log({"step": step, **scalars})

    def _plot(self, step: int, values: Mapping[str, Any], wall_time: float) -> None:
        for key, value in values.items():
            if isinstance(value, list):
                image = summary.image(key, heat_map(value), dataformats="HWC")  # type: ignore[no-untyped-call]
                self._tensorboard.add(image, step, wall_time)
            else:
                scalar = summary.scalar(key, math.nan if value is None else value)  # type: ignore[no-untyped-call]
                self._tensorboard.add(scalar, step, wall_time)

    def flush(self) -> None:
        """Hands everything to the disk."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        with self._file, naming(self._path):
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class _EventFile:
    """An event file of TensorBoard; its own writer has a thread, whose errors nobody would see in time."""

    def __init__(self, directory: Path, suffix: str = "") -> None:
        self._path = directory / f"events.out.tfevents.{clock.time():010.0f}.{platform.node()}.{os.getpid()}{suffix}"
        self._file = self._path.open("wb")
        self._records = RecordWriter(self._file)
        self._records.write(Event(wall_time=clock.time(), file_version="brain.Event:2").SerializeToString())

    def add(self, summary: Any, step: int, wall_time: float) -> None:
        with naming(self._path):
            self._records.write(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())

    def flush(self) -> None:
        with naming(self._path):
            self._file.flush()

    def close(self) -> None:
        with naming(self._path):
            self._file.close()


def log_outcome(directory: Path, config: Mapping[str, Any], measures: Mapping[str, float]) -> None:
    """Fills TensorBoard's HParams tab, and the summary of Weights & Biases, at the end of a run.

    Args:
        directory: the run directory.
        config: the configuration by dotted key.
        measures: the final measures; one that was not logged on the way gets its one point.
    """
    entries = read_metrics(directory / "metrics.jsonl")
    logged = {key for entry in entries for key in entry}
    plain = {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in config.items()
        if value is not None
    }
    parts = list(hparams(plain, dict.fromkeys(measures, 0.0)))  # type: ignore[no-untyped-call]
    parts += [summary.scalar(key, measures[key]) for key in measures.keys() - logged]  # type: ignore[no-untyped-call]
    tensorboard = _EventFile(directory, ".outcome")
    for part in parts:
        tensorboard.add(part, entries[-1]["step"], clock.time())
    tensorboard.close()
    if (wandb := _open_wandb(directory)) is not None:
        wandb.summary.update(measures)
        wandb.finish()


def check_wandb(mode: str) -> None:
    """Refuses a mode of Weights & Biases that is unknown, or cannot be had here.

    Raises:
        InputError: then.
    """
    if mode not in WANDB_MODES:
        raise unknown_name("wandb mode", mode, WANDB_MODES)
    if mode != "disabled" and importlib.util.find_spec("wandb") is None:
        raise InputError(f"wandb={mode} needs Weights & Biases: pip install 'mtrl[wandb]'")


def _open_wandb(directory: Path) -> Any:
    """The run's session with Weights & Biases, always under the same id; None where it is disabled."""
    file = directory / "config.yaml"
    config = yaml.safe_load(file.read_text()) if file.exists() else {}
    mode = config.get("wandb", "disabled")
    if mode == "disabled":
        return None
    check_wandb(mode)
    import wandb

    identity = directory / "wandb" / "run-id"
    if not identity.exists():
        identity.parent.mkdir(exist_ok=True)
        write_text(identity, uuid.uuid4().hex[:8])
    try:
        run = wandb.init(
            project="mtrl",
            name=directory.name,
            id=identity.read_text(),
            resume="allow",
            mode=mode,
            dir=directory,
            config=config,
            settings=wandb.Settings(console="off", silent=True),
        )
        run.define_metric("*", step_metric="step")  # an evaluation is logged later than its step
        return run
    except wandb.Error as error:
        raise RunError(f"wandb={mode}: {' '.join(str(error).split())}") from error


def heat_map(matrix: list[list[float | None]]) -> NDArray[np.uint8]:
    """A picture of a matrix: blue is -1, white 0, red 1, grey not finite.

    Returns:
        ``[height, width, 3]``.
    """
    values = np.array(matrix, dtype=float)
    strength = np.clip(np.abs(np.nan_to_num(values)), 0, 1)[..., None]
    colour = np.where(values[..., None] > 0, (0.70, 0.09, 0.17), (0.13, 0.40, 0.67))
    pixels = np.where(np.isnan(values)[..., None], 0.5, 1 - strength * (1 - colour))
    return np.kron(np.round(255 * pixels), np.ones((_CELL, _CELL, 1))).astype(np.uint8)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    number = float(value)
    return number if math.isfinite(number) else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a ``metrics.jsonl``, also of a running or killed run: a half-written last line is left out.

    Raises:
        InputError: if a line before the last one is damaged.
    """
    entries: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or type(entry.get("step")) is not int:
                raise ValueError("not an object with an integer 'step'")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}, line {number}: {error}") from error
        entries.append(entry)
    return entries
