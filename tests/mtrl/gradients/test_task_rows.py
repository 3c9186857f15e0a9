"""Rows that are the tasks' own, beside what all share: no method weighs them, none sees them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mtrl import combiners
from mtrl.errors import InputError
from mtrl.gradients import NonFiniteError, TaskBatched, TaskRows
from mtrl.gradients.layers import EnsembleLinear
from tests.mtrl.gradients.test_task_batched import Weighted

T, B, FEATURES, SIZE = 4, 5, 3, 2


class Unknown(nn.Linear):
    """A layer without a rule."""


class Coded(nn.Module):
    """Each task's row goes into a shared network, as the critics' codes of tasks do."""

    def __init__(self, make: Callable[[int, int], nn.Module] = nn.Linear, order: Tensor | None = None) -> None:
        super().__init__()
        self.rows = TaskRows(T, SIZE)
        self.layers = nn.Sequential(make(FEATURES + SIZE, 7), nn.Tanh(), make(7, 1))
        self.ensemble, self.order = isinstance(self.layers[0], EnsembleLinear), order

    def forward(self, x: Tensor) -> Tensor:
        codes = torch.nn.functional.normalize(self.rows(), dim=-1)
        codes = codes if self.order is None else codes[self.order]
        x = torch.cat([x, codes.unsqueeze(1).expand(*x.shape[:-1], SIZE)], -1)
        return self.layers(x.expand(2, *x.shape)).sum(0) if self.ensemble else self.layers(x)


def losses_of(network: nn.Module) -> Tensor:
    x = torch.randn(T, B, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return network(x).square().flatten(1).mean(1) * torch.arange(1, T + 1)


def network(**options: object) -> Coded:
    torch.manual_seed(0)
    return Coded(**options).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [nn.Linear, Unknown, partial(EnsembleLinear, 2)])
@pytest.mark.parametrize("how", ["losses", "gramian", "gramian streamed", "jacobian"])
def test_rows_get_their_own_losss_gradient_and_the_rest_the_methods(
    how: str, layer: Callable[[int, int], nn.Module]
) -> None:
    expected, ours = network(make=layer), network(make=layer)
    needs, *more = how.split()
    combiner = Weighted(needs, T)  # type: ignore[arg-type]
    losses = losses_of(expected)
    shared = list(expected.layers.parameters())
    jacobian = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)]) for loss in losses]
    )
    own = torch.stack(
        [torch.autograd.grad(loss, expected.rows.weight, retain_graph=True)[0][t] for t, loss in enumerate(losses)]
    )
    limit = 8 * T * 20 if more else 2 << 30
    batched = TaskBatched(ours, T, allow_slow=layer is Unknown, memory_limit=limit)
    assert batched.num_shared == len(shared) == len(batched.parameters) - 1
    for _ in range(2):  # the first pass also checks promises
        ours.zero_grad()
        with batched.record():
            found = batched.backward(losses_of(ours), combiner, scale=0.5, insight=needs != "losses")
        torch.testing.assert_close(ours.rows.weight.grad, 0.5 * own)
        update = torch.cat([p.grad.flatten() for p in ours.layers.parameters() if p.grad is not None])
        torch.testing.assert_close(update, 0.5 * combiner.fixed(losses) @ jacobian)
        torch.testing.assert_close(found.update_norm, update.norm())
    if needs == "gramian":
        torch.testing.assert_close(combiner.gramian, jacobian @ jacobian.T)
    if needs == "jacobian":
        torch.testing.assert_close(combiner.jacobian, jacobian)


def test_a_row_that_serves_another_task_is_refused() -> None:
    mixed = network(order=torch.tensor([1, 0, 2, 3]))
    batched = TaskBatched(mixed, T)
    with (
        batched.record(),
        pytest.raises(InputError, match=r"another task's row"),
    ):
        batched.backward(losses_of(mixed), combiners.make("mgda", T))
    assert all(parameter.grad is None for parameter in mixed.parameters())


def test_a_row_whose_gradient_is_not_finite_names_its_task() -> None:
    ours = network()
    batched = TaskBatched(ours, T)
    ours.rows.weight.register_hook(lambda g: g.index_fill(0, torch.tensor([2]), torch.inf))
    with batched.record(), pytest.raises(NonFiniteError, match="task 2"):
        batched.backward(losses_of(ours), combiners.make("unitary", T))


def test_rows_alone_share_nothing() -> None:
    with pytest.raises(InputError, match="no trainable parameters"):
        TaskBatched(nn.Sequential(TaskRows(T, SIZE)), T)


def test_frozen_rows_stay() -> None:
    ours = network()
    ours.rows.requires_grad_(False)
    batched = TaskBatched(ours, T)
    with batched.record():
        batched.backward(losses_of(ours), combiners.make("pcgrad", T))
    assert ours.rows.weight.grad is None
    assert ours.layers[0].weight.grad is not None
