"""Small exact solvers for the methods that need only the Gramian ``G = J J^T`` of the task gradients.

Everything is NumPy in float64 on the CPU, where a T x T problem takes microseconds a step and no step waits for
a GPU; `to_host` moves what a method needs in one transfer. All problems are posed for the *unit* gradients, whose
Gramian holds the cosines ``C_ij = G_ij / (|g_i| |g_j|)``, with the norms in the right-hand sides: ``C`` is well
scaled however far apart the norms are, while ``G`` itself, for norms from 1e-6 to 1e6, spans 24 orders of
magnitude. Tolerances are relative to numbers of order one, so that no absolute epsilon meets a gradient. The
iterative solvers check the conditions of optimality before they return, and raise `RunError` where these fail.

Arguments that all share: ``norms``, ``[T]``; ``cosines``, ``[T, T]``, 0 for zero gradients; ``precision``, the machine
epsilon of the type in which the Gramian was computed. Solvers that do not say otherwise need positive norms.
"""

import math
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.errors import RunError

Array: TypeAlias = NDArray[np.float64]

_BLOCK = 2**22  # numbers in systems that are solved at once: 32 MiB
_FEW = 100  # tasks up to which a batch of whole systems is faster than one small system after the other


class NoSolutionError(RunError):
    """A method's equation has no solution: a convex combination of the gradients vanishes to precision."""


def to_host(*tensors: Tensor) -> list[Array]:
    """Tensors as float64 arrays, copied in one transfer (one host synchronisation); `RunError` if not finite."""
    if any(tensor.device.type != "cpu" for tensor in tensors):
        device, sizes = tensors[0].device, [tensor.numel() for tensor in tensors]
        flat = torch.cat([tensor.to(device, torch.float64).flatten() for tensor in tensors]).cpu()
        tensors = tuple(part.view(tensor.shape) for part, tensor in zip(torch.split(flat, sizes), tensors, strict=True))
    arrays = [tensor.to(torch.float64, copy=True).numpy() for tensor in tensors]
    if not all(np.isfinite(array).all() for array in arrays):
        raise RunError("the Gramian of the task gradients or a loss is not finite")
    return arrays


def gramian_of(jacobian: Tensor) -> Tensor:
    """``J J^T``, ``[T, T]``, in float64 where squares leave the range of the type of ``J``, ``[T, P]``.

    A float32 gradient longer than 1e19 has an infinite square there, and one shorter than 1e-16 an inexact one.
    """
    gramian, limits = jacobian @ jacobian.T, torch.finfo(jacobian.dtype)
    squares = gramian.diagonal()
    inexact = ~((squares > limits.tiny / limits.eps) & (squares <= limits.max))
    if jacobian.dtype == torch.float64 or not bool(inexact.any()):
        return gramian
    largest = jacobian.abs().amax(1)
    if not bool((inexact & (largest > 0)).any()):
        return gramian
    # Powers of 2 scale exactly; those that are normal numbers have exponents up to 126 in float32.
    most = int(math.log2(limits.max)) - 1
    exponents = torch.frexp(largest).exponent.clamp(-most, most)
    rows = torch.ldexp(jacobian, -exponents[:, None])
    units = torch.ldexp(torch.ones_like(largest, dtype=torch.float64), exponents)
    return (rows @ rows.T).double() * units[:, None] * units


def unit_gramian(gramian: Array) -> tuple[Array, Array]:
    """The norms of the gradients and the cosines between them."""
    norms = np.sqrt(np.maximum(np.diagonal(gramian), 0.0))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = inverse[:, None] * gramian * inverse
    np.minimum(np.maximum(cosines, -1.0, out=cosines), 1.0, out=cosines)
    cosines = (cosines + cosines.T) / 2
    cosines.flat[:: len(norms) + 1] = norms > 0
    return norms, cosines


def halves_of(gramian: Array, num_tasks: int) -> tuple[Array, Array]:
    """The Gramian ``[T, T]`` of all samples, and ``J_1 J_2^T`` of their two halves; see `Combiner.halves`."""
    first, second = slice(num_tasks), slice(-num_tasks, None)
    cross: Array = gramian[first, second]
    return (gramian[first, first] + gramian[second, second] + cross + cross.T) / 4, cross


