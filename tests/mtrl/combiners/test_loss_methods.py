"""The methods that need nothing but the losses, against autograd, torch's Adam and TorchJD in float64."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchjd import scalarization

from mtrl import combiners
from mtrl.combiners.adam import AdamVector
from mtrl.errors import InputError

T = 5


def loss_sequence(steps: int, seed: int = 0) -> list[Tensor]:
    """Positive losses of different scales that drift."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, T, generator=generator, dtype=torch.float64)
    return list((noise.cumsum(0) * 0.2 + torch.linspace(-3, 3, T, dtype=torch.float64)).exp())


def derivative(scalarize: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    """Every scalarization is a weighting: its weights are its derivative by the losses."""
    leaf = losses.clone().requires_grad_()
    return torch.autograd.grad(scalarize(leaf), leaf)[0]


def test_adam_vector_is_torch_adam() -> None:
    torch.manual_seed(0)
    reference = torch.nn.Parameter(torch.randn(T, dtype=torch.float64))
    adam = torch.optim.Adam([reference], lr=0.03)
    ours = AdamVector(reference.detach().clone(), 0.03)
    for _ in range(20):
        gradient = torch.randn(T, dtype=torch.float64)
        reference.grad = gradient
        adam.step()
        ours.step(gradient)
    torch.testing.assert_close(ours.value, reference.detach(), rtol=1e-12, atol=1e-14)


def test_unitary() -> None:
    assert combiners.make("unitary", T).weights(torch.randn(T)).equal(torch.ones(T))


def test_fixed() -> None:
    given = [0.0, 1.0, 2.5, 3.0, 0.1]
    weights = combiners.make("fixed", T, weights=given).weights(torch.rand(T, dtype=torch.float64))
    assert weights.tolist() == given


@pytest.mark.parametrize(
    "given",
    [None, "abcde", 3.0, [1.0] * 4, [1.0, -1.0, 1, 1, 1], [math.inf] + [1.0] * 4, [math.nan] * 5, [0.0] * 5],
)
def test_fixed_refuses_bad_weights(given: object) -> None:
    with pytest.raises(InputError, match=r"^weights(\[\d\])? of fixed: expected [^\n]*$"):
        combiners.make("fixed", T, weights=given)


def test_random_grad_drop_keeps_each_task_with_probability_p() -> None:
    combiner = combiners.make("random_grad_drop", T, p=0.3)
    draws = torch.stack([combiner.weights(torch.ones(T)) for _ in range(4000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(draws.mean(0), torch.full((T,), 0.3), rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(draws.T), torch.eye(T) * 0.21, rtol=0, atol=0.02)
    assert combiners.make("random_grad_drop", T, p=1.0).weights(torch.ones(T)).equal(torch.ones(T))


def test_random_grad_drop_can_drop_every_task_rescaled_or_not() -> None:
    for rescale in (False, True):
        combiner = combiners.make("random_grad_drop", 50, p=1e-9, rescale=rescale)
        assert combiner.weights(torch.ones(50)).equal(torch.zeros(50))


def test_rlw_normal_is_the_softmax_of_normals() -> None:
    weights = combiners.make("rlw_normal", T, seed=3).weights(torch.ones(T, dtype=torch.float64))
    normals = torch.randn(T, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(weights, normals.exp() / normals.exp().sum())


def test_rlw_dirichlet_is_uniform_on_the_simplex() -> None:
    combiner = combiners.make("rlw_dirichlet", T)
    draws = torch.stack([combiner.weights(torch.ones(T, dtype=torch.float64)) for _ in range(4000)])
    torch.testing.assert_close(draws.sum(1), torch.ones(4000, dtype=torch.float64))
    # A coordinate of Dirichlet(1, ..., 1) exceeds x with probability (1 - x)^(T - 1).
    for x in (0.1, 0.3, 0.6):
        assert (draws > x).double().mean().item() == pytest.approx((1 - x) ** (T - 1), abs=0.01)


def test_uncertainty_learns_as_autograd_and_torch_adam_do() -> None:
    reference = scalarization.UW(T).double()
    adam = torch.optim.Adam(reference.parameters(), lr=0.025)
    combiner = combiners.make("uncertainty", T)
    for losses in loss_sequence(30):
        torch.testing.assert_close(combiner.weights(losses), derivative(reference, losses), rtol=1e-10, atol=0)
        adam.zero_grad()
        reference(losses).backward()
        adam.step()


def test_uncertainty_settles_at_half_the_inverse_loss() -> None:
    combiner = combiners.make("uncertainty", T, learning_rate=0.05, initial=-0.5)
    losses = torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)
    assert combiner.weights(losses).tolist() == pytest.approx([math.exp(0.5) / 2] * T)
    for _ in range(1000):
        weights = combiner.weights(losses)
    torch.testing.assert_close(weights, 1 / (2 * losses), rtol=1e-3, atol=0)


@pytest.mark.parametrize("period", [1, 4])
def test_dwa(period: int) -> None:
    reference = scalarization.DWA(temperature=1.5)
    combiner = combiners.make("dwa", T, temperature=1.5, period=period)
    for call, losses in enumerate(loss_sequence(5 * period), start=1):
        torch.testing.assert_close(combiner.weights(losses), derivative(reference, losses), rtol=1e-10, atol=0)
        if call % period == 0:
            reference.step()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_scale_invariant(offset: float) -> None:
    (losses,) = loss_sequence(1)
    weights = combiners.make("scale_invariant", T, offset=offset).weights(losses)
    torch.testing.assert_close(weights, derivative(lambda x: (x + offset).log().sum(), losses))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 20.0])
def test_uw_so_is_the_softmax_of_inverse_losses(temperature: float) -> None:
    combiner = combiners.make("uw_so", T, temperature=temperature)
    for losses in loss_sequence(5):
        shares = [math.exp(1 / (temperature * loss)) for loss in losses.tolist()]
        assert combiner.weights(losses).tolist() == pytest.approx([share / sum(shares) for share in shares], rel=1e-12)
    assert combiner.weights(torch.tensor([1e-300, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)).tolist() == [1, 0, 0, 0, 0]
    assert combiner.weights(torch.full((T,), 1e-30)).tolist() == pytest.approx([1 / T] * T)


def partitions(items: list[int], groups: int) -> Iterator[list[list[int]]]:
    """All ways of putting items into so many groups."""
    if not items:
        if not groups:
            yield []
        return
    first, *rest = items
    for found in partitions(rest, groups):
        for number in range(groups):
            yield [[first, *own] if place == number else own for place, own in enumerate(found)]
    if groups:
        for found in partitions(rest, groups - 1):
            yield [[first], *found]


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 9])
def test_go4align_gives_each_group_of_the_best_partition_one_weight(groups: int) -> None:
    eta = 0.05
    combiner = combiners.make("go4align", T, groups=groups, eta=eta)
    p = [1 / T] * T
    for losses in loss_sequence(8):
        told = losses.tolist()
        p = [share * math.exp(-eta * loss) for share, loss in zip(p, told, strict=True)]
        p = [share / sum(p) for share in p]
        risks = np.array([share * sum(told) / loss for share, loss in zip(p, told, strict=True)])
        ways = partitions([*range(T)], min(groups, T))
        best = min(ways, key=lambda way: sum(((risks[own] - risks[own].mean()) ** 2).sum() for own in way))
        expected = [next(risks[own].mean() for own in best if task in own) for task in range(T)]
        assert combiner.weights(losses).tolist() == pytest.approx(expected, rel=1e-9)


def test_go4align_never_parts_tasks_of_equal_risk() -> None:
    losses = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0])
    weights = combiners.make("go4align", T, groups=3).weights(losses)
    assert len(set(weights.tolist())) == 2
    assert len(set(weights[:4].tolist())) == 1


