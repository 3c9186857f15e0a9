"""Ways of using any method that has task weights, one a file; they compose."""

from typing import get_type_hints

from mtrl.combiners.base import Combiner, cpu_by_default
from mtrl.combiners.wrappers.every import Every
from mtrl.combiners.wrappers.logarithm import Logarithm
from mtrl.combiners.wrappers.smooth import Smooth
from mtrl.ranges import Count, FractionBelowOne, check

__all__ = ["Every", "Logarithm", "Smooth", "wrapped"]


@cpu_by_default
def wrapped(
    combiner: Combiner, *, every: Count = 1, smooth: FractionBelowOne = 0.0, log: bool = False, rescale: bool = False
) -> Combiner:
    """A combiner under the wrappers that are asked for: `Logarithm` innermost, then `Smooth`, then `Every`.

    Args:
        combiner: made without ``rescale``.
        every: the period of `Every`; 1 leaves it out.
        smooth: the momentum of `Smooth`; 0 leaves it out.
        log: whether to add `Logarithm`.
        rescale: see `Combiner`; of the outermost.

    Raises:
        InputError: if an option is out of range, or the method has no task weights to work on.
    """
    for option, value in {"every": every, "smooth": smooth, "log": log}.items():
        check(f"{option} of {combiner.name}", value, get_type_hints(wrapped, include_extras=True)[option])
    if log:
        combiner = Logarithm(combiner)
    if smooth:
        combiner = Smooth(combiner, smooth)
    if every > 1:
        combiner = Every(combiner, every)
    combiner.rescale = rescale
    return combiner
