"""Linear multi-task learning (Hu et al., 2023): can linear scalarization reach every Pareto optimum?

k regression targets share a linear layer of width q: target i is predicted by ``x^T W a_i``, with W ``[p, q]`` and
``a_i`` ``[q]``. All that counts is the Gramian ``G = Y'^T Y' / n`` of the best linear predictors ``Y'`` (ordinary least
squares): a choice of W is a q-dimensional subspace of their span, and what target i explains, the fall of its mean
squared error from that of predicting 0, is the squared projection of ``y'_i / sqrt(n)`` on the subspace.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtrl.combiners import Combiner
from mtrl.errors import InputError, RunError
from mtrl.gradients import NonFiniteError, backward, fan_out

Array = npt.NDArray[np.float64]

TOLERANCE = 1e-9
"""Cosines and relative errors below this count as 0."""


@dataclass(frozen=True)
class Problem:
    """k regression targets on p inputs, standardised.

    Attributes:
        inputs: ``[n, p]``.
        targets: ``[n, k]``.
        predictions: ``[n, k]``, the least-squares predictions.
        gramian: ``[k, k]``, of the predictions, divided by n.
        variances: ``[k]``, the mean squares of the targets (1, once standardised).
    """

    inputs: Array
    targets: Array
    predictions: Array
    gramian: Array
    variances: Array


def standardised(inputs: Array, targets: Array) -> Problem:
    """A problem whose inputs and targets have mean 0 and variance 1; constant inputs are left out.

    Args:
        inputs: ``[n, p]``.
        targets: ``[n, k]``.

    Raises:
        InputError: if a value is not finite, a target is constant, or no input varies.
    """
    for name, values in (("input", inputs), ("target", targets)):
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise InputError(f"{name} {column + 1} of record {row + 1} is not a finite number")
    scale = inputs.std(0)
    varying = scale > TOLERANCE * np.abs(inputs).max(0)
    if not varying.any():
        raise InputError("no input varies")
    spread = targets.std(0)
    constant = np.flatnonzero(spread <= TOLERANCE * np.abs(targets).max(0))
    if len(constant):
        raise InputError(f"target {constant[0] + 1} is constant: there is nothing to predict")
    x = (inputs - inputs.mean(0))[:, varying] / scale[varying]
    y = (targets - targets.mean(0)) / spread
    predictions = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return Problem(x, y, predictions, predictions.T @ predictions / len(x), np.square(y).mean(0))


# --------------------------------------------------------------------------------------------------- the verdict


@dataclass(frozen=True)
class Verdict:
    """Whether linear scalarization can fully explore the Pareto front.

    Attributes:
        fully: yes, no, or None where no criterion is known.
        reason: one line.
        flips: the targets (from 0) to negate for all inner products to be non-negative, where that is the criterion.
        cycle: targets (from 0) along which the product of the signs is negative, where the criterion fails.
    """

    fully: bool | None
    reason: str
    flips: tuple[int, ...] | None = None
    cycle: tuple[int, ...] | None = None


def verdict(gramian: Array, rank: int) -> Verdict:
    """Whether linear scalarization can fully explore the Pareto front (Hu et al., 2023).

    Always if the width is at least the rank of G: one W is then best for all. For width 1 if and only if G,
    for width k-1 if and only if the inverse of G is doubly non-negative after negating some targets. Between
    these no criterion is known.

    Args:
        gramian: ``[k, k]``, G.
        rank: the width q of the shared layer.

    Raises:
        InputError: if ``rank`` is less than 1.
    """
    if rank < 1:
        raise InputError(f"rank: expected an integer of at least 1, got {rank}")
    k = len(gramian)
    independent = int(np.linalg.matrix_rank(_cosines(gramian), hermitian=True))
    if rank >= independent:
        which = f"{k} targets" if independent == k else f"{independent} linearly independent targets among {k}"
        return Verdict(True, f"the shared layer's width {rank} is enough for {which}: one model is best for all")
    if rank == 1:
        name, tested = "G", gramian
    elif rank == k - 1:
        name, tested = "the inverse of G", np.linalg.inv(gramian).astype(np.float64)
    else:
        return Verdict(None, f"a width between 1 and k-1 = {k - 1}")
    flips, cycle = sign_flips(tested)
    if cycle is None:
        return Verdict(True, f"{name} is doubly non-negative after the sign flips", flips=flips)
    return Verdict(False, f"{name} is not doubly non-negative for any sign flips", cycle=cycle)


def sign_flips(matrix: Array) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The indices to negate for a symmetric matrix to have no negative entry, or a cycle that forbids it.

    A walk over the graph of non-zero entries gives every index the sign that its neighbours demand. Where two
    demands differ, the two ways there make a cycle whose product of signs is negative.

    Args:
        matrix: ``[k, k]``, with a positive diagonal.

    Returns:
        The flips, or None; the cycle, or None.
    """
    cosines = _cosines(matrix)
    signs = np.where(np.abs(cosines) > TOLERANCE, np.sign(cosines), 0).astype(int)
    found: dict[int, int] = {}
    parent: dict[int, int] = {}
    for start in range(len(signs)):
        if start in found:
            continue
        found[start] = 1
        queue = [start]
        for i in queue:
            for j in np.flatnonzero(signs[i]).tolist():
                if j == i:
                    continue
                demanded = found[i] * int(signs[i, j])
                if j not in found:
                    found[j], parent[j] = demanded, i
                    queue.append(j)
                elif found[j] != demanded:
                    return None, _cycle(parent, i, j)
    return tuple(i for i in range(len(signs)) if found[i] < 0), None