@pytest.mark.parametrize("name", ["go4align", "uw_so"])
def test_losses_at_the_ends_of_float32_give_finite_weights(name: str) -> None:
    for losses in ([1e-38, 1e30, 1.0], [1e-45, 1.0, 2.0], [1e38, 2e38, 3e38], [1e-40, 1e-40, 0.0]):
        weights = combiners.make(name, 3).weights(torch.tensor(losses))
        assert weights.isfinite().all(), losses
        assert (weights >= 0).all(), losses


def test_go4align_forgets_no_task_for_good() -> None:
    """Were p kept as numbers, that of a task with large losses would underflow to 0, and stay there."""
    combiner = combiners.make("go4align", 2, eta=1.0)
    for _ in range(3):
        combiner.weights(torch.tensor([1.0, 1000.0]))
    for _ in range(3):
        weights = combiner.weights(torch.tensor([1000.0, 1.0]))
    assert (weights > 0).all()


def test_geometric_mean() -> None:
    for losses in loss_sequence(3):
        weights = combiners.make("geometric_mean", T).weights(losses)
        torch.testing.assert_close(weights, derivative(scalarization.GeometricMean(), losses))
        torch.testing.assert_close(weights, derivative(lambda x: x.prod() ** (1 / T), losses))


def test_geometric_mean_does_not_overflow() -> None:
    assert (
        combiners.make("geometric_mean", 50).weights(torch.full((50,), 1e30)).tolist()
        == [pytest.approx(1 / 50, rel=1e-6)] * 50
    )


