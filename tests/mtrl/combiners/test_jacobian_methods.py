"""The methods that read the Jacobian entry by entry, against their equations and TorchJD in float64."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor
from torchjd import aggregation

from mtrl import combiners
from mtrl.combiners import direction
from mtrl.errors import InputError

T, P = 4, 30


def jacobians(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([[0.1], [1.0], [3.0], [0.5]], dtype=torch.float64)
    return [torch.randn(T, P, generator=generator, dtype=torch.float64) * scale for _ in range(steps)]


LOSSES = torch.tensor([0.3, 1.0, 2.0, 5.0], dtype=torch.float64)


@pytest.fixture(params=[2**18, 28])
def block_elements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in one block of columns, and in blocks that do not divide the matrix."""
    monkeypatch.setattr(direction, "CPU_BLOCK", request.param)


@pytest.mark.usefixtures("block_elements")
@pytest.mark.parametrize("leak", [0.0, 0.3])
@pytest.mark.parametrize("k", [1.0, 0.4])
def test_graddrop(leak: float, k: float) -> None:
    (jacobian,) = jacobians(1)
    jacobian[:, 0] = 0
    oracle = aggregation.GradDrop(lambda purity: 0.5 + k * (purity - 0.5), torch.full((T,), leak, dtype=torch.float64))
    for seed in range(5):
        torch.manual_seed(seed)
        expected = oracle(jacobian)
        # TorchJD divides 0 by 0 in a column of zeros.
        expected[0] = 0
        combined = combiners.make("graddrop", T, seed=seed, leak=leak, k=k).combine(LOSSES, jacobian)
        torch.testing.assert_close(combined, expected)


def test_graddrop_keeps_one_sign() -> None:
    column = torch.tensor([[3.0], [1.0], [-2.0], [-2.0]]).expand(T, 20000)
    combined = combiners.make("graddrop", T).combine(torch.ones(T), column)
    assert set(combined.tolist()) == {4.0, -4.0}
    assert (combined > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def drop_layer(z: Tensor, gradients: Tensor, u: Tensor, leak: float, k: float) -> Tensor:
    """Algorithm 1 of Chen et al., 2020, line by line, for activations ``z`` and gradients ``[T, N, ...]`` by them."""
    values, rows = z.numpy(), gradients.numpy()
    signed = [(np.sign(values) * row).sum(axis=0) for row in rows]
    purity = 0.5 * (1 + sum(signed) / sum(np.abs(g) for g in signed))
    f = 0.5 + k * (purity - 0.5)
    masks = [(f > u.numpy()) * (g > 0.0) + (f < u.numpy()) * (g < 0.0) for g in signed]
    combined = np.zeros_like(values)
    for mask, row in zip(masks, rows, strict=True):
        combined += (leak + (1 - leak) * mask)[None] * row
    return torch.from_numpy(combined)


def representation(*shape: int) -> tuple[Tensor, Tensor]:
    """Values of both signs, some 0, and gradients by them of T tasks."""
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(*shape, generator=generator, dtype=torch.float64)
    z[z.abs() < 0.1] = 0
    return z, torch.randn(T, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 5), (6, 5), (6, 3, 2, 2)])
@pytest.mark.parametrize(("leak", "k"), [(0.0, 1.0), (0.3, 1.0), (0.0, 0.4)])
def test_graddrop_at_a_representation_is_its_algorithm(shape: tuple[int, ...], leak: float, k: float) -> None:
    z, rows = representation(*shape)
    for seed in range(5):
        u = torch.empty(shape[1:], dtype=torch.float64).uniform_(generator=torch.Generator().manual_seed(seed))
        combiner = combiners.make("graddrop", T, seed=seed, leak=leak, k=k)
        combined = combiner.combine(LOSSES, rows.flatten(1), [z])
        torch.testing.assert_close(combined.view(shape), drop_layer(z, rows, u, leak, k))


