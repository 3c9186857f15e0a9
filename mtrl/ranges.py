"""Ranges of options, declared beside them: ``discount: Annotated[float, Within("[0, 1]")] = 0.99``."""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mtrl.errors import InputError, unknown_name


@dataclasses.dataclass(frozen=True)
class Within:
    """A number in an interval, e.g. ``"(0, 1]"`` or ``"[0, inf)"``."""

    interval: str

    def __contains__(self, number: float) -> bool:
        """Whether the number, which NaN is not, lies in the interval."""
        low, high = (float(end) for end in self.interval[1:-1].split(","))
        above = low <= number if self.interval[0] == "[" else low < number
        return above and (number <= high if self.interval[-1] == "]" else number < high)


class OneOf:
    """One of a few words; ``Literal`` says the same where nothing but Python reads the annotation."""

    def __init__(self, *words: str) -> None:
        self.words = words


Finite = Annotated[float, Within("(-inf, inf)")]
NotNegative = Annotated[float, Within("[0, inf)")]
Positive = Annotated[float, Within("(0, inf)")]
Fraction = Annotated[float, Within("[0, 1]")]
Count = Annotated[int, Within("[1, inf)")]
Index = Annotated[int, Within("[0, inf)")]
Seed = Annotated[int, Within("[0, 2147483648)")]


def check(name: str, value: Any, annotation: Any) -> None:
    """Requires of a value what its annotation says; one without a range says nothing.

    Args:
        name: what the message calls it, e.g. ``"agent.discount"``.
        value: what was given.
        annotation: a type; ``Annotated`` with `Within` or `OneOf`, ``Literal``, ``bool``, ``None`` and lists of these
            are read.

    Raises:
        InputError: if the value lies outside; the message says what was expected.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for argument in () if value is None and types.NoneType in arguments else arguments:
            check(name, value, argument)
    elif origin is list and isinstance(value, list):
        for entry in value:
            check(name, entry, arguments[0])
    elif origin is Literal:
        _check_word(name, value, arguments)
    elif origin is Annotated:
        for limit in arguments[1:]:
            _check_limit(name, value, arguments[0], limit)
    elif annotation is bool and not isinstance(value, bool):
        raise InputError(f"{name}: expected true or false, got {value!r}")


def _check_limit(name: str, value: Any, kind: type, limit: object) -> None:
    if isinstance(limit, OneOf):
        _check_word(name, value, limit.words)
    elif isinstance(limit, Within) and not (_is_a(value, kind) and value in limit):
        raise InputError(f"{name}: expected {_told(kind, limit)}, got {value!r}")


def _check_word(name: str, value: object, words: Sequence[object]) -> None:
    if value not in words:
        raise unknown_name(name, value, map(str, words))


def check_fields(config: Any, prefix: str = "") -> None:
    """`check` of every field of a dataclass, and of the dataclasses in its fields.

    Args:
        config: the dataclass.
        prefix: stands before a field's name in messages, e.g. ``"agent."``.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_fields(value, f"{prefix}{field.name}.")
        else:
            check(f"{prefix}{field.name}", value, hints[field.name])


def check_arguments(function: Callable[..., Any], values: Mapping[str, object], prefix: str = "") -> None:
    """`check` of arguments by the annotations of a function's parameters of the same names."""
    hints = get_type_hints(function, include_extras=True)
    for name, value in values.items():
        check(f"{prefix}{name}", value, hints.get(name, Any))


def described(annotation: Any) -> str:
    """What an annotation allows, in few words for a table: ``[0, 1]``, ``at least 1``, ``sum or mean``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(filter(None, map(described, arguments)))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is Annotated:
        return " and ".join(_allowed(arguments[0], limit) for limit in arguments[1:])
    if annotation is bool:
        return "true or false"
    return f"each {entries}" if origin in (list, Sequence) and (entries := described(arguments[0])) else ""


def _allowed(kind: type, limit: object) -> str:
    if isinstance(limit, OneOf):
        return " or ".join(limit.words)
    assert isinstance(limit, Within)
    return _told(kind, limit).removeprefix("a number in ").removeprefix("an integer of ")


def _is_a(value: object, kind: type) -> bool:
    return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)


def _told(kind: type, limit: Within) -> str:
    low, high = limit.interval[1:-1].split(", ")
    if kind is int:
        return f"an integer of at least {low}" + ("" if high == "inf" else f" and below {int(high):,}")
    return f"a number in {limit.interval}"
