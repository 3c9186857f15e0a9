"""Ways of combining per-task gradients, by name: every file of this folder that registers one is found.

>>> from mtrl import combiners
>>> combiner = combiners.make("unitary", num_tasks=3)
"""

import importlib
import pkgutil

from mtrl.combiners.base import Combiner, Needs
from mtrl.combiners.registry import get, make, name_of, names, options, register

__all__ = ["Combiner", "Needs", "get", "make", "name_of", "names", "options", "register"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
