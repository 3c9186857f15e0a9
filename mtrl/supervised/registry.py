"""Benchmarks and methods by name: one file with one decorator is a new one, and no list of imports knows of it."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from mtrl.errors import InputError, unknown_name
from mtrl.ranges import check_arguments

Kind = TypeVar("Kind", bound=Callable[..., Any])
Maker = TypeVar("Maker", bound=Callable[..., Any])


class Registry(Generic[Kind]):
    """Functions or classes by name; an instance is the decorator that adds one: ``@method("mine")``.

    What can only be given by keyword are its options. Defaults and ranges (`mtrl.ranges`) stand beside them; the
    command line reads them there, and every call is checked.

    Args:
        kind: what the names stand for; messages call an option ``<kind>.<option>``, as the command line does.
        package: its modules are imported before a name is looked up. What other modules register is found too.
    """

    def __init__(self, kind: str, package: str) -> None:
        self._kind, self._package = kind, package
        self._makers: dict[str, Kind] = {}

    def __call__(self, name: str) -> Callable[[Maker], Maker]:
        """Registers a function or class.

        Raises:
            InputError: if the name has been given away.
        """

        def register(maker: Maker) -> Maker:
            if name in self._makers:
                raise InputError(f"{self._kind} '{name}' is registered twice: {self._makers[name].__module__} has it")
            function: Any = maker.__init__ if isinstance(maker, type) else maker  # type: ignore[misc]

            @functools.wraps(function)
            def checking(*args: Any, **options: Any) -> Any:
                check_arguments(function, options, f"{self._kind}.")
                return function(*args, **options)

            made: Any = checking
            if isinstance(maker, type):
                made, maker.__init__ = maker, checking  # type: ignore[misc]
            self._makers[name] = made
            return made  # type: ignore[no-any-return]

        return register

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__, f"{self._package}."):
            importlib.import_module(module.name)
        return sorted(self._makers)

    def get(self, name: str) -> Kind:
        """What is registered under a name.

        Raises:
            InputError: if nothing is; the message offers the nearest name.
        """
        if name not in self.names():
            raise unknown_name(self._kind, name, self._makers)
        return self._makers[name]

    def options(self, name: str) -> dict[str, Any]:
        """The options of a name and their defaults; ``inspect.Parameter.empty`` where there is none."""
        parameters = inspect.signature(self.get(name)).parameters
        return {key: p.default for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def refuse_unknown(name: str, options: Iterable[str], valid: Iterable[str]) -> None:
    """Raises `InputError` on the first option that is not valid; it offers the nearest."""
    for option in options:
        if option not in valid:
            raise unknown_name(f"option of {name}", option, valid)
