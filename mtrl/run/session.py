"""What every long run does beside its algorithm: it can be stopped at any moment, and goes on as if it had not been."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from mtrl.errors import InputError, Interrupted, RunError
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import MetricsWriter
from mtrl.run.progress import TrainingProgress
from mtrl.run.signals import on_stop_request
from mtrl.run.state import Resumable, Stream


class Session:
    """A run at work in its directory; a stream, such as a replay buffer, is checkpointed piece by piece.

    Attributes:
        total: steps of the whole run.
        step: how many steps are done; the algorithm counts them.
        seconds: of work up to the last `clock`, those before a restart included.
        counters: what was dropped or repaired so far, for a summary.
        metrics: where to log, while it is `running`.
        progress: what to show, while it is `running`.
    """

    metrics: MetricsWriter
    progress: TrainingProgress
    _algorithm: Resumable

    def __init__(
        self, run: RunDirectory, total: int, *, stream: Stream | None = None, show_progress: bool = True
    ) -> None:
        self.run, self.total = run, total
        self.step = 0
        self.seconds = self._started = 0.0
        self.counters = dict.fromkeys(("resumes", "checkpoints_passed_over", "metrics_dropped", "metrics_missing"), 0)
        self._stream, self._show_progress = stream, show_progress
        self._signals: list[int] = []

    @contextmanager
    def running(self, algorithm: Resumable) -> Iterator[bool]:
        """The time in which an algorithm works; yields whether it was restored first, from a checkpoint.

        Raises `RunError` if there are checkpoints, but none is intact and of this run.
        """
        self._algorithm = algorithm
        loaded = self.run.checkpoints.load(self._stream)
        entries = [0, 0] if loaded is None else self._restore(loaded[1])
        self.metrics = MetricsWriter(self.run.path, self.step, entries, self.run.config)
        self.counters["metrics_dropped"] += self.metrics.dropped
        self.counters["metrics_missing"] += self.metrics.missing
        self.progress = TrainingProgress(self.total, self.step, enabled=self._show_progress)
        self._started = time.monotonic() - self.seconds
        with closing(self.metrics), on_stop_request(self._signals.append), self.progress.bar:
            if loaded is not None:
                self.checkpoint()  # what was counted lasts, should this part not reach the next one
            yield loaded is not None
            self.clock()

    def _restore(self, state: dict[str, Any]) -> list[int]:
        """Goes on from a checkpoint, which can be whole and another run's; returns its numbers of metrics entries."""
        checkpoints = self.run.checkpoints
        try:
            self.step, self.seconds, self.counters = state["step"], state["seconds"], dict(state["counters"])
            entries = list(state["metrics_entries"])
            self._algorithm.load_state_dict(state)
        except (InputError, RunError):
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RunError(f"the checkpoint in {checkpoints.directory} is not one of this run ({reason})") from error
        self.counters["resumes"] += 1
        self.counters["checkpoints_passed_over"] += checkpoints.passed_over
        checkpoints.discard_after(self.step)
        return entries

    def clock(self) -> float:
        """Seconds of work so far, those before a restart included."""
        self.seconds = time.monotonic() - self._started
        return self.seconds

    def checkpoint(self) -> None:
        """Writes a checkpoint of this moment; all that was logged is on the disk before it."""
        self.clock()
        self.metrics.flush()
        own = {"step": self.step, "seconds": self.seconds, "counters": self.counters}
        state = own | {"metrics_entries": self.metrics.entries} | self._algorithm.state_dict()
        self.run.checkpoints.save(self.step, state, self._stream)

    def stop_if_asked(self, where: str) -> None:
        """Raises `Interrupted`, after a checkpoint, if a signal has asked; ``where``: how far, e.g. ``"at step 3"``."""
        if self._signals:
            self.checkpoint()
            raise Interrupted(self._signals[0], where)