def test_graddrop_at_several_maps_is_its_algorithm_at_each() -> None:
    maps = [representation(6, 5), representation(6, 2, 2)]
    generator = torch.Generator().manual_seed(1)
    expected = []
    for z, rows in maps:
        u = torch.empty(z[0].shape, dtype=torch.float64).uniform_(generator=generator)
        expected.append(drop_layer(z, rows, u, 0.0, 1.0).flatten())
    jacobian = torch.cat([rows.flatten(1) for _, rows in maps], 1)
    combined = combiners.make("graddrop", T, seed=1).combine(LOSSES, jacobian, [z for z, _ in maps])
    torch.testing.assert_close(combined, torch.cat(expected))


def test_graddrop_drops_a_feature_that_no_sample_has() -> None:
    z, rows = representation(6, 5)
    z[:, 2] = 0
    combined = combiners.make("graddrop", T).combine(LOSSES, rows.flatten(1), [z]).view(6, 5)
    assert combined.isfinite().all()
    assert not combined[:, 2].any()


def test_graddrop_of_a_vector_has_features_and_no_samples() -> None:
    (jacobian,) = jacobians(1)
    positive = torch.ones(P, dtype=torch.float64)
    expected = combiners.make("graddrop", T).combine(LOSSES, jacobian)
    torch.testing.assert_close(combiners.make("graddrop", T).combine(LOSSES, jacobian, [positive]), expected)


def test_sign_agnostic_drop_at_a_representation_drops_whole_features() -> None:
    jacobian = (2.0 ** torch.arange(T))[:, None].expand(T, 4 * 3000).clone()
    combiner = combiners.make("sign_agnostic_drop", T, drop=0.75, renormalize=False)
    sums = combiner.combine(torch.ones(T), jacobian, [torch.randn(4, 3000)]).view(4, 3000)
    assert sums.equal(sums[:1].expand(4, 3000))
    kept = (sums[0].long()[None] >> torch.arange(T)[:, None]) & 1
    torch.testing.assert_close(torch.cov(kept.float()), torch.eye(T) * 0.1875, rtol=0, atol=0.03)
    torch.testing.assert_close(kept.float().mean(1), torch.full((T,), 0.25), rtol=0, atol=0.035)


@pytest.mark.parametrize("name", ["graddrop", "sign_agnostic_drop"])
def test_renormalized_at_a_representation(name: str) -> None:
    z, rows = representation(6, 5)
    combined = combiners.make(name, T, renormalize=True).combine(LOSSES, rows.flatten(1), [z])
    torch.testing.assert_close(combined.norm(), rows.sum(0).norm())


@pytest.mark.parametrize("name", ["graddrop", "sign_agnostic_drop"])
def test_renormalized_to_the_plain_sum(name: str) -> None:
    (jacobian,) = jacobians(1)
    plain = combiners.make(name, T, renormalize=False).combine(LOSSES, jacobian.clone())
    combined = combiners.make(name, T, renormalize=True).combine(LOSSES, jacobian.clone())
    torch.testing.assert_close(combined.norm(), jacobian.sum(0).norm())
    torch.testing.assert_close(combined / combined.norm(), plain / plain.norm())
    zeros = torch.zeros(T, P)
    assert combiners.make(name, T, renormalize=True).combine(torch.ones(T), zeros.clone()).equal(zeros[0])


@pytest.mark.usefixtures("block_elements")
@pytest.mark.parametrize("drop", [0.0, 0.3, 0.75])
def test_sign_agnostic_drop_masks_every_entry_on_its_own(drop: float) -> None:
    # Powers of 2 make every sum tell which of its terms were kept.
    jacobian = (2.0 ** torch.arange(T))[:, None].expand(T, 3000).clone()
    combiner = combiners.make("sign_agnostic_drop", T, drop=drop, renormalize=False)
    sums = combiner.combine(torch.ones(T), jacobian).long()
    kept = (sums[None] >> torch.arange(T)[:, None]) & 1
    torch.testing.assert_close(kept.float().mean(1), torch.full((T,), 1 - drop), rtol=0, atol=0.035)
    expected = torch.eye(T) * drop * (1 - drop)
    torch.testing.assert_close(torch.cov(kept.float()), expected, rtol=0, atol=0.03)