@pytest.mark.parametrize(("mu", "warmup", "averaged"), [(0.05, 10, 2), (1.0, 10, 2), (1.0, 24, 4), (1.0, 3, 1)])
def test_stch(mu: float, warmup: int, averaged: int) -> None:
    combiner = combiners.make("stch", T, mu=mu, warmup=warmup)
    sequence = loss_sequence(warmup + 3)
    for losses in sequence[:warmup]:
        torch.testing.assert_close(combiner.weights(losses), 1 / losses)
    reference = torch.stack(sequence[warmup - averaged : warmup]).mean(0)
    oracle = scalarization.STCH(mu, torch.ones(T, dtype=torch.float64), reference.log())
    for losses in sequence[warmup:]:
        expected = derivative(lambda x: T * oracle(x.log()), losses)
        torch.testing.assert_close(combiner.weights(losses), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.01])
def test_famo(gamma: float) -> None:
    oracle = scalarization.FAMO(T, lr=0.025, weight_decay=gamma).double()
    combiner = combiners.make("famo", T, gamma=gamma)
    for before, after in zip(loss_sequence(20), loss_sequence(20, seed=1), strict=True):
        weights = combiner.weights(before)
        torch.testing.assert_close(weights, derivative(oracle, before), rtol=1e-6, atol=0)
        assert weights.sum().item() == pytest.approx(1)
        combiner.after_step(after)
        oracle.update(after)


def test_famo_gives_the_task_that_falls_slowest_more() -> None:
    combiner = combiners.make("famo", 2)
    for _ in range(10):
        weights = combiner.weights(torch.ones(2))
        combiner.after_step(torch.tensor([0.5, 0.9]))
    assert weights[1] > weights[0]


def test_famo_resumes_between_weights_and_after_step() -> None:
    combiner: Any = combiners.make("famo", 2)
    restored: Any = combiners.make("famo", 2)
    combiner.weights(torch.tensor([1.0, 2.0]))
    restored.load_state_dict(combiner.state_dict())
    for each in (combiner, restored):
        each.after_step(torch.tensor([0.5, 1.9]))
    assert restored.logits.value.equal(combiner.logits.value)


def test_famo_after_step_checks_its_losses() -> None:
    combiner = combiners.make("famo", 2)
    with pytest.raises(InputError, match="call weights first"):
        combiner.after_step(torch.ones(2))
    combiner.weights(torch.ones(2))
    with pytest.raises(InputError, match="famo needs positive losses, but task 1"):
        combiner.after_step(torch.tensor([1.0, -0.1]))
    with pytest.raises(InputError, match="2 tasks"):
        combiner.after_step(torch.ones(3))