def limit_norm(weights: Array, norms: Array, cosines: Array, max_norm: float) -> Array:
    """Scales the weights down so that the update ``J^T w`` is no longer than ``max_norm``."""
    lengths = weights * norms
    norm = float(np.sqrt(np.maximum(lengths @ cosines @ lengths, 0.0)))
    return weights * (max_norm / norm if norm > max_norm else 1.0)


def positive_definite(cosines: Array) -> Array:
    """The cosines plus the smallest multiple of the identity for which a Cholesky factor exists.

    Dependent gradients and rounding make the least eigenvalue zero or slightly negative. The shift is of the
    order of that rounding: 1e-14 for a float64 Gramian, up to 1e-6 for a rank-deficient float32 one. Where no
    small shift is enough, so that this is no Gramian, it raises `RunError`.
    """
    shift = len(cosines) * np.finfo(np.float64).eps
    while shift < 1e-2:
        shifted = cosines + shift * np.eye(len(cosines))
        try:
            np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            shift *= 10
        else:
            return shifted
    raise RunError("the Gramian of the task gradients is not positive semi-definite")


def eigen(cosines: Array, precision: float) -> tuple[Array, Array]:
    """The eigenvalues ``[r]`` of the cosines above ``T precision`` times the largest, and their vectors ``[T, r]``."""
    values, vectors = np.linalg.eigh(cosines)
    kept = values > len(values) * precision * values[-1]
    return values[kept], vectors[:, kept]


