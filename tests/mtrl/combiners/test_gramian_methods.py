"""The Gramian-based methods against TorchJD, against their papers' formulas written out on the gradients."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torchjd.aggregation as jd
from torch import Tensor

from mtrl import combiners
from mtrl.combiners.pcgrad import orders_of_others
from mtrl.combiners.sdmgrad import project_to_simplex
from mtrl.errors import InputError, RunError

METHODS = {
    "imtl_g": jd.IMTLG(),
    "mgda": jd.MGDA(epsilon=1e-12, max_iters=100_000),
    "aligned_mtl": jd.AlignedMTL(pref_vector=torch.ones(4, dtype=torch.float64)),
    "conflict_free": jd.ConFIG(),
    "fairgrad": jd.FairGrad(alpha=2.0, max_iters=1000),
}


def gradients(num_tasks: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tasks, 3 * num_tasks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses_of(num_tasks: int, seed: int = 0) -> Tensor:
    return torch.rand(num_tasks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def weights(name: str, jacobian: Tensor, losses: Tensor | None = None, **options: Any) -> Tensor:
    num_tasks = len(jacobian)
    combiner = combiners.make(name, num_tasks, **options)
    return combiner.weights(losses_of(num_tasks) if losses is None else losses, jacobian @ jacobian.T)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", METHODS)
def test_agrees_with_torchjd(name: str, seed: int) -> None:
    jacobian = gradients(4, seed)
    options: dict[str, Any] = {"max_norm": math.inf} if name == "fairgrad" else {}
    close(weights(name, jacobian, **options) @ jacobian, METHODS[name](jacobian), 1e-6)


@pytest.mark.parametrize("scale", ["median", "rmse"])
def test_aligned_mtl_scales_agree_with_torchjd(scale: Any) -> None:
    jacobian = gradients(5)
    expected = jd.AlignedMTL(scale_mode=scale)(jacobian)
    close(weights("aligned_mtl", jacobian, scale=scale) @ jacobian / 5, expected)


def test_sdmgrad_agrees_with_torchjd() -> None:
    combiner, expected = combiners.make("sdmgrad", 3), jd.SDMGradWeighting()
    for seed in range(5):
        # TorchJD adds 1e-8 to the squared scale.
        gramian = 1e8 * gradients(3, seed) @ gradients(3, seed).T
        close(combiner.weights(losses_of(3), gramian), 1.3 * expected(gramian))


def of_halves(num_tasks: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two halves' Jacobians."""
    whole = gradients(num_tasks, seed)
    noise = gradients(num_tasks, seed + 100)
    return whole + noise, whole - noise


def test_modo_agrees_with_torchjd() -> None:
    combiner, expected = combiners.make("modo", 3, gamma=0.02), jd.MoDoWeighting(gamma=0.02, rho=0.1)
    biased, same = combiners.make("modo", 3, gamma=0.02, halves=False), jd.MoDoWeighting(gamma=0.02, rho=0.1)
    for seed in range(8):
        first, second = of_halves(3, seed)
        rows = torch.cat([first, second])
        weights = combiner.weights(losses_of(3), rows @ rows.T)
        close(weights, expected(first @ second.T))
        assert not torch.allclose(weights, torch.full((3,), 1 / 3, dtype=torch.float64))
        whole = (first + second) / 2
        close(biased.weights(losses_of(3), whole @ whole.T), same(whole @ whole.T))


def test_sdmgrad_of_halves_follows_the_papers_step() -> None:
    combiner = combiners.make("sdmgrad", 3, halves=True, iterations=4, learning_rate=0.5, momentum=0.5, lambda_=0.6)
    point = np.full(3, 1 / 3)
    for seed in range(4):
        first, second = of_halves(3, seed)
        rows = torch.cat([first, second])
        one, other = first.numpy(), second.numpy()
        size = np.mean([np.linalg.norm(row) for row in (one + other) / 2])
        velocity = np.zeros(3)
        for _ in range(4):
            # The gradient of |J^T a + lambda g_0|^2 / 2 by a, one factor from each half's samples.
            direction = other.T @ (point + 0.6 / 3)
            velocity = 0.5 * velocity + one @ direction / size**2
            point = project_to_simplex(point - 0.5 * velocity)
        close(combiner.weights(losses_of(3), rows @ rows.T), torch.from_numpy(point + 0.6 / 3))


