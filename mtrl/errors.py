"""What is raised when the user, and not the program, has to change something."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value from outside (configuration, file, argument) is unusable; the message is one line for the user."""


class RunError(RuntimeError):
    """A run cannot go on (dead worker, full disk, non-finite loss); the message is one line for the user."""


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> InputError:
    """The error for a name that is not among the valid ones; it offers the nearest.

    Args:
        kind: what the name stands for, e.g. ``"combiner"``.
        name: what was given.
        valid: every accepted name.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    expected = f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(names)}"
    return InputError(f"unknown {kind} '{name}': {expected}")


class Interrupted(Exception):  # noqa: N818 - not an error: the user or the scheduler asked for it
    """The run was asked to stop and wrote a checkpoint first.

    Attributes:
        signal_number: which signal asked.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
