"""The combiners by name."""

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from mtrl.combiners.base import Combiner, Needs
from mtrl.errors import InputError, unknown_name

Method = TypeVar("Method", bound=type[Combiner])

_REGISTRY: dict[str, type[Combiner]] = {}


def register(name: str) -> Callable[[Method], Method]:
    """Makes a class the combiner of a name, everywhere: ``@register("mine")`` above it is all that it takes.

    Args:
        name: a word of letters, digits and underscores.

    Raises:
        InputError: if the name is no such word or has been given away, or the class does not say what it `needs`.
    """

    def registered(cls: Method) -> Method:
        if not name.isidentifier():
            raise InputError(f"combiner '{name}': expected a name of letters, digits and underscores")
        if name in _REGISTRY:
            first = _REGISTRY[name]
            raise InputError(f"combiner '{name}' is registered twice: {first.__module__}.{first.__qualname__} has it")
        if (needs := getattr(cls, "needs", None)) not in get_args(Needs):
            raise unknown_name(f"needs of combiner {name}", needs, get_args(Needs))
        cls.registered_name = name
        _REGISTRY[name] = cls
        return cls

    return registered


def names() -> list[str]:
    """Every registered name, sorted."""
    return sorted(_REGISTRY)


def get(name: str) -> type[Combiner]:
    """The class registered under a name.

    Raises:
        InputError: if there is none; the message offers the nearest name.
    """
    if name not in _REGISTRY:
        raise unknown_name("combiner", name, _REGISTRY)
    return _REGISTRY[name]


def name_of(cls: type[Combiner]) -> str:
    """The registered name of a class, or the class's own name where it is not registered."""
    return cls.registered_name


def options(name: str) -> dict[str, Any]:
    """The method's options and their defaults (``num_tasks`` and ``seed`` left out).

    Raises:
        InputError: if the name is unknown.
    """
    return {"rescale": False} | {option: found.default for option, found in get(name).options().items()}


def make(name: str, num_tasks: int, seed: int = 0, **options_: Any) -> Combiner:
    """Makes the combiner registered under ``name``.

    Args:
        name: one of `names`.
        num_tasks: the number of tasks T.
        seed: seeds the method's own random generator.
        **options_: ``rescale`` (see `Combiner`) and the method's own, see `options`.

    Raises:
        InputError: on an unknown name or option, or an option's value out of range.
    """
    return get(name)(num_tasks, seed=seed, **options_)
