"""Ways of combining per-task gradients, by name: every file of this folder that registers one is found.

Example:
    >>> from mtrl import combiners
    >>> combiner = combiners.make("unitary", num_tasks=3)
"""

from typing import Any, get_args

from mtrl.combiners.base import Combiner, GramianCombiner, LossCombiner, Needs, NegativeLossError
from mtrl.combiners.solvers import Array
from mtrl.combiners.wrappers import wrapped
from mtrl.errors import unknown_name
from mtrl.ranges import options_of
from mtrl.registry import Registry

__all__ = [
    "WRAPPERS",
    "Array",
    "Combiner",
    "GramianCombiner",
    "LossCombiner",
    "Needs",
    "NegativeLossError",
    "get",
    "make",
    "names",
    "register",
]


def _admit(name: str, cls: type[Combiner]) -> type[Combiner]:
    if (needs := getattr(cls, "needs", None)) not in get_args(Needs):
        raise unknown_name(f"needs of combiner {name}", needs, get_args(Needs))
    cls.name = name
    return cls


register: Registry[type[Combiner]] = Registry("combiner", __name__, _admit)
"""Makes a class the combiner of a name, everywhere: ``@register("mine")`` above it is all that it takes."""
WRAPPERS = {name: option for name, option in options_of(wrapped).items() if name != "rescale"}
"""The options of `wrapped`, which every method takes beside its own."""
names = register.names
"""``names()``: every registered name, sorted."""
get = register.get
"""``get(name)``: the class of that name; `InputError` with the nearest one where there is none."""


def make(name: str, num_tasks: int, seed: int = 0, **options: Any) -> Combiner:
    """Makes the combiner registered under a name, under the wrappers that the options ask for.

    See `Combiner` for its arguments, `mtrl.combiners.wrappers.wrapped` for those of wrappers, and both for what they
    raise.
    """
    wrapping = {option: options.pop(option) for option in WRAPPERS if option in options}
    if all(value == WRAPPERS[option].default for option, value in wrapping.items()):
        return get(name)(num_tasks, seed=seed, **options)
    rescale = options.pop("rescale", False)
    return wrapped(get(name)(num_tasks, seed=seed, **options), rescale=rescale, **wrapping)