def project_to_simplex(point: Tensor) -> Tensor:
    level = brentq(lambda t: (point - t).clamp_min(0).sum().item() - 1, point.min() - 1, point.max())
    return (point - level).clamp_min(0)


@pytest.mark.parametrize("normalize", ["none", "loss"])
@pytest.mark.parametrize("projection", ["simplex", "softmax"])
def test_moco(normalize: str, projection: str) -> None:
    combiner = combiners.make("moco", T, beta=0.7, gamma=0.2, rho=0.1, normalize=normalize, projection=projection)
    y, weights = torch.zeros(T, P, dtype=torch.float64), torch.full((T,), 1 / T, dtype=torch.float64)
    for step, jacobian in enumerate(jacobians(5), start=1):
        rows = jacobian.clone()
        if normalize == "loss":
            rows = torch.stack([row / row.norm() * loss for row, loss in zip(rows, LOSSES, strict=True)])
        y = y - 0.7 / math.sqrt(step) * (y - rows)
        moved = weights - 0.2 / math.sqrt(step) * (y @ y.T + 0.1 * torch.eye(T)) @ weights
        weights = project_to_simplex(moved) if projection == "simplex" else moved.softmax(0)
        torch.testing.assert_close(combiner.combine(LOSSES, jacobian), y.T @ weights)


def test_moco_approaches_the_minimum_norm_point() -> None:
    (jacobian,) = jacobians(1)
    jacobian = jacobian + jacobian[1]
    combiner = combiners.make("moco", T, gamma=0.02)
    for _ in range(3000):
        combined = combiner.combine(LOSSES, jacobian.clone())
    oracle = aggregation.MGDA(epsilon=1e-9, max_iters=20000)(jacobian)
    assert combined.norm().item() == pytest.approx(oracle.norm().item(), rel=1e-3)


def test_moco_needs_positive_losses_only_to_scale_rows() -> None:
    (jacobian,) = jacobians(1)
    losses = torch.tensor([1.0, -1.0, 1.0, 1.0])
    combiners.make("moco", T).combine(losses, jacobian.clone())
    combiner = combiners.make("moco", T, normalize="loss")
    assert combiner.positive_losses
    with pytest.raises(InputError, match="moco needs positive losses, but task 1"):
        combiner.combine(losses, jacobian)


@pytest.mark.parametrize(("beta", "beta_decay"), [(0.9, 0.0), (0.5, 0.5), (0.0, 0.0)])
def test_db_mtl(beta: float, beta_decay: float) -> None:
    combiner = combiners.make("db_mtl", T, beta=beta, beta_decay=beta_decay)
    mean = torch.zeros(T, P, dtype=torch.float64)
    for step, jacobian in enumerate(jacobians(5), start=1):
        jacobian[0] = 0
        b = beta / step**beta_decay
        mean = b * mean + (1 - b) * jacobian / LOSSES[:, None]
        longest = max(row.norm() for row in mean)
        expected = sum(longest * row / row.norm() for row in mean[1:])
        torch.testing.assert_close(combiner.combine(LOSSES, jacobian), expected)


def test_db_mtl_counts_a_gradient_at_a_loss_of_0_as_0() -> None:
    for jacobian in jacobians(3):
        losses, nothing = LOSSES.clone(), jacobian.clone()
        losses[1], nothing[1] = 0, 0
        expected = combiners.make("db_mtl", T).combine(LOSSES, nothing)
        torch.testing.assert_close(combiners.make("db_mtl", T).combine(losses, jacobian), expected)


@pytest.mark.parametrize("scale", [1e-25, 1e9, 1e25])
def test_moco_stays_on_the_simplex_at_any_scale(scale: float) -> None:
    """Beyond the step's scale, the weight is the task's whose product with the update is least."""
    combiner = combiners.make("moco", T)
    for jacobian in jacobians(3):
        combined = combiner.combine(LOSSES.float(), (jacobian * scale).float())
        assert combined.isfinite().all()
        assert combiner.simplex.sum().item() == pytest.approx(1, rel=1e-12)
        assert (combiner.simplex.max() == 1) == (scale > 1)


