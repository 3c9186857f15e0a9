"""The solvers against SciPy and against the conditions of optimality, on matrices from easy to degenerate."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, minimize, nnls

from mtrl.combiners import solvers
from mtrl.combiners.sdmgrad import project_to_simplex
from mtrl.combiners.solvers import Array
from mtrl.errors import RunError

EPS = float(np.finfo(np.float64).eps)


def jacobian(kind: str, num_tasks: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_tasks, 4 * num_tasks))
    if kind == "conflicting":
        rows[1::2] = 0.3 * rows[1::2] - rows[: 2 * (num_tasks // 2) : 2]
    elif kind == "aligned":
        rows = 0.3 * rows + rng.normal(size=rows.shape[1])
    elif kind == "duplicate":
        rows = np.repeat(rows, 2, axis=0)[:num_tasks]
    elif kind == "dependent":
        rank = max(1, num_tasks // 3)
        rows = rng.normal(size=(num_tasks, rank)) @ rng.normal(size=(rank, rows.shape[1]))
    elif kind == "stationary":
        rows -= rows.mean(0)
    elif kind == "spread":
        rows[1::2] = 0.3 * rows[1::2] - rows[: 2 * (num_tasks // 2) : 2]
        rows *= np.logspace(-6, 6, num_tasks)[rng.permutation(num_tasks), None]
    return rows


WELL_POSED = ["random", "conflicting", "aligned", "duplicate", "spread"]
ALL = [*WELL_POSED, "dependent", "stationary"]
SIZES = [1, 2, 3, 10, 50]


def unit(rows: Array) -> tuple[Array, Array]:
    return solvers.unit_gramian(rows @ rows.T)


def mean_point(w: Array, gram: Array, c: float) -> float:
    """CAGrad's dual objective (Liu et al., 2021, equation 3)."""
    return float(w @ gram.mean(1) + c * np.sqrt(gram.mean()) * np.sqrt(max(w @ gram @ w, 0.0) + 1e-30))