def _cosines(matrix: Array) -> Array:
    scale = np.sqrt(np.diagonal(matrix))
    return np.asarray(matrix / np.outer(scale, scale), dtype=np.float64)


def _cycle(parent: dict[int, int], i: int, j: int) -> tuple[int, ...]:
    def path(node: int) -> list[int]:
        nodes = [node]
        while nodes[-1] in parent:
            nodes.append(parent[nodes[-1]])
        return nodes

    up, down = path(i), path(j)
    meeting = next(node for node in up if node in down)
    return (*up[: up.index(meeting) + 1], *reversed(down[: down.index(meeting)]))


# ----------------------------------------------------------------------------------- the surface and what is reached


def feasible(gramian: Array, rank: int, count: int, seed: int = 0) -> Array:
    """What models of the width explain, over random subspaces: the feasible surface.

    Args:
        gramian: ``[k, k]``.
        rank: the width q, less than k.
        count: how many models.
        seed: draws them.

    Returns:
        ``[count, k]``, the explained mean squares.
    """
    factor = _factor(gramian)
    normal = np.random.default_rng(seed).standard_normal((count, len(factor), min(rank, len(factor))))
    basis = np.linalg.qr(normal)[0]
    return np.asarray(np.square(np.swapaxes(basis, 1, 2) @ factor).sum(1))


def scalarized(gramian: Array, rank: int, weights: Array) -> Array:
    """What the minimisers of weighted sums of the losses explain: the rank-q SVD of the weighted predictions.

    Args:
        gramian: ``[k, k]``.
        rank: the width q.
        weights: ``[m, k]``, at least 0.

    Returns:
        ``[m, k]``, the explained mean squares.
    """
    factor = _factor(gramian)
    weighted = factor[None] * np.sqrt(weights)[:, None, :]
    basis = np.linalg.svd(weighted)[0][:, :, :rank]
    return np.asarray(np.square(np.swapaxes(basis, 1, 2) @ factor).sum(1))


def random_weights(k: int, count: int, seed: int = 0) -> Array:
    """Weights drawn uniformly from the simplex: ``[count, k]``."""
    return np.random.default_rng(seed).dirichlet(np.ones(k), count)


