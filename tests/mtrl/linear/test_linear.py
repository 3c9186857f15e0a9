import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from mtrl import combiners
from mtrl.errors import InputError, RunError
from mtrl.linear import data as regression_data
from mtrl.linear.certificate import certificate
from mtrl.linear.data import standardised
from mtrl.linear.surface import balance, descend, feasible, scalarized
from mtrl.linear.verdict import sign_flips, verdict

# Signs of the three off-diagonal pairs: an even number of negative ones can be flipped away.
FULLY = np.array([[1.0, 0.3, -0.4], [0.3, 1.0, -0.2], [-0.4, -0.2, 1.0]])
NOT_FULLY = np.array([[1.0, 0.3, 0.4], [0.3, 1.0, -0.2], [0.4, -0.2, 1.0]])


def random_gramian(random, k):
    points = random.standard_normal((k + 1, k))
    return points.T @ points


def random_weights(count, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(3), count)


def by_trying_all_signs(matrix):
    k = len(matrix)
    return any(
        (matrix * np.outer(signs, signs) >= 0).all()
        for rest in itertools.product((1, -1), repeat=k - 1)
        for signs in [np.array([1, *rest])]
    )


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
def test_sign_flips_agree_with_trying_all_of_them(k):
    random = np.random.default_rng(k)
    seen = set()
    for _ in range(60):
        matrix = random_gramian(random, k)
        matrix[(np.abs(matrix) < 0.5) & ~np.eye(k, dtype=bool)] = 0  # sparse ones too: only the signs matter here
        flips, cycle = sign_flips(matrix)
        fully = by_trying_all_signs(matrix)
        seen.add(fully)
        assert (flips is not None, cycle is None) == (fully, fully)
        if flips is not None:
            signs = np.ones(k)
            signs[list(flips)] = -1
            assert (matrix * np.outer(signs, signs) >= 0).all()
        else:
            assert cycle is not None
            edges = list(zip(cycle, (*cycle[1:], cycle[0]), strict=True))
            assert len(set(cycle)) == len(cycle) >= 3
            assert np.prod([np.sign(matrix[edge]) for edge in edges]) == -1
    assert seen == ({True} if k == 2 else {True, False})


def test_verdicts_by_width():
    assert verdict(FULLY, 1).fully is True
    assert verdict(FULLY, 1).flips == (2,)
    found = verdict(NOT_FULLY, 1)
    assert found.fully is False
    assert found.cycle is not None
    assert sorted(found.cycle) == [0, 1, 2]
    assert verdict(NOT_FULLY, 3).fully is True
    assert verdict(NOT_FULLY, 4).fully is True
    assert verdict(np.linalg.inv(NOT_FULLY), 2).fully is False
    assert verdict(np.linalg.inv(FULLY), 2).fully is True
    assert verdict(random_gramian(np.random.default_rng(0), 5), 3).fully is None
    assert verdict(np.ones((1, 1)), 1).fully is True
    with pytest.raises(InputError, match="rank"):
        verdict(FULLY, 0)


def test_a_width_that_fits_dependent_targets_is_enough():
    # Three targets in a plane: two hidden units predict all of them as well as can be.
    points = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -2.0]])
    assert verdict(points @ points.T, 2).fully is True
    assert verdict(points @ points.T, 1).fully is not None


