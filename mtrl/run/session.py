"""What every long run does beside its algorithm: it can be stopped at any moment, and goes on as if it had not been."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import torch

from mtrl import __version__
from mtrl.errors import InputError, Interrupted, RunError
from mtrl.run.directory import RunDirectory
from mtrl.run.machine import conditions
from mtrl.run.metrics import MetricsWriter
from mtrl.run.processes import Processes
from mtrl.run.progress import TrainingProgress
from mtrl.run.signals import on_stop_request
from mtrl.run.state import Resumable, Stream


class Session:
    """A run at work in its directory; a stream, such as a replay buffer, is checkpointed piece by piece.

    Of several processes that train one model, the first one's directory is the run's: its checkpoints are what all go
    on from, and no other writes any. They stop together.

    Attributes:
        total: steps of the whole run.
        step: how many steps are done; the algorithm counts them.
        seconds: of work up to the last `clock`, those before a restart included.
        counters: what was dropped, repaired or left out so far, for a summary.
        metrics: where to log, while it is `running`.
        progress: what to show, while it is `running`.
    """

    metrics: MetricsWriter
    progress: TrainingProgress
    _algorithm: Resumable

    def __init__(
        self,
        run: RunDirectory,
        total: int,
        *,
        stream: Stream | None = None,
        device: torch.device | None = None,
        show_progress: bool = True,
        processes: Processes | None = None,
    ) -> None:
        self.run, self.total = run, total
        self.processes = processes or Processes()
        self._device = device
        self.step = 0
        self.seconds = self._started = 0.0
        self.counters = dict.fromkeys(("resumes", "checkpoints_passed_over", "metrics_dropped", "metrics_missing"), 0)
        self._stream, self._show_progress = stream, show_progress
        self._signals: list[int] = []

    @contextmanager
    def running(self, algorithm: Resumable) -> Iterator[bool]:
        """The time in which an algorithm works; yields whether it was restored first, from a checkpoint.

        A finished run that has become longer stops being finished here. Raises `RunError` if there are checkpoints, but
        none is intact and of this run, or none at all of a finished one.
        """
        self._algorithm, longer = algorithm, self.run.longer
        loaded = self.processes.shared(self.run.checkpoints.load(self._stream))
        self._conditions = conditions(self._device)
        entries, before = ([0, 0], {}) if loaded is None else self._restore(loaded[1])
        if longer:
            if loaded is None:
                raise RunError(f"'{self.run.path}' has no checkpoint to go on from: choose another run_dir")
            self.run.reopen()
        logged = entries if self.processes.first else [0, 0]
        self.metrics = MetricsWriter(self.run.path, self.step, logged, self.run.config)
        # Of a finished run, what only its end had logged goes: a longer one would not have.
        self.counters["metrics_dropped"] += 0 if longer else self.metrics.dropped
        self.counters["metrics_missing"] += self.metrics.missing
        self.progress = TrainingProgress(self.total, self.step, enabled=self._show_progress)
        self._started = time.monotonic() - self.seconds
        with closing(self.metrics), on_stop_request(self._signals.append), self.progress.bar:
            if loaded is not None:
                self._say_what_changed(before)
                self.checkpoint()  # what was counted lasts, should this part not reach the next one
            yield loaded is not None
            self.clock()

    def _restore(self, state: dict[str, Any]) -> tuple[list[int], dict[str, str]]:
        """Goes on from a checkpoint, which can be whole and another run's or of an older version.

        Returns:
            Its numbers of metrics entries, and the conditions that it was written under.
        """
        checkpoints = self.run.checkpoints
        try:
            self.step, self.seconds, self.counters = state["step"], state["seconds"], dict(state["counters"])
            entries, before = list(state["metrics_entries"]), dict(state["conditions"])
            self._algorithm.load_state_dict(state)
            if checkpoints.stream_dropped and self._stream is not None:
                self._stream.clear()
        except (InputError, RunError):
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            written = state.get("version", "before 0.2.0") if isinstance(state, dict) else __version__
            other = "" if written == __version__ else f"; it is of mtrl {written}, this is {__version__}"
            message = f"the checkpoint in {checkpoints.directory} is not one of this run ({reason}){other}"
            raise RunError(message) from error
        self.counters["resumes"] += 1
        self.counters["checkpoints_passed_over"] += checkpoints.passed_over
        checkpoints.discard_after(self.step)
        return entries, before

    def _say_what_changed(self, before: dict[str, str]) -> None:
        for line in self.run.moved:
            self.say(line)
        now = self._conditions
        changed = [f"{name} {now[name]} (was {was})" for name, was in before.items() if now.get(name, was) != was]
        if changed:
            self.say(
                f"from step {self.step:,} on this run has {', '.join(changed)}: its random numbers and rounding may no "
                "longer be those that it would have had"
            )

    def say(self, line: str) -> None:
        """Tells the user something in one line, above the progress."""
        self.progress.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def clock(self) -> float:
        """Seconds of work so far, those before a restart included."""
        self.seconds = time.monotonic() - self._started
        return self.seconds

    def count(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Adds what a step's metrics hold by ``count/<counter>`` to the counters; returns the others."""
        for key, value in metrics.items():
            if key.startswith("count/"):
                counter = key.removeprefix("count/")
                self.counters[counter] = self.counters.get(counter, 0) + int(value)
        return {key: value for key, value in metrics.items() if not key.startswith("count/")}

    def checkpoint(self) -> None:
        """Writes a checkpoint of this moment; all that was logged is on the disk before it."""
        self.clock()
        self.metrics.flush()
        own = {"step": self.step, "seconds": self.seconds, "counters": self.counters, "conditions": self._conditions}
        own |= {"version": __version__}  # for whoever cannot read it
        state = own | {"metrics_entries": self.metrics.entries} | self._algorithm.state_dict()
        if self.processes.first:
            self.run.checkpoints.save(self.step, state, self._stream)

    def begin(self) -> None:
        """To be called when a run begins: where it starts from may be gone later, so that is a first checkpoint."""
        if self.run.config.get("init_from") is not None:
            self.checkpoint()

    def stop_if_asked(self, where: str, *, save: bool = True) -> None:
        """Raises `Interrupted`, after a checkpoint, if a signal has asked; ``where``: how far, e.g. ``"at step 3"``.

        All processes stop if one of them was asked.
        """
        asked = int(self.processes.largest(torch.tensor(self._signals[0] if self._signals else 0)))
        if asked:
            if save:
                self.checkpoint()
            raise Interrupted(asked, where)
