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

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.errors import RunError

Array: TypeAlias = NDArray[np.float64]


def to_host(*tensors: Tensor) -> list[Array]:
    """Tensors as float64 arrays, copied in one transfer (one host synchronisation); `RunError` if not finite."""
    device = tensors[0].device
    flat = torch.cat([tensor.to(device, torch.float64).flatten() for tensor in tensors]).cpu()
    if not flat.isfinite().all():
        raise RunError("the Gramian of the task gradients or a loss is not finite")
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).numpy() for part, tensor in zip(parts, tensors, strict=True)]


def unit_gramian(gramian: Array) -> tuple[Array, Array]:
    """The norms of the gradients and the cosines between them."""
    norms = np.sqrt(np.maximum(np.diagonal(gramian), 0.0))
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = np.clip(inverse[:, None] * gramian * inverse, -1.0, 1.0)
    cosines = (cosines + cosines.T) / 2
    cosines[np.diag_indices_from(cosines)] = norms > 0
    return norms, cosines


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
    rows, identity = np.arange(len(linear)), np.eye(len(quadratic))
    positive = linear > 0 if guess is None else guess
    for _ in range(8):
        f = linear[rows]
        systems = np.where(positive[:, :, None] & positive[:, None, :], quadratic, identity)
        x = np.linalg.solve(systems, np.where(positive, f, 0.0)[:, :, None])[:, :, 0]
        scale = np.abs(x).max(1, keepdims=True) + np.abs(f).max(1, keepdims=True)
        wrong = np.where(positive, x, x @ quadratic - f) < -1e-12 * scale
        left = wrong.any(1)
        solution[rows[~left]] = np.maximum(x[~left], 0.0)
        rows, positive = rows[left], (positive ^ wrong)[left]
        if not rows.size:
            break
    else:
        solution[rows] = _interior_point(quadratic, linear[rows])
    error = np.abs(np.minimum(solution, solution @ quadratic - linear)).max(1)
    if (error > 1e-7 * (np.abs(solution).max(1) + np.abs(linear).max(1))).any():
        raise RunError("a quadratic program over the task gradients was not solved to precision")
    return solution


def _interior_point(quadratic: Array, linear: Array) -> Array:
    """Solves the problems of `nonnegative_qp` by Mehrotra's predictor-corrector method, degenerate or not."""
    size = linear.shape[1]
    largest = np.abs(linear).max(1, keepdims=True)
    f = linear / largest
    x, y = np.ones_like(f), np.ones_like(f)
    systems = np.empty((len(f), size, size))
    for _ in range(50):
        residual = x @ quadratic - f - y
        gap = (x * y).mean(1, keepdims=True)
        if (np.maximum(np.abs(residual), np.sqrt(gap)) <= 1e-9 * x.max(1, keepdims=True)).all():
            break
        systems[:] = quadratic
        systems[:, np.arange(size), np.arange(size)] += y / x
        factor = torch.linalg.cholesky_ex(torch.from_numpy(systems))[0]  # it serves both right-hand sides
        dx = _solve(factor, -residual - y)
        dy = -y - y / x * dx
        step = np.minimum(_step_inside(x, dx), _step_inside(y, dy))
        target = gap * (((x + step * dx) * (y + step * dy)).mean(1, keepdims=True) / gap) ** 3
        complement = target - x * y - dx * dy
        dx = _solve(factor, complement / x - residual)
        dy = (complement - y * dx) / x
        step = np.minimum(_step_inside(x, dx), _step_inside(y, dy))
        x += step * dx
        y += step * dy
    solution: Array = np.where(x > y, x, 0.0) * largest
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


def dual_cone(cosines: Array, start: Array) -> Array:
    """Projects combinations of unit gradients onto the cone of the directions that conflict with no gradient.

    By duality (Quinton & Rey, 2024, proposition 1) the projection of ``U^T u`` is ``U^T v`` with ``v`` the
    minimiser of ``v^T C v`` over ``v >= u``, for each row ``u`` of ``start``, ``[k, T]``.
    """
    quadratic = positive_definite(cosines)
    return start + nonnegative_qp(quadratic, -start @ quadratic)


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
    squared = y @ quadratic @ y
    if squared <= target:
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
        low, high = (level, high) if squared < target else (low, level)
    if abs(target - squared) > 1e-6 * target:
        raise RunError("the conflict-averse direction was not found to precision")
    z[kept] = y * largest / norms[kept]
    return z


def power_balance(norms: Array, cosines: Array, power: float, precision: float) -> Array:
    """Solves ``G a = a^(-p)``, elementwise power, for positive ``a``: the condition of Nash-MTL and FairGrad.

    The solution is the stationary point of ``a^T G a / 2 - sum_i a_i^(1 - p) / (1 - p)`` (``log a_i`` for
    ``p = 1``), which is strictly convex. In ``z_i = a_i |g_i|`` the equation reads ``z_i (C z)_i = t_i`` with
    ``t_i = |g_i|^(p - 1) z_i^(1 - p)``. Newton's method takes relative steps ``u``; coordinates that shrink take
    theirs in ``z^(-p)``, where the barrier is linear, so that they stay positive and overshoot by nothing.

    Raises:
        RunError: if a positive combination of the gradients vanishes to precision, so that there is no solution,
            or if the solution is not found to precision.
    """
    size = len(norms)
    scale = norms ** (power - 1)
    z = scale ** (1 / (power + 1))
    for _ in range(100):
        t = scale * z ** (1 - power)
        rounding = z * (np.abs(cosines) @ z)
        hessian = z[:, None] * cosines * z
        gradient = hessian.sum(1)
        if gradient.sum() <= 4 * precision * rounding.sum():
            raise RunError(
                "G a = a^(-p) has no positive solution: a convex combination of the task gradients vanishes "
                "to precision (Pareto stationary)"
            )
        gradient -= t
        if (np.abs(gradient) <= 1e-12 * t + size * np.finfo(np.float64).eps * rounding).all():
            return z / norms
        hessian[np.diag_indices(size)] += power * t
        root = np.sqrt(np.diagonal(hessian))
        try:
            u = -np.linalg.solve(hessian / np.outer(root, root), gradient / root) / root
        except np.linalg.LinAlgError:
            break
        z = z * np.where(u < 0, (1 - power * np.minimum(u, 0)) ** (-1 / power), 1 + u)
    raise RunError("G a = a^(-p) was not solved to precision for the Gramian of the task gradients")