def test_methods_of_halves_take_one_gramian_for_both() -> None:
    jacobian = gradients(3)
    both = torch.cat([jacobian, jacobian])
    for name, options in (("modo", {}), ("sdmgrad", {"halves": True})):
        one, other = (combiners.make(name, 3, **options) for _ in range(2))
        close(one.weights(losses_of(3), jacobian @ jacobian.T), other.weights(losses_of(3), both @ both.T))
    close(weights("sdmgrad", jacobian), combiners.make("sdmgrad", 3, halves=True).weights(losses_of(3), both @ both.T))
    for name in ("mgda", "sdmgrad"):
        with pytest.raises(InputError, match=r"needs a Gramian of shape \(3, 3\), got \(6, 6\)"):
            combiners.make(name, 3).weights(losses_of(3), both @ both.T)


def test_pcgrad_of_two_agrees_with_torchjd() -> None:
    jacobian = torch.tensor([[1.0, 0.2], [-1.0, 0.5]], dtype=torch.float64)
    close(weights("pcgrad", jacobian) @ jacobian, jd.PCGrad()(jacobian))
    close(weights("pcgrad", jacobian, reduction="mean") @ jacobian, jd.PCGrad()(jacobian) / 2)


def test_pcgrad_of_three_draws_what_torchjd_draws() -> None:
    jacobian = torch.tensor([[1.0, 0.2, 0.0], [-1.0, 0.5, 0.3], [-0.4, -1.0, 0.5]], dtype=torch.float64)
    ours = {tuple((weights("pcgrad", jacobian, seed=s) @ jacobian).round(decimals=9).tolist()) for s in range(100)}
    torch.manual_seed(0)
    theirs = {tuple(jd.PCGrad()(jacobian).round(decimals=9).tolist()) for _ in range(100)}
    assert ours == theirs
    assert len(ours) > 1


def test_gradvac_of_two_agrees_with_torchjd() -> None:
    combiner, expected = combiners.make("gradvac", 2, beta=0.3), jd.GradVac(beta=0.3)
    for seed in range(8):
        jacobian = gradients(2, seed)
        close(combiner.combine(losses_of(2), jacobian.clone()), expected(jacobian), 1e-7)


def vaccinated(jacobian: Tensor, orders: np.ndarray[Any, Any], targets: Tensor, beta: float, always: bool) -> Tensor:
    """Wang et al., 2021, algorithm 1, on the gradients themselves."""
    changed = jacobian.clone()
    for i, order in enumerate(orders.T):
        for j in order:
            p = float(torch.nn.functional.cosine_similarity(changed[i], jacobian[j], dim=0))
            q = float(targets[i, j])
            if p < q:
                turn = q * math.sqrt(1 - p * p) - p * math.sqrt(1 - q * q)
                factor = changed[i].norm() * turn / (jacobian[j].norm() * math.sqrt(1 - q * q))
                changed[i] += factor * jacobian[j]
            if always or p < q:
                targets[i, j] = (1 - beta) * q + beta * p
    return changed.sum(0)


@pytest.mark.parametrize("update", ["always", "violation"])
def test_gradvac_is_its_algorithm(update: str) -> None:
    combiner = combiners.make("gradvac", 6, seed=3, update=update)
    generator, targets = torch.Generator().manual_seed(3), torch.zeros(6, 6, dtype=torch.float64)
    for seed in range(5):
        jacobian = gradients(6, seed) * torch.logspace(-3, 3, 6)[:, None]
        expected = vaccinated(jacobian, orders_of_others(6, generator), targets, 0.5, update == "always")
        close(combiner.combine(losses_of(6), jacobian.clone()), expected)
    close(combiner.state_dict()["targets"], targets)


def test_gradvac_survives_opposite_and_equal_gradients() -> None:
    combiner = combiners.make("gradvac", 3, update="violation")
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    for _ in range(60):
        assert combiner.combine(torch.ones(3), jacobian.clone()).isfinite().all()
    combiner = combiners.make("gradvac", 2)
    for _ in range(80):
        combiner.combine(torch.ones(2), torch.ones(2, 3))
    assert combiner.combine(torch.ones(2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])).isfinite().all()