@pytest.mark.parametrize("name", ["scale_invariant", "geometric_mean", "famo", "stch", "uw_so", "go4align"])
def test_a_loss_of_0_takes_no_part(name: str) -> None:
    """The others' weights are those of a combiner made for them alone."""
    options: dict[str, Any] = {"warmup": 3} if name == "stch" else {}
    combiner, alone = combiners.make(name, T, **options), combiners.make(name, T - 1, **options)
    others = [0, 1, 3, 4]
    for before, after in zip(loss_sequence(8), loss_sequence(8, seed=1), strict=True):
        before[2] = 0
        weights, expected = combiner.weights(before), alone.weights(before[others])
        assert weights[2] == 0
        share = T / (T - 1) if name == "stch" and combiner.calls > 3 else 1
        # The steps of FAMO's Adam are those of a gradient that is smaller by a factor.
        torch.testing.assert_close(weights[others], share * expected, rtol=1e-3 if name == "famo" else 1e-9, atol=0)
        combiner.after_step(after)
        alone.after_step(after[others])
    assert not combiner.weights(torch.zeros(T)).any()


def test_a_loss_that_falls_to_0_moves_no_logit_of_famo() -> None:
    combiner, alone = combiners.make("famo", 3), combiners.make("famo", 2)
    for _ in range(5):
        combiner.weights(torch.tensor([1.0, 2.0, 3.0]))
        alone.weights(torch.tensor([1.0, 2.0]))
        combiner.after_step(torch.tensor([0.5, 1.9, 0.0]))
        alone.after_step(torch.tensor([0.5, 1.9]))
    weights, expected = combiner.weights(torch.ones(3)), alone.weights(torch.ones(2))
    torch.testing.assert_close(weights[0] / weights[1], expected[0] / expected[1], rtol=1e-3, atol=0)


def test_an_infinite_loss_after_a_step_moves_no_logit_of_famo() -> None:
    combiner = combiners.make("famo", 3)
    combiner.weights(torch.ones(3))
    combiner.after_step(torch.full((3,), torch.inf))
    assert combiner.weights(torch.ones(3)).equal(torch.full((3,), 1 / 3))


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l"])
def test_a_task_learnt_perfectly_keeps_its_weight(name: str) -> None:
    """There is no finite optimum at 0, and no step towards it: in float32 the weight would overflow after 4,000."""
    combiner = combiners.make(name, 2, learning_rate=1.0)
    for _ in range(400):
        weights = combiner.weights(torch.tensor([0.0, 1.0]))
    assert weights[0] == combiners.make(name, 2).weights(torch.ones(2))[0]


def test_dwa_takes_a_ratio_to_0_for_1() -> None:
    combiner = combiners.make("dwa", 3, period=1)
    for losses in ([0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 1.0]):
        weights = combiner.weights(torch.tensor(losses))
    assert weights.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("random_grad_drop", "p", 0),
        ("random_grad_drop", "p", 1.1),
        ("random_grad_drop", "p", "half"),
        ("uncertainty", "learning_rate", 0.0),
        ("uncertainty", "initial", math.inf),
        ("dwa", "temperature", -1.0),
        ("dwa", "period", 0),
        ("dwa", "period", 2.5),
        ("scale_invariant", "offset", -0.1),
        ("uw_so", "temperature", 0.0),
        ("go4align", "groups", 0),
        ("go4align", "eta", 0.0),
        ("stch", "mu", 0.0),
        ("stch", "warmup", True),
        ("famo", "learning_rate", math.nan),
        ("famo", "gamma", -1e-3),
    ],
)
def test_options_out_of_range(name: str, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{option} of {name}: expected [^\n]*, got {value!r}$"):
        combiners.make(name, T, **{option: value})