def _factor(gramian: Array) -> Array:
    """The symmetric square root: its columns have the inner products of the predictions."""
    values, vectors = np.linalg.eigh(gramian)
    return np.asarray(vectors * np.sqrt(values.clip(min=0)) @ vectors.T)


def balance(explained: Array, gramian: Array) -> Array:
    """The worst target's share of what it could explain alone: ``[m, k]`` to ``[m]``, in [0, 1]."""
    return np.asarray((explained / np.diagonal(gramian)).min(-1))


# ------------------------------------------------------------------------------------------ the certificate, width 1


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
        explained: ``[k]``, the explained mean squares.
        tolerance: relative; how far outside the surface a point may be, and how small a shortfall counts as none.

    Raises:
        InputError: if G is singular, or what is explained is negative or 0 throughout.
    """
    k = len(gramian)
    if np.linalg.matrix_rank(_cosines(gramian), hermitian=True) < k:
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
    if (np.abs(slope[zero]) > tolerance * np.abs(slope).max()).any():
        return Certificate("dominated", reach)
    weights = np.divide(slope, u, out=np.zeros(k), where=~zero)
    if (weights < -tolerance * np.abs(weights).max()).any():
        return Certificate("dominated", reach)
    weights = weights.clip(min=0)
    factor = _factor(gramian)
    shortfall = float(np.linalg.eigvalsh(factor * weights @ factor)[-1] - 1)
    outcome = "reachable" if shortfall <= tolerance else "unreachable"
    return Certificate(outcome, reach, weights / weights.sum(), max(shortfall, 0.0))


# ------------------------------------------------------------------------------------------- what an optimizer reaches


def descend(
    problem: Problem,
    rank: int,
    combiner: Combiner,
    *,
    by_representation: bool,
    epochs: int = 100,
    learning_rate: float = 0.5,
    seed: int = 0,
) -> Array:
    """What gradient descent on all data explains with a combiner, from a random start: ``[k]``.

    Args:
        problem: the data.
        rank: the width q.
        combiner: made for the k targets.
        by_representation: take per-task gradients by the shared representation (MGDA-UB) and not by W.
        epochs: steps.
        learning_rate: of plain gradient descent.
        seed: of the start.

    Raises:
        RunError: if it diverges.
    """
    # The triangular factor has the inner products of the columns, which is all that losses and gradients depend on.
    records, width = problem.inputs.shape
    compressed = np.linalg.qr(np.hstack([problem.inputs, problem.targets]), mode="r") / records**0.5
    inputs, targets = torch.from_numpy(compressed).tensor_split([width], dim=1)
    generator = torch.Generator().manual_seed(seed)

    def start(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (values / math.sqrt(shape[0])).requires_grad_()

    shared = start(inputs.shape[1], rank)
    heads = [start(rank) for _ in range(targets.shape[1])]
    optimizer = torch.optim.SGD([shared, *heads], lr=learning_rate)
    try:
        for _ in range(epochs):
            aliases = fan_out(inputs @ shared, len(heads))
            predictions = [z @ head for z, head in zip(aliases, heads, strict=True)]
            losses = [(p - y).square().sum() for p, y in zip(predictions, targets.T, strict=True)]
            optimizer.zero_grad()
            representation = aliases if by_representation and combiner.needs != "losses" else None
            backward(losses, combiner, shared=[shared], specific=heads, representation=representation)
            optimizer.step()
            if combiner.needs_losses_after_step:
                with torch.no_grad():
                    z = inputs @ shared
                    combiner.after_step(
                        torch.stack([(z @ a - y).square().sum() for a, y in zip(heads, targets.T, strict=True)])
                    )
    except NonFiniteError as error:
        raise RunError(f"{combiner.name} diverges at learning_rate={learning_rate}") from error
    with torch.no_grad():
        errors = (inputs @ shared @ torch.stack(heads, 1) - targets).square().sum(0)
    explained: Array = problem.variances - errors.numpy()
    return explained