def test_gradvac_passes_over_what_rounding_leaves_of_a_gradient() -> None:
    jacobian = gradients(3, seed=4).float()
    jacobian[1] = -1.7 * jacobian[0]
    # Task 0 meets task 1 first and cancels, but for float32 rounding; then there is no cosine with task 2.
    assert orders_of_others(3, torch.Generator().manual_seed(1))[:, 0].tolist() == [1, 2]
    combiner = combiners.make("gradvac", 3, seed=1)
    combiner.combine(torch.ones(3), jacobian)
    assert combiner.state_dict()["targets"][0, 1] < -0.49
    assert combiner.state_dict()["targets"][0, 2] == 0


def test_pcgrad_is_its_algorithm() -> None:
    jacobian = gradients(7) * torch.logspace(-3, 3, 7)[:, None]
    jacobian[1::2] -= 2 * jacobian[:6:2]
    changed = jacobian.clone()
    for i, order in enumerate(orders_of_others(7, torch.Generator().manual_seed(5)).T):
        for j in order:
            overlap = changed[i] @ jacobian[j]
            if overlap < 0:
                changed[i] -= overlap / jacobian[j].square().sum() * jacobian[j]
    close(weights("pcgrad", jacobian, seed=5) @ jacobian, changed.sum(0))


def test_orders_are_uniform_permutations_of_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(orders_of_others(4, generator)[:, 2]) for _ in range(600)]
    counts = {order: drawn.count(order) for order in set(drawn)}
    assert set(counts) == set(itertools.permutations((0, 1, 3)))
    assert all(70 <= count <= 130 for count in counts.values())


@pytest.mark.parametrize("name", ["imtl_g", "imtl", "mgda", "edm", "nash_mtl", "fairgrad", "cagrad", "upgrad"])
def test_equal_norms_and_losses_give_equal_weights(name: str) -> None:
    """Gama & Grassi, 2025, propositions 1 to 4 (and methods for which the same holds)."""
    jacobian = torch.nn.functional.normalize(gradients(2))
    first, second = weights(name, jacobian, torch.ones(2, dtype=torch.float64)).tolist()
    assert first == pytest.approx(second, rel=1e-9)


@pytest.mark.parametrize(("shrink", "divisor"), [("none", 1), ("linear", 1.5), ("quadratic", 1.25)])
def test_cagrad_of_equal_norms_lengthens_the_mean(shrink: str, divisor: float) -> None:
    """Gama & Grassi, 2025, proposition 1: ``d = (1 + c) g_0``."""
    jacobian = torch.nn.functional.normalize(gradients(2))
    close(weights("cagrad", jacobian, c=0.5, shrink=shrink), torch.full((2,), 0.75 / divisor, dtype=torch.float64))


@pytest.mark.parametrize("name", ["cdtt", "imtl"])
def test_equal_norms_and_losses_give_equal_weights_after_steps(name: str) -> None:
    """Gama & Grassi, 2025, proposition 5 (CDTT), and by symmetry."""
    combiner = combiners.make(name, 2)
    for seed in range(14):
        jacobian = torch.nn.functional.normalize(gradients(2, seed))
        first, second = combiner.weights(torch.full((2,), 0.7), jacobian @ jacobian.T).tolist()
        assert first == pytest.approx(second, rel=1e-5)


def test_edm_of_two_has_a_closed_form() -> None:
    """Gama & Grassi, 2025, proof of proposition 4."""
    jacobian = gradients(2) * torch.tensor([[1.0], [100.0]])
    norms = jacobian.norm(dim=1)
    expected = (jacobian / norms[:, None]).sum(0) / (1 / norms).sum()
    close(weights("edm", jacobian) @ jacobian, expected)