def on_simplex(objective: object, size: int) -> Array:
    """SciPy's minimiser over the simplex."""
    result = minimize(
        objective,
        np.full(size, 1 / size),
        method="SLSQP",
        bounds=[(0, 1)] * size,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    solution: Array = result.x
    return solution


@pytest.mark.parametrize("kind", WELL_POSED)
@pytest.mark.parametrize("solve", [solvers.nonnegative_qp, solvers._interior_point])
def test_nonnegative_qp_agrees_with_nnls(kind: str, solve: object) -> None:
    rows = jacobian(kind, 10)
    quadratic = solvers.positive_definite(unit(rows)[1])
    linear = np.random.default_rng(1).normal(size=(4, 10))
    factor = np.linalg.cholesky(quadratic).T
    expected = [nnls(factor, np.linalg.solve(factor.T, f), maxiter=1000)[0] for f in linear]
    found = solve(quadratic, linear)  # type: ignore[operator]
    # Duplicates share a coordinate: compare what is determined.
    np.testing.assert_allclose(found @ quadratic, np.stack(expected) @ quadratic, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("size", SIZES)
def test_nonnegative_qp_is_optimal(kind: str, size: int) -> None:
    quadratic = solvers.positive_definite(unit(jacobian(kind, size, seed=2))[1])
    x = solvers.nonnegative_qp(quadratic, -quadratic)
    gradient = x @ quadratic + quadratic
    assert (x >= 0).all()
    assert (gradient >= -1e-7 * (1 + np.abs(x).max())).all()
    assert np.abs(np.minimum(x, gradient)).max() <= 1e-7 * (1 + np.abs(x).max())


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_min_norm_meets_its_conditions(kind: str, size: int, dtype: type) -> None:
    rows: np.ndarray = jacobian(kind, size).astype(dtype)
    norms, cosines = unit(rows)
    w = solvers.min_norm(norms, cosines)
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1)
    shortest = w @ rows.astype(np.float64)
    # g_i^T d >= |d|^2 for all i, relative to the rounding of d, with equality where w_i > 0.
    slack = (rows @ shortest - shortest @ shortest) / norms
    tolerance = 50 * np.sqrt(np.finfo(dtype).eps) * (w @ norms)
    assert (slack >= -tolerance).all()
    assert np.abs(w * norms * slack).max() <= tolerance * (w @ norms)


def test_min_norm_at_wide_spread_is_exact() -> None:
    # Orthogonal gradients: w_i is proportional to 1 / |g_i|^2.
    norms = np.logspace(-6, 6, 50)
    w = solvers.min_norm(norms, np.eye(50))
    np.testing.assert_allclose(w, norms**-2 / (norms**-2).sum(), rtol=1e-12)


@pytest.mark.parametrize("kind", ["random", "conflicting", "aligned"])
def test_min_norm_agrees_with_slsqp(kind: str) -> None:
    rows = jacobian(kind, 6, seed=3)
    gram = rows @ rows.T
    expected = on_simplex(lambda w: w @ gram @ w, 6)
    np.testing.assert_allclose(solvers.min_norm(*unit(rows)) @ rows, expected @ rows, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_min_norm_of_two_is_sener_and_koltun_equation_4(seed: int) -> None:
    first, second = rows = np.random.default_rng(seed).normal(size=(2, 2)) * [[1.0], [0.3 * seed + 0.2]]
    difference = second - first
    expected = np.clip(difference @ second / (difference @ difference), 0, 1)
    np.testing.assert_allclose(solvers.min_norm(*unit(rows)), [expected, 1 - expected], atol=1e-12)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("size", SIZES[1:])
def test_dual_cone_projects(kind: str, size: int) -> None:
    rows = jacobian(kind, size, seed=4)
    norms, cosines = unit(rows)
    units = rows / norms[:, None]
    start = np.concatenate([np.eye(size), norms[None] / norms.max()])
    projected = solvers.dual_cone(cosines, start) @ units
    size_of = np.abs(solvers.dual_cone(cosines, start)).sum(1)
    assert ((projected @ units.T).min(1) >= -1e-6 * size_of).all()
    # What was added is orthogonal to the projection (Moreau's decomposition).
    added = projected - start @ units
    assert (np.abs((added * projected).sum(1)) <= 1e-6 * size_of).all()


def test_dual_cone_agrees_with_nnls() -> None:
    rows = jacobian("conflicting", 8)
    norms, cosines = unit(rows)
    units = rows / norms[:, None]
    # The projection of x is x + U^T z for the z >= 0 that is nearest to solving U^T z = -x.
    expected = units[0] + nnls(units.T, -units[0])[0] @ units
    np.testing.assert_allclose(solvers.dual_cone(cosines, np.eye(8)[:1])[0] @ units, expected, atol=1e-10)


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("kind", ["random", "conflicting", "aligned", "duplicate"])
def test_max_min_in_ball_agrees_with_slsqp(kind: str, c: float) -> None:
    rows = jacobian(kind, 5, seed=5)
    gram = rows @ rows.T
    dual = on_simplex(lambda w: mean_point(w, gram, c), 5)
    direction = rows.mean(0) + solvers.max_min_in_ball(*unit(rows), c, EPS) @ rows
    assert (rows @ direction).min() == pytest.approx(mean_point(dual, gram, c), rel=1e-6)


@pytest.mark.parametrize("c", [0.4, 0.99])
@pytest.mark.parametrize("kind", WELL_POSED)
@pytest.mark.parametrize("size", SIZES)
def test_max_min_in_ball_has_no_duality_gap(kind: str, size: int, c: float) -> None:
    rows = jacobian(kind, size, seed=6)
    mean = rows.mean(0)
    z = solvers.max_min_in_ball(*unit(rows), c, EPS)
    assert (z >= 0).all()
    assert np.linalg.norm(z @ rows) == pytest.approx(c * np.linalg.norm(mean), rel=1e-9)
    norms = np.linalg.norm(rows, axis=1)
    w = z / z.sum()
    upper = w @ rows @ mean + c * np.linalg.norm(mean) * np.linalg.norm(w @ rows)
    # Both sides are sums of products as large as this; rounding cannot be below its 1e-16th.
    rounding = 1e-14 * norms.max() * np.linalg.norm(mean)
    assert (rows @ (mean + z @ rows)).min() >= upper - rounding - 1e-9 * abs(upper)


def test_max_min_in_ball_without_a_better_level_is_the_nearest() -> None:
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0], [0.3, 1.0]])
    expected = opposite.mean(0) * [0, 1]
    for rows in (opposite, np.concatenate([opposite[:1] * 0, [[1.0, 0.0], [-0.3, 1.0]]])):
        direction = rows.mean(0) + solvers.max_min_in_ball(*unit(rows), 0.9, EPS) @ rows
        assert (rows @ direction).min() >= -1e-12
        if rows is opposite:
            np.testing.assert_allclose(direction, expected, atol=1e-7)
        else:
            np.testing.assert_allclose(direction, rows.mean(0), atol=1e-12)


