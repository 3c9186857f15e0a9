"""Options of benchmarks and methods: what can only be given by keyword, with defaults and ranges beside them."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from mtrl.errors import unknown_name
from mtrl.ranges import check_arguments


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


def options_of(maker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a function or class, each with its ``default``."""
    return {key: p for key, p in inspect.signature(maker).parameters.items() if p.kind is p.KEYWORD_ONLY}


def refuse_unknown(name: str, options: Iterable[str], function: Callable[..., Any]) -> None:
    """Raises `InputError` on the first option that is no parameter of the function; it offers the nearest."""
    valid = inspect.signature(function).parameters.keys()
    for option in options:
        if option not in valid:
            raise unknown_name(f"option of {name}", option, valid - {"self", "setup", "tasks", "dropout"})
