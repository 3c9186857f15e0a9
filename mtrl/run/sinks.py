"""Where metrics go besides the run's own files: TensorBoard and Weights & Biases."""

import importlib.util
import math
import os
import platform
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from mtrl.errors import InputError, RunError, unknown_name
from mtrl.run.files import naming, write_text
from mtrl.run.machine import sync

WANDB_MODES = ("disabled", "offline", "online")
_CELL = 12  # pixels of a matrix entry


EVENT_FILES = "events.out.tfevents.*"


class EventFile:
    """An event file of TensorBoard, whose own writer has a thread: nobody would see its errors in time.

    TensorBoard reads a directory's files in the order of the times in their names, and an open one has lost a file that
    is removed: a new file is the last in that order whatever the clock says, and old ones stay. What those hold of the
    step ``from_step`` and later ones no longer counts.
    """

    def __init__(self, directory: Path, suffix: str = "", from_step: int | None = None) -> None:
        times = (path.name.split(".")[3] for path in directory.glob(EVENT_FILES))
        newest = max((int(written) for written in times if written.isdecimal()), default=0)
        stamp = max(int(time.time()), newest + 1)
        self._path = directory / f"events.out.tfevents.{stamp:010}.{platform.node()}.{os.getpid()}{suffix}"
        self._file = self._path.open("wb")
        self._records = RecordWriter(self._file)
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        if from_step is not None:
            restart = SessionLog(status=SessionLog.START)
            self._records.write(Event(wall_time=time.time(), step=from_step, session_log=restart).SerializeToString())

    def write(self, step: int, values: Mapping[str, Any], wall_time: float) -> None:
        """Takes in numbers (None where not finite) as curves, and matrices (nested lists) as heat maps, by flat key."""
        self._add(step, (_part(key, value) for key, value in values.items()), wall_time)

    def write_hparams(self, step: int, config: Mapping[str, str | int | float], measures: Iterable[str]) -> None:
        """Fills the HParams tab: a configuration by dotted key, and the names of the measures to show beside it."""
        parts = summary.hparams(dict(config), dict.fromkeys(measures, 0.0))  # type: ignore[no-untyped-call]
        self._add(step, parts, time.time())

    def _add(self, step: int, parts: Iterable[Any], wall_time: float) -> None:
        with naming(self._path):
            for part in parts:
                self._records.write(Event(wall_time=wall_time, step=step, summary=part).SerializeToString())
            self._file.flush()

    def flush(self) -> None:
        """Hands everything to the disk."""
        with naming(self._path):
            sync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        with naming(self._path):
            self._file.close()


def _part(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return summary.image(key, heat_map(value), dataformats="HWC")  # type: ignore[no-untyped-call]
    return summary.scalar(key, math.nan if value is None else value)  # type: ignore[no-untyped-call]


class WeightsAndBiases:
    """A run's session with Weights & Biases, always under the same id, which is kept in the run's directory.

    Raises `InputError` if it is not installed, and `RunError` if it refuses (no account, no network).
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        check_wandb(config["wandb"])
        import wandb

        identity = directory / "wandb" / "run-id"
        if not identity.exists():
            identity.parent.mkdir(exist_ok=True)
            write_text(identity, uuid.uuid4().hex[:8])
        try:
            self._run = wandb.init(
                project="mtrl",
                name=directory.name,
                id=identity.read_text(),
                resume="allow",
                mode=config["wandb"],
                dir=directory,
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
            self._run.define_metric("*", step_metric="step")  # an evaluation is logged later than its step
        except wandb.Error as error:
            raise RunError(f"wandb={config['wandb']}: {' '.join(str(error).split())}") from error

    def write(self, step: int, values: Mapping[str, Any], wall_time: float) -> None:
        """Takes in the numbers, as `EventFile.write` does."""
        self._run.log({"step": step} | {key: value for key, value in values.items() if not isinstance(value, list)})

    def write_summary(self, measures: Mapping[str, float]) -> None:
        """Fills in the final measures."""
        self._run.summary.update(dict(measures))

    def close(self) -> None:
        """Waits until everything is handed on."""
        self._run.finish()


def check_wandb(mode: str) -> None:
    """Raises `InputError` on a mode of Weights & Biases that is unknown, or cannot be had here."""
    if mode not in WANDB_MODES:
        raise unknown_name("wandb mode", mode, WANDB_MODES)
    if mode != "disabled" and importlib.util.find_spec("wandb") is None:
        raise InputError(f"wandb={mode} needs Weights & Biases: pip install 'mtrl[wandb]'")


def heat_map(matrix: list[list[float | None]]) -> NDArray[np.uint8]:
    """A picture ``[height, width, 3]`` of a matrix: blue is -1, white 0, red 1, grey not finite."""
    values = np.array(matrix, dtype=float)
    strength = np.clip(np.abs(np.nan_to_num(values)), 0, 1)[..., None]
    colour = np.where(values[..., None] > 0, (0.70, 0.09, 0.17), (0.13, 0.40, 0.67))
    pixels = np.where(np.isnan(values)[..., None], 0.5, 1 - strength * (1 - colour))
    return np.kron(np.round(255 * pixels), np.ones((_CELL, _CELL, 1))).astype(np.uint8)
