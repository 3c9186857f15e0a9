"""Where metrics go besides the run's own files: TensorBoard and Weights & Biases."""

import importlib.util
import math
import os
import platform
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary
from torch.utils.tensorboard.summary import hparams

from mtrl.errors import InputError, RunError, unknown_name
from mtrl.run.files import naming, write_text

WANDB_MODES = ("disabled", "offline", "online")
_CELL = 12  # pixels of a matrix entry


class Sink(Protocol):
    """Takes in what is logged."""

    def write(self, step: int, values: Mapping[str, Any], wall_time: float) -> None:
        """Takes in numbers (None where they are not finite) and matrices (nested lists), by flat key."""

    def flush(self) -> None:
        """Hands on what was taken in."""

    def close(self) -> None:
        """Flushes and ends."""


class EventFile:
    """An event file of TensorBoard; its own writer has a thread, whose errors nobody would see in time.

    Args:
        directory: where it is.
        suffix: of its name.
    """

    def __init__(self, directory: Path, suffix: str = "") -> None:
        self._path = directory / f"events.out.tfevents.{time.time():010.0f}.{platform.node()}.{os.getpid()}{suffix}"
        self._file = self._path.open("wb")
        self._records = RecordWriter(self._file)
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, step: int, values: Mapping[str, Any], wall_time: float) -> None:
        """Numbers are curves, matrices are heat maps."""
        for key, value in values.items():
            if isinstance(value, list):
                part = summary.image(key, heat_map(value), dataformats="HWC")  # type: ignore[no-untyped-call]
            else:
                part = summary.scalar(key, math.nan if value is None else value)  # type: ignore[no-untyped-call]
            self._add(part, step, wall_time)

    def write_hparams(self, step: int, config: Mapping[str, str | int | float], measures: Iterable[str]) -> None:
        """Fills the HParams tab: a configuration by dotted key, and the names of the measures to show beside it."""
        for part in hparams(dict(config), dict.fromkeys(measures, 0.0)):  # type: ignore[no-untyped-call]
            self._add(part, step, time.time())

    def _add(self, part: Any, step: int, wall_time: float) -> None:
        with naming(self._path):
            self._records.write(Event(wall_time=wall_time, step=step, summary=part).SerializeToString())

    def flush(self) -> None:
        """Hands it to the file system."""
        with naming(self._path):
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with naming(self._path):
            self._file.close()


class WeightsAndBiases:
    """A run's session with Weights & Biases, always under the same id.

    Args:
        directory: the run's; the id is kept in it.
        config: of the run.

    Raises:
        InputError: if Weights & Biases is not installed.
        RunError: if it refuses (no account, no network).
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
        """Takes in the numbers."""
        self._run.log({"step": step} | {key: value for key, value in values.items() if not isinstance(value, list)})

    def write_summary(self, measures: Mapping[str, float]) -> None:
        """Fills in the final measures."""
        self._run.summary.update(dict(measures))

    def flush(self) -> None:
        """It does that by itself."""

    def close(self) -> None:
        """Waits until everything is handed on."""
        self._run.finish()


def check_wandb(mode: str) -> None:
    """Refuses a mode of Weights & Biases that is unknown, or cannot be had here.

    Raises:
        InputError: then.
    """
    if mode not in WANDB_MODES:
        raise unknown_name("wandb mode", mode, WANDB_MODES)
    if mode != "disabled" and importlib.util.find_spec("wandb") is None:
        raise InputError(f"wandb={mode} needs Weights & Biases: pip install 'mtrl[wandb]'")


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