def front(gramian, rank, steps=48):
    """Explained (width 1) or unexplained (width 2) mean squares where rays from 0 meet the best models' surface.

    With u = G^(1/2) z for a line z (or a plane's normal z) these are u_i^2, and u^T G^-1 u = 1 for any signs of u.
    """
    rays = [(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]
    rays = np.array(rays) / steps * np.diagonal(gramian)
    patterns = np.array(list(itertools.product((1, -1), repeat=3)))
    u = patterns[:, None] * np.sqrt(rays)
    forms = np.einsum("pri,ij,prj->pr", u, np.linalg.inv(gramian), u)
    return rays / (forms.min(0) if rank == 1 else forms.max(0))[:, None]


def largest_gap(gramian, rank):
    """By how much, at most, every weighted sum prefers another model to a Pareto optimum: brute force."""
    costs = (-1 if rank == 1 else 1) * front(gramian, rank) / np.diagonal(gramian)
    optimal = [cost for cost in costs if not (costs < cost - 1e-9).all(1).any()]
    gaps = []
    for cost in optimal[:: max(len(optimal) // 60, 1)]:
        # Weights on the simplex that maximise the least advantage over any other model.
        solution = linprog(
            [0, 0, 0, -1],
            A_ub=np.hstack([cost - costs, np.ones((len(costs), 1))]),
            b_ub=np.zeros(len(costs)),
            A_eq=[[1, 1, 1, 0]],
            b_eq=[1],
            bounds=[(0, None)] * 3 + [(None, None)],
        )
        gaps.append(-solution.x[3])
    return max(gaps)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(("criterion", "fully"), [(FULLY, True), (NOT_FULLY, False)])
def test_verdicts_hold_by_brute_force(rank, criterion, fully):
    gramian = criterion if rank == 1 else np.linalg.inv(criterion)
    assert verdict(gramian, rank).fully is fully
    gap = largest_gap(gramian, rank)
    # The first grid is too coarse to drop every dominated model.
    assert gap < (0.01 if rank == 1 else 1e-6) if fully else gap > (0.05 if rank == 1 else 5e-3)


def neighbours(gramian, point, random):
    """What models close to those that explain ``point`` explain."""
    root = np.linalg.cholesky(gramian)
    signs = np.array(list(itertools.product((1, -1), repeat=3)))
    lines = np.linalg.solve(root, (signs * np.sqrt(point)).T).T
    lines = lines[np.abs(np.linalg.norm(lines, axis=1) - 1) < 1e-6]
    steps = random.standard_normal((len(lines), 20_000, 3)) * 10 ** random.uniform(-4, -1, (20_000, 1))
    near = lines[:, None] + steps
    near /= np.linalg.norm(near, axis=2, keepdims=True)
    return np.square(near @ root.T).reshape(-1, 3)


@pytest.mark.parametrize("seed", range(4))
def test_verdicts_of_random_problems_hold_by_brute_force(seed):
    # At width 1 the certificate of a random point decides the same as a fine grid of weights.
    random = np.random.default_rng(seed)
    gramian = random_gramian(random, 3)
    weights = random_weights(4000, seed)
    best = scalarized(gramian, 1, weights)
    best = (best * weights).sum(1)
    outcomes = set()
    for point in feasible(gramian, 1, 60, seed):
        found = certificate(gramian, point)
        outcomes.add(found.outcome)
        gap = float(((best - weights @ (point * found.reach)) / best).min())
        if found.outcome == "reachable":
            assert gap < 0.02
        elif found.outcome == "unreachable":
            assert found.shortfall > 0
            assert gap > -1e-9
        elif found.outcome == "dominated":
            assert (neighbours(gramian, point * found.reach, random) > point * found.reach).all(1).any()
    assert "dominated" in outcomes


def test_what_scalarization_reaches_is_certified_reachable():
    for gramian in (FULLY, NOT_FULLY):
        for point in scalarized(gramian, 1, random_weights(20)):
            found = certificate(gramian, point)
            assert found.outcome == "reachable"
            assert found.reach == pytest.approx(1)


def test_the_certificate_returns_the_weights():
    weights = np.array([[0.2, 0.3, 0.5]])
    found = certificate(NOT_FULLY, scalarized(NOT_FULLY, 1, weights)[0])
    assert found.weights == pytest.approx(weights[0], abs=1e-9)


def test_points_off_the_surface_are_recognised():
    surface = feasible(FULLY, 1, 1)[0]
    assert certificate(FULLY, surface * 1.2).outcome == "infeasible"
    assert certificate(FULLY, surface * 0.5).reach == pytest.approx(2 * certificate(FULLY, surface).reach)
    with pytest.raises(InputError, match="independent"):
        certificate(np.ones((2, 2)), np.ones(2))
    with pytest.raises(InputError, match="explains"):
        certificate(FULLY, np.array([-0.1, 0.5, 0.5]))


def data(random, n=80, p=6, k=3):
    inputs = random.standard_normal((n, p)) * 3 + 1
    return inputs, inputs @ random.standard_normal((p, k)) + 2 * random.standard_normal((n, k))


def test_standardised_problems_have_the_gramian_of_least_squares():
    inputs, targets = data(np.random.default_rng(0))
    problem = standardised(np.hstack([inputs, np.ones((80, 1))]), targets)
    assert problem.inputs.shape == (80, 6)
    assert problem.targets.mean(0) == pytest.approx(np.zeros(3), abs=1e-12)
    assert problem.variances == pytest.approx(np.ones(3))
    # The variance that each target's regression with an intercept explains.
    design = np.hstack([inputs, np.ones((80, 1))])
    for i in range(3):
        residual = targets[:, i] - design @ np.linalg.lstsq(design, targets[:, i], rcond=None)[0]
        assert problem.gramian[i, i] == pytest.approx(1 - residual.var() / targets[:, i].var())


@pytest.mark.parametrize("rank", [1, 2])
def test_closed_form_scalarization_is_the_minimum(rank):
    # No random model does better, and gradient descent from a random start ends there.
    problem = standardised(*data(np.random.default_rng(1)))
    weights = np.array([0.6, 0.3, 0.1])
    value = scalarized(problem.gramian, rank, weights[None])[0] @ weights
    assert (feasible(problem.gramian, rank, 2000) @ weights <= value + 1e-9).all()
    fixed = combiners.make("fixed", 3, weights=weights.tolist())
    reached = descend(problem, rank, fixed, by_representation=False, epochs=2000, learning_rate=0.1)
    assert reached @ weights == pytest.approx(value, abs=1e-4)


def test_a_wide_network_explains_everything():
    problem = standardised(*data(np.random.default_rng(2)))
    assert feasible(problem.gramian, 3, 5) == pytest.approx(np.tile(np.diagonal(problem.gramian), (5, 1)))
    assert balance(feasible(problem.gramian, 3, 5), problem.gramian) == pytest.approx(np.ones(5))


@pytest.mark.parametrize("by_representation", [False, True])
def test_mgda_ends_pareto_stationary(by_representation):
    # On the surface of the signs that it came with, not always the outermost: some weights make it stationary.
    problem = standardised(*data(np.random.default_rng(3)))
    mgda = combiners.make("mgda", 3)
    reached = descend(problem, 1, mgda, by_representation=by_representation, epochs=1000, learning_rate=0.1)
    inverse = np.linalg.inv(problem.gramian)
    stationary = []
    for signs in itertools.product((1, -1), repeat=3):
        u = np.array(signs) * np.sqrt(reached)
        if abs(u @ inverse @ u - 1) < 1e-3:
            weights = inverse @ u / u
            stationary.append(weights.min() > -1e-2 * weights.max())
    assert any(stationary)


def test_divergence_is_an_error():
    problem = standardised(*data(np.random.default_rng(3)))
    with pytest.raises(RunError, match=r"unitary diverges at learning_rate=50\.0"):
        descend(problem, 1, combiners.make("unitary", 3), by_representation=False, learning_rate=50.0)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ([[1.0], [2.0]], [[1.0], [1.0]], "target 1 is constant"),
        ([[1.0], [1.0]], [[1.0], [2.0]], "no input varies"),
        ([[1.0], [float("nan")]], [[1.0], [2.0]], "input 1 of record 2"),
    ],
)
def test_unusable_data_are_refused(inputs, targets, message):
    with pytest.raises(InputError, match=message):
        standardised(np.array(inputs), np.array(targets))


# ------------------------------------------------------------------------------------------------------------ the files


def test_linnerud_satisfies_both_criteria():
    problem = standardised(*regression_data.load("linnerud"))
    assert (verdict(problem.gramian, 1).fully, verdict(problem.gramian, 2).fully) == (True, True)


@pytest.mark.parametrize("header", ["", "a,b,c\n"])
def test_csv_files(tmp_path, header):
    (tmp_path / "x.csv").write_text(f"{header}1,2,3\n4,5,6.5\n\n")
    inputs, targets = regression_data.load(str(tmp_path / "x.csv"), outputs=2)
    assert inputs.tolist() == [[1.0], [4.0]]
    assert targets.tolist() == [[2.0, 3.0], [5.0, 6.5]]


def test_sarcos_files_are_known_by_their_key(tmp_path):
    from scipy.io import savemat

    table = np.random.default_rng(0).standard_normal((5, 28))
    savemat(tmp_path / "s.mat", {"sarcos_inv": table})
    inputs, targets = regression_data.load(str(tmp_path / "s.mat"))
    assert np.array_equal(inputs, table[:, :21])
    assert np.array_equal(targets, table[:, 21:])
    savemat(tmp_path / "s.mat", {"sarcos_inv": table[:, 1:]})
    with pytest.raises(InputError, match="27 columns, SARCOS has 28"):
        regression_data.load(str(tmp_path / "s.mat"))
    (tmp_path / "half.mat").write_bytes((tmp_path / "s.mat").read_bytes()[:200])
    with pytest.raises(InputError, match="not a whole MATLAB file"):
        regression_data.load(str(tmp_path / "half.mat"))


@pytest.mark.parametrize(
    ("content", "outputs", "message"),
    [
        ("1,2\n3,x\n", 1, "line 2: could not convert"),
        ("1,2\n3\n", 1, "line 2: 1 columns, expected 2"),
        ("a,b\n", 1, "no records"),
        ("1,2\n3,4\n", None, "outputs=K"),
        ("1,2\n3,4\n", 2, "outputs: expected 1 to 1"),
    ],
)
def test_bad_csv_files_are_refused(tmp_path, content, outputs, message):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        regression_data.load(str(tmp_path / "x.csv"), outputs)


def test_a_missing_file_says_where_it_comes_from(tmp_path):
    with pytest.raises(InputError, match=r"gaussianprocess\.org") as caught:
        regression_data.load(str(tmp_path / "sarcos_inv.mat"))
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "x.txt").write_text("1 2")
    with pytest.raises(InputError, match="neither"):
        regression_data.load(str(tmp_path / "x.txt"))