def nonnegative_qp(quadratic: Array, linear: Array, guess: NDArray[np.bool_] | None = None) -> Array:
    """Minimises ``x^T H x / 2 - f^T x`` over ``x >= 0``, for each row ``f`` of a batch.

    Block pivoting (Portugal, Judice & Vicente, 1994): guess which coordinates are positive, solve for these
    exactly, exchange those with the wrong sign. It ends within a few rounds, except on degenerate problems,
    where it can cycle; the rows that are left then go to `_interior_point`.

    Args:
        quadratic: ``H``, ``[n, n]``, positive definite, with entries of order one.
        linear: ``f``, ``[k, n]``.
        guess: which coordinates may be positive, ``[k, n]``; by default those of ``f``.
    """
    solution = np.zeros_like(linear)
    positive = linear > 0 if guess is None else guess
    block = max(1, _BLOCK // len(quadratic) ** 2)
    for start in range(0, len(linear), block):
        part = slice(start, start + block)
        solution[part] = _pivot(quadratic, linear[part], positive[part])
    error = np.abs(np.minimum(solution, solution @ quadratic - linear)).max(1)
    if (error > 1e-7 * (np.abs(solution).max(1) + np.abs(linear).max(1))).any():
        raise RunError("a quadratic program over the task gradients was not solved to precision")
    return solution


def _pivot(quadratic: Array, linear: Array, positive: NDArray[np.bool_]) -> Array:
    """`nonnegative_qp` of the rows whose ``[k, n, n]`` systems are in memory at once."""
    solution = np.zeros_like(linear)
    rows = np.arange(len(linear))
    for _ in range(8):
        f = linear[rows]
        x = _solve_positive(quadratic, f, positive)
        scale = np.abs(x).max(1, keepdims=True) + np.abs(f).max(1, keepdims=True)
        wrong = np.where(positive, x, x @ quadratic - f) < -1e-12 * scale
        left = wrong.any(1)
        solution[rows[~left]] = np.maximum(x[~left], 0.0)
        rows, positive = rows[left], (positive ^ wrong)[left]
        if not rows.size:
            return solution
    solution[rows] = _interior_point(quadratic, linear[rows])
    return solution


def _solve_positive(quadratic: Array, linear: Array, positive: NDArray[np.bool_]) -> Array:
    """Solves ``H x = f`` in each row's positive coordinates, with 0 in the others."""
    if len(quadratic) <= _FEW:
        systems = np.where(positive[:, :, None] & positive[:, None, :], quadratic, np.eye(len(quadratic)))
        solved: Array = np.linalg.solve(systems, np.where(positive, linear, 0.0)[:, :, None])[:, :, 0]
        return solved
    x = np.zeros_like(linear)
    for row, kept, f in zip(x, positive, linear, strict=True):
        factor = torch.linalg.cholesky_ex(torch.from_numpy(quadratic[np.ix_(kept, kept)]))[0]
        row[kept] = _solve(factor[None], f[None, kept])[0]
    return x


def _interior_point(quadratic: Array, linear: Array) -> Array:
    """Solves the problems of `nonnegative_qp` by Mehrotra's predictor-corrector method, degenerate or not."""
    size = linear.shape[1]
    largest = np.abs(linear).max(1, keepdims=True)
    solution, rows, f = np.zeros_like(linear), np.arange(len(linear)), linear / largest
    x, y = np.ones_like(f), np.ones_like(f)
    for iteration in range(100):
        residual = x @ quadratic - f - y
        gap = (x * y).mean(1, keepdims=True)
        left = (np.maximum(np.abs(residual), np.sqrt(gap)) > 1e-9 * x.max(1, keepdims=True)).any(1)
        solution[rows] = np.where(x > y, x, 0.0)
        if not left.any():
            break
        rows, f, x, y, residual, gap = (part[left] for part in (rows, f, x, y, residual, gap))
        systems = np.repeat(quadratic[None], len(x), 0)
        systems[:, np.arange(size), np.arange(size)] += y / x
        factor = torch.linalg.cholesky_ex(torch.from_numpy(systems))[0]  # it serves both right-hand sides
        dx = _solve(factor, -residual - y)
        dy = -y - y / x * dx
        step = np.minimum(_step_inside(x, dx), _step_inside(y, dy))
        if iteration < 15:
            target = gap * (((x + step * dx) * (y + step * dy)).mean(1, keepdims=True) / gap) ** 3
            complement = target - x * y - dx * dy
        else:  # the corrector can stall, and go round in circles, far from the central path: back to it
            complement = 0.3 * gap - x * y
        dx = _solve(factor, complement / x - residual)
        dy = (complement - y * dx) / x
        step = np.minimum(_step_inside(x, dx), _step_inside(y, dy))
        x += step * dx
        y += step * dy
    solution *= largest
    return solution


def _solve(factor: Tensor, right: Array) -> Array:
    """Solves ``[k, n, n]`` systems, given their Cholesky factors, for ``[k, n]``."""
    solution: Array = torch.cholesky_solve(torch.from_numpy(right)[:, :, None], factor)[:, :, 0].numpy()
    return solution


def _step_inside(x: Array, dx: Array) -> Array:
    """The longest step, at most 1, that keeps each row of ``x + step dx`` positive by a margin."""
    ratio = np.divide(-x, dx, out=np.full_like(x, np.inf), where=dx < 0)
    step: Array = np.minimum(1.0, 0.995 * ratio.min(1, keepdims=True))
    return step


def min_norm(norms: Array, cosines: Array) -> Array:
    """The point of least norm in the convex hull of the gradients: ``min |J^T w|`` with ``w >= 0, sum w = 1``.

    In ``x_i = w_i |g_i|`` and up to scale, this minimises ``x^T C x + (b^T x - 1)^2`` over ``x >= 0`` with
    ``b_i = min_j |g_j| / |g_i|``, which is bounded even where the least norm is 0.
    """
    b = norms.min() / norms
    w: Array = b * nonnegative_qp(positive_definite(cosines) + np.outer(b, b), b[None])[0]
    w /= w.sum()
    return w


def even_weights(weights: Array, cosines: Array, precision: float) -> Array:
    """Of all weights on the simplex that give the same shortest vector of unit gradients, those of least norm.

    Parallel gradients, among others, leave a choice of weights, which without this rounding and the order of the tasks
    would make. The gradients that can have weight are those whose product with the vector is its squared length.

    Args:
        weights: one choice, as of `min_norm`.
        cosines: as everywhere.
        precision: likewise.
    """
    products = cosines @ weights
    face = np.flatnonzero(products <= weights @ products + np.sqrt(precision))
    values, vectors = np.linalg.eigh(cosines[np.ix_(face, face)])
    fixed = values > max(len(face) * precision, 1e-12) * values[-1]
    if fixed.all():
        return weights
    # What is fixed: the vector and the sum. The rest is as small as 1e-8 of a squared norm makes it, twice.
    kept = vectors[:, fixed] @ vectors[:, fixed].T + 1 / len(face)
    quadratic = kept + 1e-8 * np.eye(len(face))
    aim = kept @ weights[face]
    found = nonnegative_qp(quadratic, aim[None])[0]
    found = nonnegative_qp(quadratic, (2 * aim - kept @ found)[None])[0]
    even = np.zeros_like(weights)
    even[face] = found / found.sum()
    return even


def dual_cone(cosines: Array, start: Array) -> Array:
    """Projects combinations of unit gradients onto the cone of the directions that conflict with no gradient.

    By duality (Quinton & Rey, 2024, proposition 1) the projection of ``U^T u`` is ``U^T v`` with ``v`` the
    minimiser of ``v^T C v`` over ``v >= u``, for each row ``u`` of ``start``, ``[k, T]``.
    """
    quadratic, ones = positive_definite(cosines), np.ones((1, len(cosines)))
    # If a combination of all gradients with weights of at least 1 vanishes, no other combination lies in the cone.
    vanishing = ones + nonnegative_qp(quadratic, -ones @ quadratic)
    if (vanishing @ cosines @ vanishing.T).item() <= len(cosines) * np.finfo(np.float64).eps * vanishing.sum() ** 2:
        multiples: Array = np.maximum(start.max(1, keepdims=True), 0) * vanishing
        return multiples
    projected: Array = start + nonnegative_qp(quadratic, -start @ quadratic)
    return projected


def max_min_in_ball(norms: Array, cosines: Array, radius: float, precision: float) -> Array:
    """The direction in a ball around the mean gradient that helps the worst-off task most, as in CAGrad.

    Maximises ``min_i g_i^T d`` subject to ``|d - g_0| <= c |g_0|``, ``g_0 = J^T 1 / T`` (Liu et al., 2021,
    equation 2). For a fixed level ``v`` the closest ``d`` with ``g_i^T d >= v`` for all ``i`` is a quadratic
    program, ``d = g_0 + J^T z`` with ``z >= 0``, and its distance from ``g_0`` is convex in ``v``, along pieces on
    which ``z`` is linear. The level at which it reaches the radius is found by solving these pieces exactly, with
    a Newton step where that leaves the bracket. Where no level above 0 can be reached (Pareto-stationary points,
    or a zero gradient, which the norms may hold) the maximiser may not be unique; the one nearest to ``g_0`` is taken.

    Returns:
        ``z``, ``[T]``, for a ``radius`` ``c`` of at least 0.
    """
    kept = np.flatnonzero(norms)
    z = np.zeros_like(norms)
    if not kept.size:
        return z
    largest = norms.max()
    u = norms[kept] / largest / len(norms)
    quadratic = positive_definite(cosines[np.ix_(kept, kept)])
    b = norms[kept].min() / norms[kept]
    mean = quadratic @ u
    target = radius**2 * (u @ mean)
    if target <= radius**2 * precision * u.sum() ** 2:
        return z

    level, low, high = 0.0, (mean / b).min(), 0.0
    y = nonnegative_qp(quadratic, -mean[None])[0]
    squared, inside = y @ quadratic @ y, np.zeros_like(y)
    if squared <= target:
        inside = y
        w = nonnegative_qp(quadratic + np.outer(b, b), b[None])[0]
        stationary = w @ quadratic @ w <= len(kept) * precision * w.sum() ** 2
        if stationary or len(kept) < len(norms):
            target = squared
        low, high = 0.0, 2 * (1 + radius) * np.sqrt(u @ mean)
    for _ in range(100):
        missing = target - squared
        if abs(missing) <= 1e-12 * target or high - low <= 1e-15 * max(high, -low):
            break
        positive = y > 0
        if not y.any():
            first = int((mean / b).argmin())
            level = mean[first] / b[first]
            positive[first] = True
        square = b[positive] @ np.linalg.solve(quadratic[np.ix_(positive, positive)], b[positive])
        slope = y @ b
        under_root = slope**2 + square * missing
        trial = level + missing / (slope + np.sqrt(under_root)) if under_root > 0 else np.inf
        if not low < trial < high and slope > 0:
            # Newton's step on the distance, which is convex in the level: from above it cannot pass the root.
            trial = level + (np.sqrt(target * squared) - squared) / slope
        level = trial if low < trial < high else (low + high) / 2
        y = nonnegative_qp(quadratic, (level * b - mean)[None], positive[None])[0]
        squared = y @ quadratic @ y
        low, high, inside = (level, high, y) if squared < target else (low, level, inside)
    missed = abs(target - squared) > 1e-6 * target
    if missed and high - low > 1e-12 * max(high, -low):
        raise RunError("the conflict-averse direction was not found to precision")
    # Near stationarity there may be no number between a level inside of the ball and one outside.
    y = inside if missed else y
    z[kept] = y * largest / norms[kept]
    return z


def vanishes(cosines: Array, precision: float, at_least: float) -> bool:
    """Whether a convex combination of unit gradients has a squared length of no more than rounding, or than a bound."""
    weights = min_norm(np.ones(len(cosines)), cosines)
    return float(weights @ cosines @ weights) <= max(len(cosines) * precision, at_least)


def power_balance(norms: Array, cosines: Array, power: float, precision: float) -> Array:
    """Solves ``G a = a^(-p)``, elementwise power, for positive ``a``: the condition of Nash-MTL and FairGrad.

    The solution is the stationary point of ``a^T G a / 2 - sum_i a_i^(1 - p) / (1 - p)`` (``log a_i`` for
    ``p = 1``), which is strictly convex. In ``z_i = a_i |g_i|`` the equation reads ``z_i (C z)_i = t_i`` with
    ``t_i = |g_i|^(p - 1) z_i^(1 - p)``. Newton's method takes relative steps ``u``; coordinates that shrink take
    theirs in ``z^(-p)``, where the barrier is linear, so that they stay positive and overshoot by nothing.

    Raises:
        NoSolutionError: if a convex combination of the gradients vanishes, or so nearly that the equation cannot be
            solved to precision.
        RunError: if the solution is not found to precision otherwise.
    """
    size = len(norms)
    stationary = (
        "G a = a^(-p) has no positive solution: a convex combination of the task gradients vanishes "
        "to precision (Pareto stationary)"
    )
    # Another unit of length, only where powers of the norms would leave the range.
    unit = norms.max() if np.abs((power - 1) * np.log(norms)).max() > 300 else 1.0
    norms = norms / unit
    scale = norms ** (power - 1)
    z = scale ** (1 / (power + 1))
    for _ in range(100):
        t = scale * z ** (1 - power)
        rounding = z * (np.abs(cosines) @ z)
        hessian = z[:, None] * cosines * z
        gradient = hessian.sum(1)
        if gradient.sum() <= 2 * size * precision * rounding.sum():
            raise NoSolutionError(stationary)
        gradient -= t
        if (np.abs(gradient) <= 1e-12 * t + size * np.finfo(np.float64).eps * rounding).all():
            # Some equations hold by rounding alone? Then look whether a combination vanishes.
            if (size * precision * rounding > 1e-3 * t).any() and vanishes(cosines, precision, 1e-12):
                raise NoSolutionError(stationary)
            solution: Array = z / norms * unit ** (-2 / (power + 1))
            return solution
        hessian[np.diag_indices(size)] += power * t
        root = np.sqrt(np.diagonal(hessian))
        try:
            u = -np.linalg.solve(hessian / np.outer(root, root), gradient / root) / root
        except np.linalg.LinAlgError:
            break
        z = z * np.maximum(np.where(u < 0, (1 - power * np.minimum(u, 0)) ** (-1 / power), 1 + u), 1e-3)
    # Near stationarity too: rounding is all that is left of the steps, or they stay short.
    if vanishes(cosines, precision, 1e-6):
        raise NoSolutionError(stationary)
    raise RunError("G a = a^(-p) was not solved to precision for the Gramian of the task gradients")
