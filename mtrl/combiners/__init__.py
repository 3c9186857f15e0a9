"""Ways of combining per-task gradients, by name: every file of this folder that registers one is found.

>>> from mtrl import combiners
>>> combiner = combiners.make("unitary", num_tasks=3)
"""

from typing import Any, get_args

from mtrl.combiners.base import Combiner, GramianCombiner, LossCombiner, Needs
from mtrl.combiners.solvers import Array
from mtrl.errors import unknown_name
from mtrl.registry import Registry

__all__ = ["Array", "Combiner", "GramianCombiner", "LossCombiner", "Needs", "get", "make", "names", "register"]


def _admit(name: str, cls: type[Combiner]) -> type[Combiner]:
    if (needs := getattr(cls, "needs", None)) not in get_args(Needs):
        raise unknown_name(f"needs of combiner {name}", needs, get_args(Needs))
    cls.name = name
    return cls


register: Registry[type[Combiner]] = Registry("combiner", __name__, _admit)
"""Makes a class the combiner of a name, everywhere: ``@register("mine")`` above it is all that it takes."""
names = register.names
get = register.get


def make(name: str, num_tasks: int, seed: int = 0, **options: Any) -> Combiner:
    """Makes the combiner registered under a name; see `Combiner` for the arguments and what it raises."""
    return get(name)(num_tasks, seed=seed, **options)
