from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtrl import gradients
from mtrl.errors import InputError
from mtrl.gradients.layers import EnsembleEmbedding, EnsembleLayerNorm, EnsembleLinear


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_ensemble_linear_is_one_linear_layer_per_member(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ensemble = EnsembleLinear(3, 4, 6).double()
    nn.init.normal_(ensemble.bias)
    x = torch.randn(3, *shape, 4, dtype=torch.float64)
    y = ensemble(x)
    assert y.shape == (3, *shape, 6)
    for member in range(3):
        expected = nn.functional.linear(x[member], ensemble.weight[member].T, ensemble.bias[member])
        torch.testing.assert_close(y[member], expected)


def test_ensemble_linear_takes_one_input_for_all_members() -> None:
    ensemble = EnsembleLinear(3, 4, 6)
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(ensemble(x.expand(3, *x.shape)), ensemble(x.repeat(3, 1, 1, 1)))


def test_ensemble_linear_starts_as_different_linear_layers() -> None:
    torch.manual_seed(0)
    ensemble, single = EnsembleLinear(2, 300, 400), nn.Linear(300, 400)
    assert not torch.equal(ensemble.weight[0], ensemble.weight[1])
    for member in ensemble.weight:
        torch.testing.assert_close(member.std(), single.weight.std(), rtol=0.02, atol=0)
        assert member.abs().max() <= 300**-0.5
    assert not ensemble.bias.any()


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_ensemble_layer_norm_is_one_layer_norm_per_member(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ensemble = EnsembleLayerNorm(3, 4).double()
    x = torch.randn(3, *shape, 4, dtype=torch.float64)
    torch.testing.assert_close(ensemble(x), nn.functional.layer_norm(x, (4,)))
    nn.init.normal_(ensemble.weight)
    nn.init.normal_(ensemble.bias)
    y = ensemble(x)
    for member in range(3):
        expected = nn.functional.layer_norm(x[member], (4,), ensemble.weight[member], ensemble.bias[member])
        torch.testing.assert_close(y[member], expected)


def test_ensemble_embedding_is_one_table_per_member() -> None:
    torch.manual_seed(0)
    ensemble = EnsembleEmbedding(3, 7, 4)
    index = torch.tensor([[0, 6], [3, 3]])
    y = ensemble(index)
    assert y.shape == (3, 2, 2, 4)
    for member in range(3):
        assert torch.equal(y[member], nn.functional.embedding(index, ensemble.weight[member]))


class Scale(nn.Module):
    """A layer that this package does not know: ``y = x * weight``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_a_layer_of_ones_own_gets_its_gradients_by_its_rule() -> None:
    network = nn.Sequential(nn.Linear(3, 4), Scale(4))
    with pytest.raises(InputError, match=r"layer '1' \(Scale with parameters weight\) has no per-task gradient rule"):
        gradients.TaskBatched(network, 2)

    @gradients.register_rule(Scale)
    def rule(module: nn.Module, x: torch.Tensor, delta: torch.Tensor, out: dict[str, torch.Tensor]) -> None:
        torch.sum(x * delta, 1, out=out["weight"])

    batched = gradients.TaskBatched(network, 2)
    with batched.record():
        losses = network(torch.ones(2, 5, 3)).square().flatten(1).mean(1) * torch.tensor([1.0, 2.0])
    rows = [torch.autograd.grad(loss, batched.parameters, retain_graph=True) for loss in losses]
    expected = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    torch.testing.assert_close(batched.source(losses).jacobian(), expected)
    batched.forget()


class Products(TorchDispatchMode):
    """The depths of all batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.depths: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm):
            self.depths.append(args[-1].shape[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_output_is_the_same_layer_without_a_product_of_depth_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x, delta = EnsembleLinear(2, 5, 1), torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 1)

    def gradients_of(y: torch.Tensor) -> list[torch.Tensor]:
        return [y, *torch.autograd.grad(y, [x, layer.weight, layer.bias], delta.to(y.dtype))]

    with Products() as products:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = layer(x)
        found = gradients_of(y)
    assert 1 not in products.depths
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        plain = torch.baddbmm(layer.bias.unsqueeze(1), x.flatten(1, -2), layer.weight).view(2, 3, 4, 1)
    assert all(map(torch.equal, found, gradients_of(plain)))
    double = layer.double()
    assert torch.autograd.gradgradcheck(double, x.detach().double().requires_grad_())
