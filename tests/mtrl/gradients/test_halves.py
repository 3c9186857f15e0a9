"""The gradients of each half of every task's samples, from one backward pass."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl import combiners, gradients
from mtrl.errors import InputError
from mtrl.gradients import TaskBatched
from mtrl.gradients.conflict import conflict_metrics
from mtrl.gradients.layers import EnsembleLinear
from tests.mtrl.gradients.test_task_batched import FEATURES, NETWORKS, Calls, T

UNEVEN = ["called_twice", "one_embedding_per_task", "one_sample_without_its_dimension"]
SAMPLED = [name for name in NETWORKS if name not in UNEVEN]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().double()


def inputs(count: int, seed: int = 1) -> Tensor:
    return torch.randn(T, count, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses_of(network: Callable[[Tensor], Tensor], x: Tensor, mask: Tensor | float = 1.0) -> Tensor:
    """Means over samples, each of which counts as often as a mask says."""
    return (network(x).square().flatten(2).sum(2) * mask).mean(1) * torch.arange(1, T + 1)


def jacobian_of(network: nn.Module, losses: Tensor) -> Tensor:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
            )
        )
    return torch.stack(rows)


@pytest.mark.parametrize("count", [4, 7])
@pytest.mark.parametrize("memory_limit", [0, 2 << 30])
@pytest.mark.parametrize("name", SAMPLED)
def test_the_gramian_of_halves_is_that_of_two_batches(name: str, memory_limit: int, count: int) -> None:
    network, x = build(name), inputs(5 if "more_sample" in name else count)
    count = x.shape[1]
    masks = torch.zeros(2, count, dtype=torch.float64)
    masks[0, : count // 2] = masks[1, -(count // 2) :] = count / (count // 2)
    rows = torch.cat([jacobian_of(network, losses_of(network, x, mask)) for mask in masks])
    whole = jacobian_of(network, losses_of(network, x))
    combiner = combiners.make("modo", T, gamma=0.01)
    expected = combiners.make("modo", T, gamma=0.01).weights(torch.ones(T, dtype=torch.float64), rows @ rows.T)
    batched = TaskBatched(network, T, memory_limit=memory_limit)
    with batched.record():
        losses = losses_of(network, x)
    source = batched.source(losses)
    torch.testing.assert_close(source.gramian_of_halves(across=False), rows @ rows.T)
    torch.testing.assert_close(source.gramian_of_halves(across=True), rows[:T] @ rows[T:].T)
    for insight in (False, True):
        network.zero_grad()
        combiner = combiners.make("modo", T, gamma=0.01)
        with batched.record():
            losses = losses_of(network, x)
        found = batched.backward(losses, combiner, insight=insight)
        assert found.weights is not None
        torch.testing.assert_close(found.weights, expected)
        update = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        reached = torch.cat([torch.full((p.numel(),), p.grad is not None) for p in batched.parameters])
        torch.testing.assert_close(update, (expected @ whole)[reached])
        if insight:
            assert found.gramian is not None
            torch.testing.assert_close(found.gramian, whole @ whole.T)  # of all samples
            assert conflict_metrics(found, list("abcd"))["conflicting_pairs"] <= 1
        else:
            assert found.gramian is None


def test_the_product_of_two_halves_is_that_of_the_true_gradients_on_average() -> None:
    """Over all draws of two samples for each task, where one batch's Gramian holds the variance of the noise."""
    torch.manual_seed(0)
    network, data = nn.Linear(FEATURES, 1).double(), inputs(3)
    true = jacobian_of(network, losses_of(network, data))
    batched, products, grams = TaskBatched(network, T), [], []
    for pair in itertools.product(range(3), repeat=2):
        with batched.record():
            losses = losses_of(network, data[:, list(pair)])
        source = batched.source(losses)
        products.append(source.gramian_of_halves(across=True))
        grams.append(source.gramian())
    torch.testing.assert_close(torch.stack(products).mean(0).diagonal(), (true @ true.T).diagonal())
    assert (torch.stack(grams).mean(0).diagonal() > 1.01 * (true @ true.T).diagonal()).all()


def test_a_single_sample_has_no_halves() -> None:
    network = build("mlp")
    batched = TaskBatched(network, T)
    with (
        batched.record(),
        pytest.raises(InputError, match=r"samples need two or more, .* got 1$"),
    ):
        batched.backward(losses_of(network, inputs(1)), combiners.make("modo", T))
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(("name", "got"), [("called_twice", "3, 4"), ("one_embedding_per_task", "1, 4")])
def test_layers_called_on_other_numbers_of_samples_have_no_halves(name: str, got: str) -> None:
    network = build(name)
    batched = TaskBatched(network, T)
    with batched.record():
        losses = network(inputs(4)).square().flatten(1).mean(1)
    with pytest.raises(InputError, match=f"as many in every call of a layer: got {got}$"):
        batched.backward(losses, combiners.make("modo", T))


@pytest.mark.parametrize("by", ["parameters", "representation", "batches"])
def test_losses_of_shared_samples_have_no_halves(by: str) -> None:
    shared, head = nn.Linear(FEATURES, 3).double(), nn.Linear(3, T).double()
    z = shared(inputs(4)[0])
    losses = head(z).square().mean(0)
    combiner = combiners.make("modo", T)
    message = r"^there are no halves of each task's samples to compare, .*: set halves=false"
    if by == "batches":
        unknown = Calls(lambda self, x: self.layer(x), layer=type("Other", (nn.Linear,), {})(FEATURES, 1)).double()
        batched = TaskBatched(unknown, T, allow_slow=True)
        with batched.record(), pytest.raises(InputError, match=message):
            batched.backward(losses_of(unknown, inputs(4)), combiner)
        return
    given = z if by == "representation" else None
    with pytest.raises(InputError, match=message):
        gradients.backward(losses, combiner, shared=shared, specific=head, representation=given)
    biased = combiners.make("modo", T, halves=False)
    gradients.backward(losses, biased, shared=shared, specific=head, representation=given)
    assert shared.weight.grad is not None


@pytest.mark.parametrize("wrapping", [{"every": 2}, {"smooth": 0.5}, {"log": True}, {"every": 2, "log": True}])
def test_wrapped_methods_of_halves_see_halves(wrapping: dict[str, Any]) -> None:
    network = nn.Sequential(EnsembleLinear(2, FEATURES, 5), nn.ReLU(), EnsembleLinear(2, 5, 1)).double()

    def forward(x: Tensor) -> Tensor:
        return network(x.expand(2, *x.shape)).movedim(0, -1)

    batched, combiner = TaskBatched(network, T), combiners.make("modo", T, gamma=0.01, **wrapping)
    assert combiner.halves
    for seed in range(3):
        with batched.record():
            losses = losses_of(forward, inputs(6, seed))
        found = batched.backward(losses, combiner)
        assert found.weights is not None
        assert found.weights.isfinite().all()
    inner = combiners.make("modo", T, gamma=0.01)
    if wrapping == {"log": True}:
        with batched.record():
            losses = losses_of(forward, inputs(6, 0))
        gramian = batched.source(losses).gramian_of_halves(across=False)
        inverse = (1 / losses.detach()).repeat(2)
        expected = inner.weights(losses, gramian * inverse[:, None] * inverse) / losses.detach()
        for shown in (gramian, gramian[:T, T:]):
            fresh = combiners.make("modo", T, gamma=0.01, log=True)
            torch.testing.assert_close(fresh.weights(losses, shown), expected)
