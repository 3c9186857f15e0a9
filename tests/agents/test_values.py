"""What critics' outputs mean: against hand-computed values and formulas of another form, in float64."""

import math

import pytest
import torch
from torch import Tensor

from agents.values import CategoricalValues, ScalarValues, categorical_projection, categorical_target, cross_entropy


def triangles(z_target: Tensor, p: Tensor, z: Tensor) -> Tensor:
    """The projection as Bellemare et al. write it: each atom gathers what lies within one step of it."""
    step = z[1] - z[0]
    distance = (z_target.clamp(z[0], z[-1]).unsqueeze(-2) - z.unsqueeze(-1)).abs() / step
    return ((1 - distance).clamp(0, 1) * p.unsqueeze(-2)).sum(-1)


def random_probabilities(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(*shape, dtype=torch.float64, generator=generator)).softmax(-1)


def test_a_hand_computed_projection() -> None:
    z = torch.tensor([-1.0, 0.0, 1.0])
    moved = categorical_projection(torch.tensor([-0.75, 0.5, 7.0]), torch.tensor([0.2, 0.3, 0.5]), z)
    # .2 at -.75: .15 to -1 and .05 to 0; .3 at .5: halves; .5 beyond the end: all to 1
    assert moved.tolist() == pytest.approx([0.15, 0.05 + 0.15, 0.15 + 0.5])


@pytest.mark.parametrize(
    ("reward", "gamma"), [(0.37, 0.99), (-4.2, 0.9), (0.0, 0.0), (25.0, 0.99), (-25.0, 0.5), (2.0, 1.0)]
)
@pytest.mark.parametrize("atoms", [2, 5, 101])
def test_the_projection_is_that_of_the_triangular_kernel(reward: float, gamma: float, atoms: int) -> None:
    z = torch.linspace(-10, 10, atoms, dtype=torch.float64)
    p = random_probabilities(7, 3, atoms)
    bonus = torch.linspace(-1, 1, 3, dtype=torch.float64).expand(7, 3)
    r, factor = torch.full_like(bonus, reward), torch.full_like(bonus, gamma)
    found = categorical_target(r, factor, p, bonus, z)
    expected = triangles(r[..., None] + factor[..., None] * (z - bonus[..., None]), p, z)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(7, 3, dtype=torch.float64))
    assert (found >= 0).all()


def test_the_mean_is_kept_where_no_atom_leaves_the_support() -> None:
    z = torch.linspace(-10, 10, 101, dtype=torch.float64)
    p = random_probabilities(50, 101)
    r, gamma, bonus = torch.full((50,), 0.05), torch.full((50,), 0.9), torch.full((50,), -0.3)
    found = categorical_target(r.double(), gamma.double(), p, bonus.double(), z)
    torch.testing.assert_close((found * z).sum(-1), 0.05 + 0.9 * ((p * z).sum(-1) + 0.3), rtol=1e-6, atol=1e-6)


def test_float32_sums_stay_one() -> None:
    z = torch.linspace(-10, 10, 101)
    p = random_probabilities(1000, 101).float()
    zero = torch.zeros(1000)
    found = categorical_target(zero + 9.99, zero + 0.99, p, zero, z)
    assert (found.sum(-1) - 1).abs().max() < 1e-5


def test_cross_entropy_by_hand_and_its_gradient() -> None:
    logits = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64, requires_grad=True)
    m = torch.tensor([0.5, 0.5], dtype=torch.float64)
    loss = cross_entropy(m, logits)
    assert float(loss.detach()) == pytest.approx(-0.5 * math.log(0.25) - 0.5 * math.log(0.75))
    loss.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([0.25 - 0.5, 0.75 - 0.5], dtype=torch.float64))


@pytest.mark.parametrize("pessimistic", [True, False])
def test_critics_say_the_least_or_the_mean(pessimistic: bool) -> None:
    values = CategoricalValues(10.0, 3, pessimistic=pessimistic)
    certain = torch.tensor([[-100.0, 0, -100], [-100, -100, 0]])  # 0 and 10
    outputs = certain.unsqueeze(1)
    assert values.joint_value(outputs).tolist() == pytest.approx([0.0 if pessimistic else 5.0])
    zero = torch.zeros(1)
    target = values.target(zero, zero + 0.5, outputs, zero)
    # The least critic's certainty of 0 stays; the mean's half at 10 moves to 5, between 0 and 10
    assert target[0].tolist() == pytest.approx([0, 1, 0] if pessimistic else [0, 0.75, 0.25])
    assert float(values.mean_target(target)) == pytest.approx(0.0 if pessimistic else 2.5)
    scalar = ScalarValues(pessimistic=pessimistic)
    assert scalar.joint_value(torch.tensor([[[3.0]], [[1.0]]])).tolist() == [1.0 if pessimistic else 2.0]


def test_the_least_distribution_is_chosen_for_each_sample() -> None:
    values = CategoricalValues(1.0, 2, pessimistic=True)
    low, high = [50.0, -50.0], [-50.0, 50.0]
    outputs = torch.tensor([[low, high, high], [high, low, high]])
    zero = torch.zeros(3)
    assert values.target(zero, zero + 1, outputs, zero)[:, 0].tolist() == pytest.approx([1, 1, 0])


def test_errors_are_never_negative() -> None:
    values = CategoricalValues(10.0, 11, pessimistic=False)
    outputs = torch.randn(2, 4, 6, 11, generator=torch.Generator().manual_seed(0)) * 5
    target = random_probabilities(4, 6, 11).float()
    assert values.error(outputs, target).shape == (2, 4, 6)
    assert (values.error(outputs, target) >= 0).all()
