"""Checks of the methods' options."""

from collections.abc import Sequence

from mtrl.errors import InputError, unknown_name


def check_interval(method: str, option: str, value: object, interval: str) -> None:
    """Requires a number in an interval.

    Args:
        method: the method's name, for the message.
        option: the option's name, for the message.
        value: what was given.
        interval: in the usual notation, e.g. ``"(0, 1]"`` or ``"[0, inf)"``.

    Raises:
        InputError: if the value is not a number or lies outside.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
    above = low <= number if interval[0] == "[" else low < number
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below):
        raise InputError(f"{method}: {option} must be a number in {interval}, got {value!r}")


def check_count(method: str, option: str, value: object) -> None:
    """Requires a positive integer.

    Args:
        method: the method's name, for the message.
        option: the option's name, for the message.
        value: what was given.

    Raises:
        InputError: if the value is anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{method}: {option} must be a positive integer, got {value!r}")


def check_choice(method: str, option: str, value: object, choices: Sequence[str]) -> None:
    """Requires one of a few words.

    Args:
        method: the method's name, for the message.
        option: the option's name, for the message.
        value: what was given.
        choices: the valid words.

    Raises:
        InputError: if the value is none of them; the message offers the nearest.
    """
    if value not in choices:
        raise unknown_name(f"{option} of {method}", value, choices)
