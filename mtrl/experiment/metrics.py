"""Metrics over the steps of a run: one JSON object per line, and the same keys for TensorBoard."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mtrl.errors import InputError
from mtrl.experiment.files import write_text


class MetricsWriter:
    """Writes ``metrics.jsonl`` and TensorBoard event files.

    Args:
        directory: the run directory.
        step: the step that the run goes on from; what an interrupted run had written beyond it is dropped, so
            that curves have neither gaps nor doubles.
    """

    def __init__(self, directory: Path, step: int = 0) -> None:
        path = directory / "metrics.jsonl"
        resumed = path.exists()
        if resumed:
            kept = [json.dumps(entry) + "\n" for entry in read_metrics(path) if entry["step"] <= step]
            write_text(path, "".join(kept))
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(str(directory), purge_step=step + 1 if resumed else None)

    def write(self, step: int, time: float, values: Mapping[str, Any]) -> None:
        """Writes scalars; values that are not finite become ``null``.

        Args:
            step: vector steps so far.
            time: seconds of training so far, those before a restart included.
            values: numbers or zero-dimensional tensors by flat key, e.g. ``eval/success_mean``.

        Raises:
            OSError: as the file system does.
        """
        numbers = {key: float(value) for key, value in values.items() if not isinstance(value, list)}
        finite = {key: number if math.isfinite(number) else None for key, number in numbers.items()}
        matrices = {key: value for key, value in values.items() if isinstance(value, list)}
        self._file.write(json.dumps({"step": step, "time": round(time, 3), **finite, **matrices}) + "\n")
        self._file.flush()
        for key, number in numbers.items():
            self._tensorboard.add_scalar(key, number, step)

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._file.flush()
        self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        self._tensorboard.close()


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
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError("not an object with an integer 'step'")
        except ValueError as error:
            if number == len(lines):
                break
            raise InputError(f"{path}, line {number}: {error}") from error
        entries.append(entry)
    return entries
