"""Ways of combining per-task gradients, by name: every file of this folder that registers one is found.

>>> from mtrl import combiners
>>> combiner = combiners.make("unitary", num_tasks=3)
"""

from typing import Any, get_args

from mtrl.combiners.base import Combiner, Needs
from mtrl.errors import unknown_name
from mtrl.registry import Registry

__all__ = ["Combiner", "Needs", "get", "make", "name_of", "names", "options", "register"]


def _admit(name: str, cls: type[Combiner]) -> type[Combiner]:
    if (needs := getattr(cls, "needs", None)) not in get_args(Needs):
        raise unknown_name(f"needs of combiner {name}", needs, get_args(Needs))
    cls.registered_name = name
    return cls


register: Registry[type[Combiner]] = Registry("combiner", __name__, _admit)
"""Makes a class the combiner of a name, everywhere: ``@register("mine")`` above it is all that it takes."""
names = register.names
get = register.get


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