@pytest.mark.parametrize("power", [0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", WELL_POSED)
@pytest.mark.parametrize("size", SIZES)
def test_power_balance_solves_its_equation(kind: str, size: int, power: float) -> None:
    rows = jacobian(kind, size, seed=7)
    norms, cosines = unit(rows)
    a = solvers.power_balance(norms, cosines, power, EPS)
    assert (a > 0).all()
    length = a * norms
    error = norms * (cosines @ length) - a**-power
    assert (np.abs(error) <= 1e-9 * a**-power + 1e-13 * norms * (np.abs(cosines) @ length)).all()


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_power_balance_agrees_with_least_squares(power: float) -> None:
    rows = jacobian("random", 6, seed=8) / 4
    gram = rows @ rows.T
    result = least_squares(lambda a: gram @ a - a**-power, np.ones(6), bounds=(1e-9, np.inf), ftol=1e-15, xtol=1e-15)
    np.testing.assert_allclose(solvers.power_balance(*unit(rows), power, EPS), result.x, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [2, 3, 50])
def test_power_balance_says_that_there_is_no_solution(size: int, dtype: type) -> None:
    rows: np.ndarray = jacobian("stationary", size).astype(dtype)
    with pytest.raises(RunError, match="no positive solution"):
        solvers.power_balance(*unit(rows), 1.0, float(np.finfo(dtype).eps))


@pytest.mark.parametrize("scale", [1.0, 1e16, 1e150, 1e300])
def test_project_to_simplex_loses_nothing_at_any_shift_or_scale(scale: float) -> None:
    """Against exact fractions."""
    rng = np.random.default_rng(0)
    cases = [[-1.0, -1.5, -3.0], [-1.0, -1.0, -3.0], [0.3, 0.2, -0.1], [5.0], [1.0, -1.0], *rng.normal(size=(20, 6))]
    for case in cases:
        for point in (np.asarray(case) * scale, np.asarray(case) + scale, np.asarray(case) - scale):
            exact = sorted(map(Fraction, point), reverse=True)
            levels = [(sum(exact[: k + 1]) - 1) / (k + 1) for k in range(len(exact))]
            level = max(level for level, value in zip(levels, exact, strict=True) if value > level)
            expected = [float(max(Fraction(value) - level, Fraction(0))) for value in point]
            np.testing.assert_allclose(project_to_simplex(point), expected, rtol=1e-12, atol=1e-15)


def test_gramian_of_leaves_the_type_only_where_it_has_to() -> None:
    rows = torch.from_numpy(jacobian("random", 4)).float()
    assert solvers.gramian_of(rows).equal(rows @ rows.T)
    rows[1] = 0
    assert solvers.gramian_of(rows).dtype == torch.float32
    for exponents in ([0, 0, -70, 70], [-120, -100, 0, 100], [100, 100, 100, 100]):
        scale = 2.0 ** torch.tensor(exponents, dtype=torch.float64)[:, None]
        scaled = (rows.double() * scale).float()
        exact = scaled.double() @ scaled.double().T
        found = solvers.gramian_of(scaled)
        size = exact.diagonal().sqrt()
        assert ((found - exact).abs() <= 1e-6 * torch.outer(size, size)).all()


@pytest.mark.parametrize("few", [0, 100])
@pytest.mark.parametrize("block", [1, 2**22])
@pytest.mark.parametrize("kind", ALL)
def test_dual_cone_is_the_same_in_any_blocks(kind: str, block: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time, and by systems of the positive coordinates alone, as for hundreds of tasks."""
    norms, cosines = unit(rows := jacobian(kind, 12, seed=4))
    expected = solvers.dual_cone(cosines, np.eye(12)) @ (rows / norms[:, None])
    monkeypatch.setattr(solvers, "_BLOCK", block)
    monkeypatch.setattr(solvers, "_FEW", few)
    np.testing.assert_allclose(solvers.dual_cone(cosines, np.eye(12)) @ (rows / norms[:, None]), expected, atol=1e-8)


def test_dual_cone_of_dependent_gradients_agrees_with_nnls() -> None:
    """Cones that hold 0 alone, and narrow ones; at the first rank 24 the corrector alone goes round in circles."""
    rng = np.random.default_rng(0)
    for rank in (1, 2, 5, 10, 20, 24, 22, 25, 26, 30, 49):
        rows = rng.normal(size=(50, rank)) @ rng.normal(size=(rank, 200))
        norms, cosines = unit(rows)
        units = rows / norms[:, None]
        found = solvers.dual_cone(cosines, np.eye(50)) @ units
        for task in range(0, 50, 10):
            expected = units[task] + nnls(units.T, -units[task], maxiter=5000)[0] @ units
            np.testing.assert_allclose(found[task], expected, atol=1e-7)


def test_dual_cone_of_hundreds_of_tasks_agrees_with_nnls() -> None:
    rows = jacobian("random", 300, seed=4)[:, :400]
    norms, cosines = unit(rows)
    units = rows / norms[:, None]
    found = solvers.dual_cone(cosines, np.eye(300)) @ units
    for task in (0, 150, 299):
        expected = units[task] + nnls(units.T, -units[task], maxiter=5000)[0] @ units
        np.testing.assert_allclose(found[task], expected, atol=1e-9)


@pytest.mark.parametrize("lengths", [(1.0, 1.0, 1.0), (1.0, 10.0, 0.1)])
def test_even_weights_of_parallel_gradients(lengths: tuple[float, ...]) -> None:
    units = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for order in itertools.permutations(range(3)):
        cosines = unit((units * np.array(lengths)[:, None])[list(order)])[1]
        weights = solvers.even_weights(solvers.min_norm(np.ones(3), cosines), cosines, EPS)
        np.testing.assert_allclose(weights, np.array([0.25, 0.25, 0.5])[list(order)], atol=1e-7)


def test_even_weights_leaves_what_is_unique_alone() -> None:
    for kind in ("random", "conflicting", "aligned"):
        cosines = unit(jacobian(kind, 10))[1]
        weights = solvers.min_norm(np.ones(10), cosines)
        assert solvers.even_weights(weights, cosines, EPS) is weights


def test_bad_input_is_refused() -> None:
    with pytest.raises(RunError, match="not finite"):
        solvers.to_host(torch.tensor([1.0, float("nan")]))
    with pytest.raises(RunError, match="not positive semi-definite"):
        solvers.positive_definite(np.array([[1.0, -2.0], [-2.0, 1.0]]))


def test_to_host_keeps_shapes_and_values() -> None:
    matrix, vector = solvers.to_host(torch.arange(4.0).reshape(2, 2), torch.tensor([5.0]))
    np.testing.assert_array_equal(matrix, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(vector, [5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_to_host_gives_float64_of_its_own(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, 2.0], dtype=dtype)
    (array,) = solvers.to_host(tensor)
    array += 1
    assert array.dtype == np.float64
    assert tensor.tolist() == [1, 2]
