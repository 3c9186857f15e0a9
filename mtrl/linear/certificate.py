"""Can linear scalarization reach a given point? Decided at width 1, without sampling."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtrl.errors import InputError
from mtrl.linear.data import TOLERANCE, Array, Problem
from mtrl.linear.surface import symmetric_root
from mtrl.linear.verdict import cosines


@dataclass(frozen=True)
class Certificate:
    """Whether a point of width-1 models can be reached by linear scalarization.

    Attributes:
        outcome: ``reachable``; ``unreachable`` (stationary for some weights, but no weights have it as a minimiser);
            ``dominated`` (models close by are better in every target); or ``infeasible``.
        reach: how many times as much could be explained of each target: 1 on the surface, more inside, where every
            point is dominated by that on the surface that is judged, less than 1 if infeasible.
        weights: ``[k]``, those that make the point stationary, summing to 1; None where there are none.
        shortfall: how much more (relative) the best model for these weights explains, weighted; 0 if reachable.
    """

    outcome: str
    reach: float
    weights: Array | None = None
    shortfall: float = 0.0


def certificate(gramian: Array, explained: Array, tolerance: float = 1e-6) -> Certificate:
    """Decides at width 1 whether a point can be reached, without sampling.

    With ``u_i = y'_i^T z`` for the unit vector z that the model projects on, ``v_i = u_i^2`` is explained and
    ``u^T G^-1 u = 1``. The point is stationary for the weights ``l_i = (G^-1 u)_i / u_i`` alone; it is reached if they
    are non-negative and the top eigenvalue of ``G diag(l)`` is 1, the value that the point has itself.

    A point inside is first moved along its ray to the outermost surface, for which signs of u are tried out.

    Args:
        gramian: ``[k, k]``, invertible.
        explained: ``[k]``, the mean squares.
        tolerance: relative; how far outside the surface a point may be, and how small a shortfall counts as none.

    Raises:
        InputError: if G is singular, or what is explained is negative or 0 throughout.
    """
    k = len(gramian)
    if np.linalg.matrix_rank(cosines(gramian), hermitian=True) < k:
        raise InputError("the certificate needs linearly independent targets")
    if (explained < 0).any() or not explained.any():
        raise InputError("the point explains nothing, or less than nothing, of some target")
    inverse = np.linalg.inv(gramian)
    magnitude = np.sqrt(explained)
    patterns = 1 - 2 * ((np.arange(2 ** (k - 1))[:, None] >> np.arange(k)) & 1)
    candidates = patterns * magnitude
    forms = np.einsum("mi,ij,mj->m", candidates, inverse, candidates)
    best = int(forms.argmin())
    reach = float(1 / forms[best])
    if reach < 1 - tolerance:
        return Certificate("infeasible", reach)
    u = candidates[best] * np.sqrt(reach)
    slope = inverse @ u
    zero = magnitude <= TOLERANCE * magnitude.max()
    weights = np.divide(slope, u, out=np.zeros(k), where=~zero)
    moves = np.abs(slope[zero]) > tolerance * np.abs(slope).max()
    if moves.any() or (weights < -tolerance * np.abs(weights).max()).any():
        return Certificate("dominated", reach)
    weights = weights.clip(min=0)
    factor = symmetric_root(gramian)
    shortfall = float(np.linalg.eigvalsh(factor * weights @ factor)[-1] - 1)
    outcome = "reachable" if shortfall <= tolerance else "unreachable"
    return Certificate(outcome, reach, weights / weights.sum(), max(shortfall, 0.0))


def certified(problem: Problem, errors: Sequence[float]) -> str:
    """Whether a point of mean squared errors can be reached, in words.

    Raises:
        InputError: if it has the wrong length, or is no better than predicting 0.
    """
    if len(errors) != len(problem.gramian):
        raise InputError(f"point: expected {len(problem.gramian)} mean squared errors, got {len(errors)}")
    explained = problem.variances - np.array(errors)
    if (explained < 0).any():
        raise InputError(f"point: the mean squared error of predicting 0 is 1; got {max(errors)}")
    found = certificate(problem.gramian, explained, tolerance=1e-3)
    if found.outcome == "infeasible":
        return f"infeasible; at most {found.reach:.3f} of what it explains can be explained"
    line = ""
    if found.reach > 1.001:
        line = f"not on the surface, where {_array(problem.variances - found.reach * explained)} is "
    if found.weights is None:
        return f"{line}not Pareto-optimal: no non-negative weights make it stationary"
    if found.outcome == "reachable":
        return f"{line}reachable by linear scalarization with weights {_array(found.weights)}"
    return (
        f"{line}unreachable: stationary for the weights {_array(found.weights)} alone, for which another model scores "
        f"{found.shortfall:.1%} more"
    )


def _array(values: Array) -> str:
    return np.array2string(values, precision=4, separator=", ")
