"""What Nash-MTL and FairGrad share: an equation that has no solution where training has arrived."""

import logging

import numpy as np

from mtrl.combiners.base import GramianCombiner
from mtrl.combiners.solvers import Array, NoSolutionError, power_balance


class PowerBalance(GramianCombiner):
    """Base of the methods that solve ``G w = w^(-p)``, elementwise power, for positive ``w``.

    At a Pareto-stationary point, where a convex combination of the gradients vanishes to precision, there is no such
    ``w``: the weights are 0 and so is the update, `stationary` is set, and the first time that is logged as a warning.
    """

    _told = False

    def _balance(self, norms: Array, cosines: Array, power: float, precision: float) -> Array:
        """The solution for positive norms, or zeros."""
        try:
            return power_balance(norms, cosines, power, precision)
        except NoSolutionError as error:
            self.stationary = True
            if not self._told:
                self._told = True
                logging.getLogger(__name__).warning("warning: %s makes no update where %s", self.name, error)
            return np.zeros_like(norms)
