"""Benchmarks and methods by name: one file with one decorator is a new one, and no list of imports knows of it."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from mtrl.errors import InputError, unknown_name
from mtrl.ranges import check

Made = TypeVar("Made")
Maker = TypeVar("Maker", bound=Callable[..., Any])


class Registry(Generic[Made]):
    """Functions or classes by name; an instance is the decorator that adds one: ``@method("mine")``.

    A maker takes what it needs of that which all are offered, by the names of its parameters. Those that can only be
    given by keyword are its options: defaults and ranges (`mtrl.ranges`) stand beside them, and every call is checked.

    Args:
        kind: what the names stand for, for messages.
        package: its modules are imported before a name is looked up. What others register is found too.
    """

    def __init__(self, kind: str, package: str) -> None:
        self._kind, self._package = kind, package
        self._makers: dict[str, Callable[..., Made]] = {}

    def __call__(self, name: str) -> Callable[[Maker], Maker]:
        """Registers a function or class under a name.

        Raises:
            InputError: if the name has been given away.
        """

        def register(maker: Maker) -> Maker:
            if name in self._makers:
                raise InputError(f"{self._kind} '{name}' is registered twice: {self._makers[name].__module__} has it")
            checked = _checked(name, maker)
            self._makers[name] = checked
            return checked

        return register

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__, f"{self._package}."):
            importlib.import_module(module.name)
        return sorted(self._makers)

    def get(self, name: str) -> Callable[..., Made]:
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


def call(name: str, maker: Callable[..., Made], offered: Mapping[str, Any], options: Mapping[str, Any]) -> Made:
    """What a maker makes of those offered arguments that it has a parameter for, and of its options.

    Args:
        name: the maker's, for messages.
        maker: the function or class.
        offered: arguments by name; None is the maker's own default.
        options: arguments by name.

    Raises:
        InputError: on an unknown option; the message offers the nearest name.
    """
    parameters = inspect.signature(maker).parameters
    own = parameters.keys() - offered.keys()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            if option not in own:
                raise unknown_name(f"option of {name}", option, own)
    taken = {key: value for key, value in offered.items() if key in parameters and value is not None}
    return maker(**taken, **options)


def _checked(name: str, maker: Maker) -> Maker:
    """The maker, whose arguments are compared with their annotations whoever calls it."""
    function: Callable[..., Any] = maker.__init__ if isinstance(maker, type) else maker  # type: ignore[misc]
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checking(*args: Any, **options: Any) -> Any:
        for key, value in signature.bind(*args, **options).arguments.items():
            parameter = signature.parameters[key]
            option = parameter.kind is parameter.KEYWORD_ONLY
            check(f"{key} of {name}" if option else key, value, parameter.annotation)
        return function(*args, **options)

    if not isinstance(maker, type):
        return checking  # type: ignore[return-value]
    maker.__init__ = checking  # type: ignore[misc]
    return maker
