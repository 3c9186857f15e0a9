"""Ranges of options, declared beside them: ``discount: Annotated[float, Within("[0, 1]")] = 0.99``."""

import dataclasses
import functools
import inspect
import numbers
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
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


Finite = Annotated[float, Within("(-inf, inf)")]
NotNegative = Annotated[float, Within("[0, inf)")]
Positive = Annotated[float, Within("(0, inf)")]
PositiveOrInfinite = Annotated[float, Within("(0, inf]")]
Fraction = Annotated[float, Within("[0, 1]")]
PositiveFraction = Annotated[float, Within("(0, 1]")]
FractionBelowOne = Annotated[float, Within("[0, 1)")]
Count = Annotated[int, Within("[1, inf)")]
Index = Annotated[int, Within("[0, inf)")]
Seed = Annotated[int, Within("[0, 2147483648)")]


def check(name: str, value: Any, annotation: Any) -> None:
    """Requires of a value what its annotation says; one without a range says nothing.

    Args:
        name: what the message calls it, e.g. ``"agent.discount"``.
        value: what was given.
        annotation: a type; read are ``Literal``, ``Annotated`` with `Within` (or with ``Literal``, where others than
            Python read the type), ``bool``, and ``None`` and lists of these.

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
    elif origin is Annotated:
        _check_limit(name, value, *arguments)
    elif origin is Literal and value not in arguments:
        raise unknown_name(name, value, map(str, arguments))
    elif annotation is bool and not isinstance(value, bool):
        raise InputError(f"{name}: expected true or false, got {value!r}")


def _check_limit(name: str, value: Any, kind: type, limit: object) -> None:
    if not isinstance(limit, Within):
        check(name, value, limit)
        return
    wanted: Any = numbers.Integral if kind is int else numbers.Real  # NumPy's too
    if isinstance(value, bool) or not isinstance(value, wanted) or value not in limit:
        article = "an integer of" if kind is int else "a number in"
        raise InputError(f"{name}: expected {article} {_described_limit(kind, limit)}, got {value!r}")


def check_fields(config: Any, prefix: str = "") -> None:
    """`check` of a dataclass's fields, and of those of dataclasses in them; ``prefix`` precedes names in messages."""
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


def options_of(maker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a function or class takes by keyword alone: its options, each with its ``default`` and ``annotation``."""
    parameters = inspect.signature(maker, eval_str=True).parameters
    return {name: option for name, option in parameters.items() if option.kind is option.KEYWORD_ONLY}


def refuse_unknown(name: str, options: Iterable[str], function: Callable[..., Any]) -> None:
    """Raises `InputError` on the first option that is no parameter of the function; it offers the nearest."""
    valid = inspect.signature(function).parameters.keys()
    for option in options:
        if option not in valid:
            raise unknown_name(f"option of {name}", option, valid - {"self", "setup", "tasks", "dropout"})


def checked(kind: str) -> Callable[[str, Any], Any]:
    """For a `mtrl.registry.Registry`: every call of what is registered checks its options.

    Messages call an option ``<kind>.<option>``, as the command line does.
    """

    def admit(name: str, maker: Any) -> Any:
        function = maker.__init__ if isinstance(maker, type) else maker  # type: ignore[misc]

        @functools.wraps(function)
        def checking(*args: Any, **options: Any) -> Any:
            refuse_unknown(name, options, function)
            check_arguments(function, options, f"{kind}.")
            return function(*args, **options)

        if not isinstance(maker, type):
            return checking
        maker.__init__ = checking  # type: ignore[misc]
        return maker

    return admit


def described(annotation: Any) -> str:
    """What an annotation allows, in few words for a table: ``[0, 1]``, ``at least 1``, ``sum or mean``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(filter(None, map(described, arguments)))
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is Annotated:
        return _described_limit(*arguments)
    if annotation is bool:
        return "true or false"
    return f"each {entries}" if origin in (list, Sequence) and (entries := described(arguments[0])) else ""


def _described_limit(kind: type, limit: object) -> str:
    if not isinstance(limit, Within):
        return described(limit)
    if kind is not int:
        return limit.interval
    low, high = limit.interval[1:-1].split(", ")
    return f"at least {low}" + ("" if high == "inf" else f" and below {int(high):,}")