def test_edm_with_all_tasks_active_is_imtl_g() -> None:
    jacobian = gradients(4) * torch.logspace(-6, 6, 4)[:, None]
    close(weights("edm", jacobian), weights("imtl_g", jacobian), 1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_tasks", [3, 10])
def test_imtl_g_solves_its_equation(num_tasks: int, seed: int) -> None:
    """Kurin et al., 2022, equation 4; code that transposes the system fails here for T > 2."""
    jacobian = gradients(num_tasks, seed) * torch.logspace(-1, 1, num_tasks)[:, None]
    found = weights("imtl_g", jacobian)
    projections = (jacobian / jacobian.norm(dim=1, keepdim=True)) @ (found @ jacobian)
    assert found.sum().item() == pytest.approx(1)
    close(projections, projections[:1].expand(num_tasks), 1e-9)


def test_imtl_g_of_dependent_gradients() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-0.5, math.sqrt(0.75)], [-1.0, -math.sqrt(3.0)]], dtype=torch.float64)
    found = weights("imtl_g", jacobian)  # The unit gradients' mean is 0: equal projections are 0.
    close(found @ jacobian, torch.zeros(2, dtype=torch.float64))
    assert found.sum().item() == pytest.approx(1)
    opposite = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    close(weights("imtl_g", opposite), torch.full((2,), 0.5, dtype=torch.float64))


def test_imtl_g_with_negative_weights() -> None:
    cosines = torch.tensor([[1.0, 0.0, 0.6], [0.0, 1.0, 0.6], [0.6, 0.6, 1.0]], dtype=torch.float64)
    units, x = torch.linalg.cholesky(cosines), torch.linalg.solve(cosines, torch.ones(3, dtype=torch.float64))
    assert x[2] < 0
    close(weights("imtl_g", units), x / x.sum())
    # A length of the third at which x_i / |g_i| add up to 0.
    lengths = torch.tensor([[1.0], [1.0], [float(-x[2] / (x[0] + x[1]))]])
    with pytest.raises(RunError, match="force the weights' sum to 0"):
        weights("imtl_g", lengths * units)
    # Below it every loss increases.
    shorter = torch.tensor([[1.0], [1.0], [0.5]]) * lengths * units
    assert (shorter @ (weights("imtl_g", shorter) @ shorter) < 0).all()


def test_imtl_is_imtl_g_on_scaled_losses() -> None:
    both, scale = combiners.make("imtl", 3), combiners.make("imtl_l", 3)
    for seed in range(5):
        jacobian, losses = gradients(3, seed), losses_of(3, seed) * 3
        factors = scale.weights(losses)
        expected = factors * weights("imtl_g", factors[:, None] * jacobian)
        close(both.weights(losses, jacobian @ jacobian.T), expected)


def test_imtl_l_drives_the_scaled_losses_to_one() -> None:
    combiner, losses = combiners.make("imtl_l", 2, learning_rate=0.05), torch.tensor([0.2, 5.0])
    for _ in range(1000):
        found = combiner.weights(losses)
    close(found * losses, torch.ones(2), 1e-3)


@pytest.mark.parametrize(("normalization", "power"), [("none", 0), ("l2", 1), ("loss", 0), ("loss+", 1)])
def test_mgda_normalizations(normalization: str, power: int) -> None:
    jacobian, losses = gradients(4) * torch.logspace(-1, 1, 4)[:, None], losses_of(4)
    scale = jacobian.norm(dim=1) ** power * (losses if "loss" in normalization else 1)
    scaled = jacobian / scale[:, None]
    close(weights("mgda", jacobian, losses, normalization=normalization) @ jacobian, weights("mgda", scaled) @ scaled)


def test_mgda_gives_zero_gradients_all_weight() -> None:
    jacobian = gradients(4)
    jacobian[[0, 2]] = 0
    assert weights("mgda", jacobian).tolist() == [0.5, 0, 0.5, 0]


@pytest.mark.parametrize("name", ["imtl_g", "edm", "nash_mtl", "fairgrad", "aligned_mtl", "conflict_free", "cdtt"])
def test_zero_gradients_take_no_part(name: str) -> None:
    jacobian = gradients(4)
    jacobian[1] = 0
    found, others = weights(name, jacobian), [0, 2, 3]
    assert found[1] == 0
    close(found[others], weights(name, jacobian[others]))


@pytest.mark.parametrize("name", ["upgrad", "dualproj", "pcgrad", "gradvac"])
def test_zero_gradients_keep_their_weight(name: str) -> None:
    jacobian = gradients(4)
    jacobian[1] = 0
    assert weights(name, jacobian)[1] == (0.25 if name in ("upgrad", "dualproj") else 1)
    assert weights(name, jacobian * 0).tolist() == [0.25 if name in ("upgrad", "dualproj") else 1] * 4


