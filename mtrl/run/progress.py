"""The progress bar of a training run."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY = 30.0  # seconds between plain lines where there is no terminal


class TrainingProgress:
    """Steps, steps per second, ETA and the latest success rate, on standard error; plain lines without a terminal.

    Of a run of ``total`` steps that goes on from a ``step``. The ``bar`` is drawn in a ``with`` statement.
    """

    def __init__(self, total: int, step: int, *, enabled: bool) -> None:
        self.console = Console(stderr=True)
        self._plain = enabled and not self.console.is_terminal
        self._first = step
        self._start = self._last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
            refresh_per_second=4,
        )
        self._id = self.bar.add_task("", total=total, completed=step, rate="", status="")
        self._task = self.bar.tasks[0]

    def advance(self, step: int) -> None:
        """Shows that ``step`` steps are done."""
        self.bar.update(self._id, completed=step, rate=_speed(self._rate()))
        if self._plain and time.monotonic() - self._last_line > _LINE_EVERY:
            self._line()

    def show(self, status: str) -> None:
        """Shows a status, such as the latest success rate."""
        self.bar.update(self._id, status=status)

    def report(self, status: str) -> None:
        """Shows a status that is worth a line of its own in a log file."""
        self.show(status)
        if self._plain:
            self._line()

    def _rate(self) -> float:
        return (self._task.completed - self._first) / max(time.monotonic() - self._start, 1e-9)

    def _line(self) -> None:
        self._last_line = time.monotonic()
        task, rate = self._task, self._rate()
        eta = f"{(task.remaining or 0) / rate / 60:.1f} min" if rate else "unknown"
        self.console.print(
            f"step {task.completed:,}/{task.total:,}  {_speed(rate)}  ETA {eta}  {task.fields['status']}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _speed(rate: float) -> str:
    return f"{rate:.0f} steps/s" if rate >= 10 else f"{rate:.2g} steps/s"
