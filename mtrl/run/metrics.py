"""Metrics over the steps of a run: one JSON object per line, the same keys for TensorBoard and Weights & Biases."""

import json
import math
import time as clock
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from mtrl.errors import InputError
from mtrl.run.files import naming, write_text
from mtrl.run.machine import sync
from mtrl.run.sinks import EVENT_FILES, EventFile, WeightsAndBiases


class MetricsWriter:
    """Writes ``metrics.jsonl``, ``matrices.jsonl``, TensorBoard event files and, if so configured, Weights & Biases.

    Where a run goes on, what it had written beyond its checkpoint is dropped, and a new event file takes back what the
    others hold of it: curves have neither gaps nor doubles, whatever had reached the disk and whatever the clock says.

    Args:
        directory: the run directory.
        step: the step that the run goes on from.
        entries: how many lines of both files it had written by then; None is all up to that step.
        config: of the run; its ``wandb`` is looked at, where it is there, see `WeightsAndBiases` for its errors.

    Attributes:
        dropped: how many lines of ``metrics.jsonl`` were dropped, a half-written one not counted.
        missing: how many lines of both files that the run had written by then are not there.

    Raises:
        InputError: if what a run goes on from is damaged.
    """

    def __init__(
        self,
        directory: Path,
        step: int = 0,
        entries: Sequence[int | None] = (None, None),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        paths = directory / "metrics.jsonl", directory / "matrices.jsonl"
        self._files = [_Lines(path, step, count) for path, count in zip(paths, entries, strict=True)]
        self.dropped, self.missing = self._files[0].dropped, sum(lines.missing for lines in self._files)
        # A run's end may have logged more at its last step; what somebody edited cannot be told from its steps.
        whole = self.missing or not any(directory.glob(EVENT_FILES))
        from_step = 0 if whole else min([step, *(lines.first_dropped for lines in self._files)])
        with ExitStack() as opened:
            events = opened.enter_context(closing(EventFile(directory, from_step=from_step)))
            _write_anew(events, self._files, from_step)
            events.flush()
            self._events = events
            sessions = [opened.enter_context(closing(one)) for one in _sessions(directory, config or {})]
            self._sinks: list[EventFile | WeightsAndBiases] = [events, *sessions]
            for lines in self._files:
                lines.open()
                opened.enter_context(closing(lines))
            self._opened = opened.pop_all()

    @property
    def entries(self) -> list[int]:
        """How many lines of ``metrics.jsonl`` and of ``matrices.jsonl`` there are by now."""
        return [lines.count for lines in self._files]

    def write(self, step: int, time: float, values: Mapping[str, Any]) -> None:
        """Writes scalars and matrices of a vector step; values that are not finite become ``null``.

        Args:
            step: vector steps so far.
            time: seconds of training so far, those before a restart included.
            values: numbers or zero-dimensional tensors by flat key, e.g. ``eval/success_mean``; or matrices with
                entries in [-1, 1], as nested lists. Those are heat maps in TensorBoard: red is 1, blue is -1.
        """
        finite = {key: _finite(value) for key, value in values.items()}
        for lines, are_lists in zip(self._files, (False, True), strict=True):
            own = {key: value for key, value in finite.items() if isinstance(value, list) is are_lists}
            if own:
                lines.append({"step": step, "time": round(time, 3)} | own)
        for sink in self._sinks:
            sink.write(step, finite, clock.time())

    def flush(self) -> None:
        """Hands everything to the disk."""
        for lines in self._files:
            lines.flush()
        self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        self._opened.close()


class _Lines:
    """A file of JSON lines that a run goes on with: what it holds beyond a checkpoint is left out."""

    def __init__(self, path: Path, step: int, count: int | None) -> None:
        self.path = path
        found = read_metrics(path) if path.exists() else []
        fitting = [entry for entry in found if entry["step"] <= step]
        self.kept = fitting[:count]
        self.count, self.dropped = len(self.kept), len(found) - len(self.kept)
        self.first_dropped = min((entry["step"] for entry in fitting[self.count :]), default=step)
        self.missing = 0 if count is None else count - len(self.kept)

    def open(self) -> None:
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in self.kept))
        self._file = self.path.open("a")

    def append(self, entry: Mapping[str, Any]) -> None:
        with naming(self.path):
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        self.count += 1

    def flush(self) -> None:
        with naming(self.path):
            sync(self._file.fileno())

    def close(self) -> None:
        with naming(self.path):
            self._file.close()


def _write_anew(events: EventFile, files: Sequence[_Lines], from_step: int) -> None:
    """Fills an event file with what the files hold from a step on; it is as long ago as it was when it was logged."""
    now = clock.time()
    times = [entry.get("time", 0) for lines in files for entry in lines.kept[-1:]]
    for lines in files:
        for entry in (entry for entry in lines.kept if entry["step"] >= from_step):
            values = {key: value for key, value in entry.items() if key not in ("step", "time")}
            try:
                events.write(entry["step"], values, now + entry.get("time", 0) - max(times))
            except Exception as error:  # a damaged entry can fail in any way
                where = f"{lines.path}, the entry of step {entry['step']}"
                raise InputError(f"{where}: {' '.join(str(error).split())}") from error


def _sessions(directory: Path, config: Mapping[str, Any]) -> list[WeightsAndBiases]:
    """The run's session with Weights & Biases, where its configuration asks for one."""
    return [] if config.get("wandb", "disabled") == "disabled" else [WeightsAndBiases(directory, config)]


def log_outcome(
    directory: Path, config: Mapping[str, Any], hparams: Mapping[str, Any], measures: Mapping[str, float]
) -> None:
    """Fills TensorBoard's HParams tab, and the summary of Weights & Biases, at the end of a run.

    ``hparams`` is what to show of its configuration, by dotted key. A final measure that was not logged on the way
    gets its one point.
    """
    entries = read_metrics(directory / "metrics.jsonl")
    step, logged = entries[-1]["step"], {key for entry in entries for key in entry}
    plain = {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in hparams.items()
        if value is not None
    }
    with closing(EventFile(directory, ".outcome")) as events:
        events.write_hparams(step, plain, measures)
        events.write(step, {key: value for key, value in measures.items() if key not in logged}, clock.time())
    for session in _sessions(directory, config):
        with closing(session):
            session.write_summary(measures)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    number = float(value)
    return number if math.isfinite(number) else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a file of a `MetricsWriter`, also of a running or killed one: half a last line is left out.

    Raises `InputError` if a line before the last one is damaged.
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
            entries.append(entry)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number}: {error}") from error
    return entries