@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
def test_without_conflict_projections_give_the_mean(name: str) -> None:
    jacobian = gradients(5).abs() * torch.logspace(-6, 6, 5)[:, None]
    close(weights(name, jacobian), torch.full((5,), 0.2, dtype=torch.float64))


def test_projections_of_two() -> None:
    jacobian = torch.tensor([[2.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    # Each gradient loses its component along the other; the mean conflicts with neither.
    close(weights("upgrad", jacobian) @ jacobian, torch.tensor([0.5, 1.0], dtype=torch.float64))
    close(weights("dualproj", jacobian) @ jacobian, torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_nash_mtl_is_a_bargaining_solution() -> None:
    jacobian = gradients(5) * torch.logspace(-6, 6, 5)[:, None]
    found = weights("nash_mtl", jacobian, max_norm=math.inf)
    close(found * (jacobian @ (found @ jacobian)), torch.ones(5, dtype=torch.float64))
    close((weights("nash_mtl", jacobian) @ jacobian).norm(), torch.tensor(1.0, dtype=torch.float64))


def test_nash_mtl_solves_again_when_due() -> None:
    combiner = combiners.make("nash_mtl", 3, update_every=3, max_norm=math.inf)
    found = [combiner.weights(losses_of(3), gradients(3, seed) @ gradients(3, seed).T) for seed in range(5)]
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])
    assert not found[2].equal(found[3])
    close(found[3], weights("nash_mtl", gradients(3, 3), max_norm=math.inf))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fairgrad_solves_its_equation(alpha: float) -> None:
    jacobian = gradients(5) * torch.logspace(-2, 2, 5)[:, None]
    found = weights("fairgrad", jacobian, alpha=alpha, max_norm=math.inf)
    products = jacobian @ (found @ jacobian)
    torch.testing.assert_close(products * found ** (1 / alpha), torch.ones(5, dtype=torch.float64), atol=1e-7, rtol=0)


def test_fairgrad_caps_the_update() -> None:
    jacobian = gradients(3) / 10
    assert (weights("fairgrad", jacobian, max_norm=math.inf) @ jacobian).norm() > 1
    close((weights("fairgrad", jacobian) @ jacobian).norm(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0])
def test_nash_mtl_caps_what_the_authors_code_caps(scale: float) -> None:
    """It solves for ``G / |G|`` with the Frobenius norm, and shortens the update with these weights to 1."""
    jacobian = scale * gradients(4)
    gramian = jacobian @ jacobian.T
    alpha = weights("nash_mtl", jacobian / gramian.norm().sqrt(), max_norm=math.inf)
    close(gramian / gramian.norm() @ alpha, 1 / alpha)
    update = alpha @ jacobian
    close(weights("nash_mtl", jacobian) @ jacobian, update * min(1.0, 1 / update.norm().item()))
    close(weights("nash_mtl", jacobian, max_norm=0.3) @ jacobian, update * min(1.0, 0.3 / update.norm().item()))


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e6])
def test_fairgrad_caps_what_the_authors_code_caps(scale: float) -> None:
    """It multiplies the update by T, and shortens that to 1."""
    jacobian = scale * gradients(4)
    update = 4 * weights("fairgrad", jacobian, max_norm=math.inf) @ jacobian
    close(weights("fairgrad", jacobian) @ jacobian, update * min(1.0, 1 / update.norm().item()))


