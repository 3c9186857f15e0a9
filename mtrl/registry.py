"""Things by name, each in a file of its own with one decorator: no list of imports knows of it."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mtrl.errors import InputError, unknown_name

Entry = TypeVar("Entry")
Made = TypeVar("Made", bound=Callable[..., Any])


class Registry(Generic[Entry]):
    """Functions or classes by name; an instance is the decorator that adds one: ``@register("mine")``.

    Args:
        kind: what the names stand for, for messages.
        package: its modules are imported before a name is looked up. What others register is found too.
        admit: called with the name and what is to be registered, which it may refuse; what it returns is registered.
    """

    def __init__(self, kind: str, package: str, admit: Callable[[str, Any], Entry] = lambda name, entry: entry) -> None:
        self._kind, self._package, self._admit = kind, package, admit
        self._entries: dict[str, Entry] = {}

    def __call__(self, name: str) -> Callable[[Made], Made]:
        """Makes what it decorates that of a name; `InputError` if that is no word or has been given away."""

        def registered(made: Made) -> Made:
            if not name.isidentifier():
                raise InputError(f"{self._kind} '{name}': expected a name of letters, digits and underscores")
            if name in self._entries:
                raise InputError(f"{self._kind} '{name}' is registered twice: {self._entries[name].__module__} has it")
            entry: Any = self._admit(name, made)
            self._entries[name] = entry
            return entry  # type: ignore[no-any-return]

        return registered

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__, f"{self._package}."):
            importlib.import_module(module.name)
        return sorted(self._entries)

    def get(self, name: str) -> Entry:
        """What is registered under a name; `InputError` with the nearest name if nothing is."""
        if name not in self._entries and name not in self.names():
            raise unknown_name(self._kind, name, self._entries)
        return self._entries[name]
