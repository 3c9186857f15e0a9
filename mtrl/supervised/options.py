"""Options of benchmarks and methods: what can only be given by keyword, with defaults and ranges beside them."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from mtrl.errors import unknown_name
from mtrl.ranges import check_arguments


def checked(kind: str) -> Callable[[str, Any], Any]:
    """For a `mtrl.registry.Registry`: every call of what is registered checks its options.

    Args:
        kind: messages call an option ``<kind>.<option>``, as the command line does.
    """

    def admit(_: str, maker: Any) -> Any:
        function = maker.__init__ if isinstance(maker, type) else maker  # type: ignore[misc]

        @functools.wraps(function)
        def checking(*args: Any, **options: Any) -> Any:
            check_arguments(function, options, f"{kind}.")
            return function(*args, **options)

        if not isinstance(maker, type):
            return checking
        maker.__init__ = checking  # type: ignore[misc]
        return maker

    return admit


def options_of(maker: Callable[..., Any]) -> dict[str, Any]:
    """The options of a function or class and their defaults; ``inspect.Parameter.empty`` where there is none."""
    parameters = inspect.signature(maker).parameters
    return {key: p.default for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def refuse_unknown(name: str, options: Iterable[str], valid: Iterable[str]) -> None:
    """Raises `InputError` on the first option that is not valid; it offers the nearest."""
    for option in options:
        if option not in valid:
            raise unknown_name(f"option of {name}", option, valid)