def test_lengths_beyond_the_range_of_squares() -> None:
    for dtype, scales in ((torch.float32, (1e-30, 1e-20, 1.0, 1e30)), (torch.float64, (1e-250, 1e-160, 1.0, 1e250))):
        rows = torch.tensor(scales, dtype=dtype)[:, None] * torch.tensor([3.0, 4.0], dtype=dtype)
        found = direction.lengths(torch.cat([rows, torch.zeros(1, 2, dtype=dtype)]))
        torch.testing.assert_close(found[:-1], 5 * torch.tensor(scales, dtype=dtype), rtol=1e-6, atol=0)
        assert found[-1] == 0


@pytest.mark.usefixtures("block_elements")
@pytest.mark.parametrize("warmup", [1, 3])
def test_excess_mtl(warmup: int) -> None:
    oracle = aggregation.ExcessMTL(robust_step_size=0.4, n_warmup_steps=warmup)
    combiner = combiners.make("excess_mtl", T, step_size=0.4, warmup=warmup)
    for jacobian in jacobians(6):
        expected = oracle(jacobian)
        # TorchJD adds 1e-7 under the root and to the first risk.
        torch.testing.assert_close(combiner.combine(LOSSES, jacobian), expected, rtol=1e-4, atol=1e-6)


def test_excess_mtl_measures_a_task_from_its_first_gradient() -> None:
    combiner = combiners.make("excess_mtl", T, step_size=1.0)
    sequence = jacobians(5)
    for jacobian in sequence[:3]:
        jacobian[2] = 0
        combiner.combine(LOSSES, jacobian)
    assert combiner.initial[2] == 0
    for jacobian in sequence[3:]:
        assert combiner.combine(LOSSES, jacobian).isfinite().all()
    assert combiner.initial[2] > 0


def test_excess_mtl_rescales_its_weights() -> None:
    (jacobian,) = jacobians(1)
    plain = combiners.make("excess_mtl", T).combine(LOSSES, jacobian)
    torch.testing.assert_close(combiners.make("excess_mtl", T, rescale=True).combine(LOSSES, jacobian), T * plain)


@pytest.mark.parametrize("name", ["moco", "db_mtl", "excess_mtl"])
def test_memory_follows_the_state_dict(name: str) -> None:
    used = combiners.make(name, T)
    fresh_state = io.BytesIO()
    torch.save(used.state_dict(), fresh_state)
    (jacobian,) = jacobians(1)
    first = used.combine(LOSSES, jacobian.clone())
    with pytest.raises(InputError, match=rf"{name} remembers gradients of shape \(4, 30\), got .* \(4, 29\)"):
        used.combine(LOSSES, jacobian[:, 1:])
    fresh_state.seek(0)
    used.load_state_dict(torch.load(fresh_state, weights_only=True))
    assert used.memory is None
    assert used.combine(LOSSES, jacobian.clone()).equal(first)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("graddrop", "leak", 1.5),
        ("graddrop", "k", -1.0),
        ("sign_agnostic_drop", "drop", 1.0),
        ("moco", "beta", 0.0),
        ("moco", "gamma", 0.0),
        ("moco", "rho", math.nan),
        ("db_mtl", "beta", 1.0),
        ("db_mtl", "beta_decay", -0.5),
        ("excess_mtl", "step_size", 0.0),
        ("excess_mtl", "warmup", 0),
    ],
)
def test_options_out_of_range(name: str, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{option} of {name}: expected [^\n]*, got {value!r}$"):
        combiners.make(name, T, **{option: value})


@pytest.mark.parametrize(("option", "value"), [("normalize", "los"), ("projection", "simplx")])
def test_moco_offers_the_nearest_choice(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"unknown {option} of moco '{value}': did you mean"):
        combiners.make("moco", T, **{option: value})
