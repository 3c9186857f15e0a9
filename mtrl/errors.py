"""What is raised when the user, and not the program, has to change something."""

import difflib
import signal
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
    folded = {_folded(valid_name): valid_name for valid_name in names}
    near = [valid_name for valid_name in folded if valid_name.startswith(_folded(name))]
    if len(near) != 1:  # not short for one of them
        near = difflib.get_close_matches(_folded(name), folded, n=1, cutoff=0.4)
    expected = f"did you mean '{folded[near[0]]}'?" if near else f"valid: {', '.join(names)}"
    return InputError(f"unknown {kind} '{name}': {expected}")


def _folded(name: object) -> str:
    """As papers and code spell one name differently: PCGrad and pcgrad, Nash-MTL and nash_mtl."""
    return str(name).lower().replace("-", "_")


class Interrupted(Exception):  # noqa: N818 - not an error: the user or the scheduler asked for it
    """Work was asked to stop by a signal, and has saved what it goes on from; ``where`` says how far it was."""

    def __init__(self, signal_number: int, where: str = "") -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}{where and ' ' + where}; the same command goes on from there")
        self.signal_number = signal_number
