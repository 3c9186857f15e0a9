"""The progress bar of a training run."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_EVERY = 30.0  # seconds between plain lines where there is no terminal


class TrainingProgress:
    """Steps, steps per second, ETA and the latest success rate; plain lines where there is no terminal.

    Args:
        total: steps of the whole run.
        step: the step that the run goes on from.
        console: where to draw; standard error by default.
        enabled: draw at all.
    """

    def __init__(self, total: int, step: int = 0, *, console: Console | None = None, enabled: bool = True) -> None:
        self.console = console or Console(stderr=True)
        self._interactive = enabled and self.console.is_terminal
        self._plain = enabled and not self.console.is_terminal
        self._total, self._step, self._first = total, step, step
        self._start = self._last_line = time.monotonic()
        self._status = ""
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not self._interactive,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("training", total=total, completed=step, rate="", status=self._status)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Shows that ``step`` steps are done."""
        self._step = step
        if self._interactive:
            self._bar.update(self._task, completed=step, rate=f"{self._rate():.0f} steps/s", status=self._status)
        elif self._plain and time.monotonic() - self._last_line > _LINE_EVERY:
            self._line()

    def show(self, status: str) -> None:
        """Shows a status, such as the latest success rate."""
        self._status = status
        if self._interactive:
            self._bar.update(self._task, status=status)

    def report(self, status: str) -> None:
        """Shows a status that is worth a line of its own in a log file."""
        self.show(status)
        if self._plain:
            self._line()

    def _rate(self) -> float:
        return (self._step - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _line(self) -> None:
        self._last_line = time.monotonic()
        rate = self._rate()
        eta = f"{(self._total - self._step) / rate / 60:.1f} min" if rate else "unknown"
        self.console.print(
            f"step {self._step:,}/{self._total:,}  {rate:.0f} steps/s  ETA {eta}  {self._status}",
            highlight=False,
        )
