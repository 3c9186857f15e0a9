"""Methods, one a file: what a batch does to a model. What a combiner makes of the gradients is the one ``combined``."""

from typing import Any

from mtrl.ranges import checked
from mtrl.registry import Registry
from mtrl.supervised.updates import Setup, Update
from mtrl.task_groups import refuse_combiner

method: Registry[type[Update]] = Registry("method", __name__, checked("method"))
"""The decorator of an `Update`; its options, refused out of range, are what its constructor takes beside the setup."""


def make(name: str, setup: Setup, **options: Any) -> Update:
    """Makes the method of a name; the model that it trains is ``update.model``.

    Raises `InputError` on an unknown name or option, a combiner for a method without, or what the method refuses.
    """
    made = method.get(name)
    if not made.combines:
        refuse_combiner(name, setup.combiner.name)
    return made(setup, **options)