@pytest.mark.parametrize("tasks", [2, 3, 4, 6])
def test_aligned_mtl_takes_the_mean_of_the_two_middle_values(tasks: int) -> None:
    """Orthogonal gradients: the singular values are the lengths, and all aligned gradients are as long as the scale."""
    lengths = torch.logspace(0, 2, tasks, dtype=torch.float64)
    middle = lengths[(tasks - 1) // 2 : tasks // 2 + 1].mean()
    rows = lengths[:, None] * torch.eye(tasks, dtype=torch.float64)
    close(weights("aligned_mtl", rows, scale="median"), middle / lengths)


@pytest.mark.parametrize("normalization", ["loss", "loss+"])
def test_mgda_leaves_out_a_loss_of_0_by_which_it_would_divide(normalization: str) -> None:
    jacobian, losses, others = gradients(4), losses_of(4), [0, 1, 3]
    losses[2] = 0
    found = weights("mgda", jacobian, losses, normalization=normalization)
    assert found[2] == 0
    close(found[others], weights("mgda", jacobian[others], losses[others], normalization=normalization))
    assert not weights("mgda", jacobian, losses * 0, normalization=normalization).any()


def test_cdtt_of_parallel_gradients_does_not_depend_on_their_order() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    rows = torch.stack([first, 0.1 * first, 5 * first, second]) * 10 ** float(torch.randn(1, generator=generator))
    losses = (3 * torch.randn(4, generator=generator, dtype=torch.float64)).exp()
    found = []
    for order in ([0, 1, 2, 3], [2, 1, 0, 3], [3, 1, 0, 2]):
        combiner = combiners.make("cdtt", 4, alpha=1.0)
        for _ in range(12):
            direction = combiner.combine(losses[order], rows[order].clone())
        found.append(direction)
    close(found[1], found[0], 1e-6)
    close(found[2], found[0], 1e-6)


def test_aligned_mtl_keeps_small_gradients() -> None:
    """Orthogonal gradients: ``w_i = min |g| / |g_i|``, also where the eigenvalues of G would underflow."""
    lengths = torch.logspace(-6, 6, 7, dtype=torch.float64)
    rows = lengths[:, None] * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(weights("aligned_mtl", rows), 1e-6 / lengths, rtol=1e-9, atol=0)


def test_conflict_free_has_equal_cosines_and_the_length_of_the_projections() -> None:
    jacobian = gradients(5) * torch.logspace(-6, 6, 5)[:, None]
    direction = weights("conflict_free", jacobian) @ jacobian
    products = jacobian @ (direction / direction.norm())
    close(products / jacobian.norm(dim=1), (products / jacobian.norm(dim=1))[:1].expand(5))
    torch.testing.assert_close(products.sum(), direction.norm(), rtol=1e-9, atol=0)


def test_conflict_free_of_opposite_gradients_is_zero() -> None:
    assert not weights("conflict_free", torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).any()


def test_cdtt_is_edm_until_it_has_two_windows() -> None:
    combiner = combiners.make("cdtt", 3)
    for seed in range(10):
        close(
            combiner.weights(losses_of(3), gradients(3, seed) @ gradients(3, seed).T),
            weights("edm", gradients(3, seed)),
        )


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_cdtt_pulls_towards_the_gradients(alpha: float) -> None:
    """Gama & Grassi, 2025, proof of proposition 5, on the gradients themselves, where nothing conflicts after."""
    combiner, norms = combiners.make("cdtt", 3, alpha=alpha), []
    for seed in range(12):
        jacobian, losses = 5 * (gradients(1, 0).repeat(3, 3) + 0.5 * gradients(3, seed)), losses_of(3, seed)
        norms.append(jacobian.norm(dim=1))
        found = combiner.weights(losses, jacobian @ jacobian.T)
    delta = torch.stack(norms[2:]).sum(0) / torch.stack(norms[1:11]).sum(0) + losses.log10()
    pull = alpha / (1 + torch.exp(math.e - math.e * delta)) + 1 - alpha
    central = weights("edm", jacobian) @ jacobian
    apart = jacobian - central
    expected = central + (pull[:, None] * apart / apart.norm(dim=1, keepdim=True)).sum(0)
    assert (jacobian @ expected > 0).all()
    close(found @ jacobian, expected)
    assert found.sum().item() == pytest.approx(1)


def test_cdtt_pulls_conflicts_to_orthogonality() -> None:
    """Two tasks of which one pulls too hard: the point on the way back to the other's gradient is orthogonal to it."""
    combiner = combiners.make("cdtt", 2, alpha=1.0)
    jacobian = torch.tensor([[0.01, 0.0], [-0.02, 0.05]], dtype=torch.float64)
    for _ in range(11):
        found = combiner.weights(torch.tensor([0.01, 10.0], dtype=torch.float64), jacobian @ jacobian.T)
    direction = found @ jacobian
    close(jacobian[0] @ direction, torch.tensor(0.0, dtype=torch.float64), 1e-12)
    assert jacobian[1] @ direction > 0
    assert found.sum().item() == pytest.approx(1)


def test_gradnorm_equalises_weighted_norms_at_equal_rates() -> None:
    combiner, losses = combiners.make("gradnorm", 3, learning_rate=0.01), torch.ones(3)
    for _ in range(2000):
        found = combiner.weights(losses, torch.diag(torch.tensor([1.0, 4.0, 16.0])))
    close(found * torch.tensor([1.0, 2.0, 4.0]), torch.full((3,), 3 / 1.75), 0.1)
    assert found.sum().item() == pytest.approx(3)


def test_gradnorm_favours_the_task_that_trains_slowly() -> None:
    combiner = combiners.make("gradnorm", 2)
    combiner.weights(torch.tensor([1.0, 4.0]), torch.eye(2))
    for _ in range(20):
        found = combiner.weights(torch.tensor([0.9, 0.4]), torch.eye(2))
    assert found[0] > 1 > found[1] > 0


def test_gradnorm_keeps_every_weight_above_its_floor() -> None:
    """Against Adam on equation 2's gradient: a step that would make a weight negative leaves a thousandth."""
    rate, norms = 0.8, torch.tensor([10.0, 1.0])
    combiner = combiners.make("gradnorm", 2, learning_rate=rate)
    learnt = torch.ones(2, requires_grad=True)
    adam, floored = torch.optim.Adam([learnt], rate), 0
    for _ in range(6):
        found = combiner.weights(torch.ones(2), torch.diag(norms.square()))
        torch.testing.assert_close(found, learnt.detach(), rtol=1e-5, atol=0)
        weighted = found * norms
        learnt.grad = (weighted - weighted.mean()).sign() * norms
        adam.step()
        with torch.no_grad():
            floored += int((learnt < 0.001).sum())
            learnt.clamp_(min=0.001)
            learnt *= 2 / learnt.sum()
    assert floored


@pytest.mark.parametrize("seed", range(3))
def test_project_to_simplex(seed: int) -> None:
    point = np.random.default_rng(seed).normal(size=6)
    projected = project_to_simplex(point)
    assert projected.sum() == pytest.approx(1)
    # Equal distances on the support, and not below the others' (the conditions of optimality).
    shift = (point - projected)[projected > 0]
    np.testing.assert_allclose(shift, shift[0])
    assert (point[projected == 0] <= shift[0]).all()
    np.testing.assert_allclose(project_to_simplex(projected), projected, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mgda", {"normalization": "l3"}),
        ("pcgrad", {"reduction": "median"}),
        ("gradvac", {"update": "never"}),
        ("gradvac", {"beta": 1.5}),
        ("cagrad", {"c": -0.1}),
        ("cagrad", {"shrink": "cubic"}),
        ("nash_mtl", {"update_every": 0}),
        ("nash_mtl", {"max_norm": 0.0}),
        ("fairgrad", {"alpha": 0.0}),
        ("fairgrad", {"max_norm": -1.0}),
        ("aligned_mtl", {"scale": "max"}),
        ("sdmgrad", {"lambda_": -1.0}),
        ("sdmgrad", {"iterations": 0}),
        ("sdmgrad", {"momentum": 1.0}),
        ("sdmgrad", {"learning_rate": 0.0}),
        ("sdmgrad", {"halves": 1}),
        ("modo", {"gamma": 0.0}),
        ("modo", {"rho": -1.0}),
        ("gradnorm", {"alpha": -1.0}),
        ("gradnorm", {"learning_rate": 0.0}),
        ("cdtt", {"alpha": 1.1}),
        ("imtl_l", {"learning_rate": 0.0}),
        ("imtl", {"learning_rate": 0.0}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as raised:
        combiners.make(name, 3, **options)
    message = str(raised.value)
    assert name in message
    assert next(iter(options)) in message
    assert "\n" not in message


def test_mgda_needs_positive_losses_only_to_divide_by_them() -> None:
    jacobian = gradients(2)
    weights("mgda", jacobian, torch.tensor([-1.0, 1.0]), normalization="l2")
    with pytest.raises(InputError, match="mgda needs positive losses, but task 0"):
        weights("mgda", jacobian, torch.tensor([-1.0, 1.0]), normalization="loss+")
