"""One backward pass for T disjoint batches, against a plain loop of `torch.autograd.grad`."""

import math
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl import combiners
from mtrl.combiners import Combiner, Needs
from mtrl.errors import InputError
from mtrl.gradients import Combination, NonFiniteError, TaskBatched, check_finite, pipeline
from mtrl.gradients.layers import EnsembleEmbedding, EnsembleLayerNorm, EnsembleLinear
from mtrl.gradients.precision import CHUNK, inner_products

T, B, FEATURES = 4, 5, 6


class Weighted(Combiner):
    """Fixed uneven weights, by whichever way ``needs`` says; keeps what it was shown."""

    def __init__(self, needs: Needs, num_tasks: int = T) -> None:
        super().__init__(num_tasks)
        self.needs = needs  # type: ignore[misc]
        self.calls = 0
        self.jacobian = self.gramian = torch.empty(0)

    def fixed(self, losses: Tensor) -> Tensor:
        return torch.linspace(-0.5, 2.0, self.num_tasks, dtype=losses.dtype)

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        self.calls += 1
        if gramian is not None:
            self.gramian = gramian.clone()
        return self.fixed(losses)

    def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
        self.calls += 1
        self.jacobian = jacobian.clone()
        direction = self.fixed(losses) @ jacobian
        jacobian.fill_(torch.nan)  # it may be overwritten
        return direction


class Calls(nn.Module):
    """A network made of named modules and a function of them and the input."""

    def __init__(self, function: Callable[["Calls", Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def indices(x: Tensor) -> Tensor:
    """Integers in [0, 4) that depend on the sample, ``[T, B]``."""
    return (x[..., 0] * 10).long() % 4


def frozen() -> nn.Module:
    network = nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 3))
    network[0].requires_grad_(False)
    network[2].bias.requires_grad_(False)
    network[4].weight.requires_grad_(False)
    return network


def ensemble(*layers: nn.Module) -> nn.Module:
    return Calls(lambda self, x: self.layers(x.expand(2, *x.shape)).movedim(0, -1), layers=nn.Sequential(*layers))


# Each maps [T, B, FEATURES] to [T, B, ...].
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(FEATURES, 3),
    "linear_without_bias": lambda: nn.Linear(FEATURES, 3, bias=False),
    "mlp": lambda: nn.Sequential(nn.Linear(FEATURES, 7), nn.ReLU(), nn.Linear(7, 3)),
    "layer_norm": lambda: nn.Sequential(nn.Linear(FEATURES, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 1)),
    "layer_norm_without_bias": lambda: nn.Sequential(nn.LayerNorm(FEATURES, bias=False), nn.Linear(FEATURES, 2)),
    "layer_norm_without_affine": lambda: nn.Sequential(
        nn.Linear(FEATURES, 7), nn.LayerNorm(7, elementwise_affine=False), nn.Linear(7, 1)
    ),
    "layer_norm_of_two_dimensions": lambda: nn.Sequential(
        nn.Unflatten(-1, (2, 3)), nn.Linear(3, 4), nn.LayerNorm((2, 4), eps=0.1), nn.Tanh(), nn.Linear(4, 1)
    ),
    "rms_norm": lambda: nn.Sequential(nn.Linear(FEATURES, 7), nn.RMSNorm(7), nn.Tanh(), nn.Linear(7, 1)),
    "rms_norm_of_two_dimensions": lambda: nn.Sequential(
        nn.Unflatten(-1, (2, 3)), nn.Linear(3, 4), nn.RMSNorm((2, 4), eps=0.1), nn.Tanh(), nn.Linear(4, 1)
    ),
    "rms_norm_without_affine": lambda: nn.Sequential(
        nn.Linear(FEATURES, 7), nn.RMSNorm(7, elementwise_affine=False), nn.Linear(7, 1)
    ),
    "embedding": lambda: Calls(
        lambda self, x: self.head(self.table(indices(x))), table=nn.Embedding(4, 3), head=nn.Linear(3, 2)
    ),
    "embedding_with_padding": lambda: Calls(
        lambda self, x: self.head(self.table(indices(x))),
        table=nn.Embedding(4, 3, padding_idx=1),
        head=nn.Linear(3, 2),
    ),
    "one_embedding_per_task": lambda: Calls(
        lambda self, x: self.head(x + self.table(torch.arange(T) // 2).unsqueeze(1)),
        table=nn.Embedding(3, FEATURES),
        head=nn.Linear(FEATURES, 2),
    ),
    "ensemble_linear": lambda: ensemble(EnsembleLinear(2, FEATURES, 7), nn.ReLU(), EnsembleLinear(2, 7, 1)),
    "ensemble_layer_norm": lambda: ensemble(
        EnsembleLinear(2, FEATURES, 7), EnsembleLayerNorm(2, 7), nn.Tanh(), EnsembleLinear(2, 7, 1)
    ),
    "ensemble_embedding": lambda: Calls(
        lambda self, x: self.head(self.table(indices(x))).movedim(0, -1),
        table=EnsembleEmbedding(2, 4, 3),
        head=EnsembleLinear(2, 3, 2),
    ),
    "called_twice": lambda: Calls(
        lambda self, x: self.head(self.twice(self.twice(x).tanh()[:, 1:])),
        twice=nn.Linear(FEATURES, FEATURES),
        head=nn.Linear(FEATURES, 1),
    ),
    "more_sample_dimensions": lambda: Calls(
        lambda self, x: self.head(self.norm(self.body(x.view(T, B, 2, 3))).tanh()),
        body=nn.Linear(3, 4),
        norm=nn.LayerNorm(4),
        head=nn.Linear(4, 1),
    ),
    "ensemble_of_more_sample_dimensions": lambda: Calls(
        lambda self, x: self.body(x.view(1, T, B, 2, 3).expand(3, T, B, 2, 3)).movedim(0, -1).tanh(),
        body=nn.Sequential(EnsembleLinear(3, 3, 4), EnsembleLayerNorm(3, 4)),
    ),
    "one_sample_without_its_dimension": lambda: Calls(lambda self, x: self.body(x[:, 0]), body=nn.Linear(FEATURES, 3)),
    "frozen": frozen,
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(FEATURES, 5), nn.Sequential(nn.Tanh(), nn.LayerNorm(5))), nn.Linear(5, 2)
    ),
    "layer_not_called": lambda: Calls(lambda self, x: self.used(x), idle=nn.Linear(3, 3), used=nn.Linear(FEATURES, 2)),
    "layer_without_influence": lambda: Calls(
        lambda self, x: (self.idle(x), self.used(x))[1],
        idle=nn.Linear(FEATURES, 3),
        used=nn.Linear(FEATURES, 2),
    ),
}


def task_losses(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y = network(x).flatten(1)
    return (y.sin() + 0.3 * y.square()).mean(1) * torch.logspace(-2, 2, len(x), dtype=x.dtype)


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = NETWORKS[name]().to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():  # neither scales of one nor shifts of zero
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network, torch.randn(T, B, FEATURES, dtype=dtype).abs()


def oracle(losses: Tensor, parameters: Sequence[Tensor]) -> list[list[Tensor | None]]:
    """The gradient of each loss by each parameter, one pass per task."""
    return [list(torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True)) for x in losses]


def jacobian_of(rows: list[list[Tensor | None]], parameters: Sequence[Tensor]) -> Tensor:
    return torch.stack(
        [
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(row, parameters, strict=True)]
            )
            for row in rows
        ]
    )


def assert_gradients(network: nn.Module, rows: list[list[Tensor | None]], weights: Tensor, **tolerance: Any) -> None:
    """``.grad`` is the weighted sum of the rows, and None where no loss reaches the parameter."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter, gradients in zip(parameters, zip(*rows, strict=True), strict=True):
        terms = [w * g for w, g in zip(weights, gradients, strict=True) if g is not None]
        if terms:
            torch.testing.assert_close(parameter.grad, torch.stack(terms).sum(0), **tolerance)
        else:
            assert parameter.grad is None
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("needs", "memory_limit"), [("losses", 0), ("gramian", 0), ("gramian", 1 << 20), ("jacobian", 1 << 20)]
)
def test_equals_a_loop_over_tasks(name: str, needs: Needs, memory_limit: int, dtype: torch.dtype) -> None:
    network, x = made(name, dtype)
    combiner = Weighted(needs)
    batched = TaskBatched(network, T, memory_limit=memory_limit)
    with batched.record():
        losses = task_losses(network, x)
    rows = oracle(losses, batched.parameters)
    jacobian = jacobian_of(rows, batched.parameters)
    combination = batched.backward(losses, combiner, scale=0.25, insight=True)

    tolerance: dict[str, Any] = (
        {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    )
    weights = combiner.fixed(losses)
    assert_gradients(network, rows, 0.25 * weights, **tolerance)
    if needs == "gramian":
        torch.testing.assert_close(combiner.gramian, jacobian @ jacobian.T, **tolerance)
    if needs == "jacobian":
        torch.testing.assert_close(combiner.jacobian, jacobian, **tolerance)

    update = weights @ jacobian
    assert combination.gramian is not None
    assert combination.alignment is not None
    assert (combination.weights is None) == (needs == "jacobian")
    torch.testing.assert_close(combination.losses, losses.detach())
    torch.testing.assert_close(combination.gramian, jacobian @ jacobian.T, **tolerance)
    torch.testing.assert_close(
        combination.alignment, torch.cosine_similarity(jacobian, update[None], eps=0), **tolerance
    )
    torch.testing.assert_close(combination.update_norm, 0.25 * update.norm(), **tolerance)
    for tensor in (combination.losses, combination.weights, combination.gramian, combination.alignment):
        assert tensor is None or not tensor.requires_grad


@pytest.mark.parametrize("needs", ["losses", "gramian", "jacobian"])
def test_accumulates_like_backward(needs: Needs) -> None:
    network, x = made("mlp")
    batched = TaskBatched(network, T)
    for _ in range(2):
        with batched.record():
            losses = task_losses(network, x)
        batched.backward(losses, Weighted(needs))
    found = [p.grad for p in batched.parameters]
    network.zero_grad()
    (2 * Weighted(needs).fixed(losses) * task_losses(network, x)).sum().backward()
    for parameter, gradient in zip(batched.parameters, found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_gradients_share_no_memory() -> None:
    network, x = made("mlp")
    batched = TaskBatched(network, T)

    class Remembers(Weighted):
        def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
            self.memory = super()._combine(losses, jacobian)
            return self.memory

    combiner = Remembers("jacobian")
    with batched.record():
        losses = task_losses(network, x)
    batched.backward(losses, combiner)
    before = combiner.memory.clone()
    for parameter in batched.parameters:
        assert parameter.grad is not None
        parameter.grad.zero_()
    torch.testing.assert_close(combiner.memory, before)


@pytest.mark.parametrize("name", ["unitary", "random_grad_drop"])
def test_insight_does_not_change_a_bit(name: str) -> None:
    gradients = []
    for insight in (False, True):
        network, x = made("layer_norm", torch.float32)
        batched = TaskBatched(network, T)
        with batched.record():
            losses = task_losses(network, x)
        combination = batched.backward(losses, combiners.make(name, T), insight=insight)
        assert (combination.gramian is not None) == insight
        gradients.append([p.grad for p in batched.parameters])
    for without, with_ in zip(*gradients, strict=True):
        assert without is not None
        assert torch.equal(without, with_)


def test_losses_methods_need_no_recording() -> None:
    network, x = made("mlp")
    batched = TaskBatched(network, T)
    losses = task_losses(network, x)
    expected = torch.autograd.grad(losses.sum(), batched.parameters, retain_graph=True)
    batched.backward(losses, combiners.make("unitary", T))
    for parameter, gradient in zip(batched.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("needs", ["losses", "gramian"])
def test_losses_may_be_more_precise_than_the_network(needs: Needs) -> None:
    network, x = made("mlp", torch.float32)
    batched = TaskBatched(network, T)
    with batched.record():
        losses = task_losses(network, x).double()
    rows = oracle(losses, batched.parameters)
    combination = batched.backward(losses, Weighted(needs), insight=True)
    assert combination.weights is not None
    assert_gradients(network, rows, combination.weights.float(), rtol=1e-4, atol=1e-5)


def test_one_task() -> None:
    network, x = made("mlp")
    batched = TaskBatched(network, 1)
    with batched.record():
        losses = task_losses(network, x[:1])
    combiner = Weighted("gramian", 1)
    rows = oracle(losses, batched.parameters)
    batched.backward(losses, combiner)
    assert_gradients(network, rows, combiner.fixed(losses))


# ------------------------------------------------------------------------------------- what is recorded, and when


def test_records_only_what_needs_gradients() -> None:
    """A target copy, a pass without gradients and a call outside do not count."""
    network, x = made("mlp")
    target = deepcopy(network)
    batched = TaskBatched(network, T)
    with batched.record():
        with torch.no_grad():
            network(2 * x)
        targets = target(x).detach()
        losses = (network(x) - 0.5 * targets).square().flatten(1).mean(1)
    network(3 * x)
    rows = oracle(losses, batched.parameters)
    combiner = Weighted("gramian")
    batched.backward(losses, combiner)
    assert_gradients(network, rows, combiner.fixed(losses))
    assert all(p.grad is None for p in target.parameters())


@pytest.mark.parametrize("needs", ["losses", "gramian", "jacobian"])
def test_gradients_flow_through_another_network_and_leave_it_alone(needs: Needs) -> None:
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    critic = nn.Sequential(EnsembleLinear(2, 2, 7), nn.ReLU(), EnsembleLinear(2, 7, 1)).double()
    x = torch.randn(T, B, FEATURES, dtype=torch.float64)
    actor_gradients, critic_gradients = TaskBatched(actor, T), TaskBatched(critic, T)
    with actor_gradients.record():
        actions = actor(x)
        values = critic(actions.expand(2, *actions.shape)).amin(0)
        losses = -values.flatten(1).mean(1)
    rows = oracle(losses, actor_gradients.parameters)
    combiner = Weighted(needs)
    actor_gradients.backward(losses, combiner)
    assert_gradients(actor, rows, combiner.fixed(losses))
    assert all(p.grad is None for p in critic.parameters())
    with pytest.raises(InputError, match=r"no layer .* inside record\(\)"):
        critic_gradients.backward(losses, Weighted("gramian"))


@pytest.mark.parametrize("needs", ["losses", "gramian"])
@pytest.mark.parametrize("memory_limit", [0, 1 << 30])
def test_the_pieces_are_the_backward_pass(needs: Needs, memory_limit: int) -> None:
    network, x = made("ensemble_layer_norm")
    combiner = Weighted(needs)
    batched = TaskBatched(network, T, memory_limit=memory_limit)
    with batched.record():
        losses = task_losses(network, x)
    whole = batched.backward(losses, combiner, scale=0.5)
    expected = [p.grad for p in batched.parameters]
    with batched.record():
        losses = task_losses(network, x)
    source = batched.source(losses)
    with torch.no_grad():
        seen = pipeline.look(combiner, source)
        found = pipeline.gradients(combiner, source, combiner.fixed(losses), 0.5)
    assert torch.equal(pipeline.norm_of(found), whole.update_norm)
    assert seen is None or (whole.gramian is not None and torch.equal(seen, whole.gramian))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
    batched.forget()
    with pytest.raises(InputError, match="no layer of the network was called"):
        batched.source(losses).gramian()


def test_one_recording_serves_one_backward() -> None:
    network, x = made("mlp")
    batched = TaskBatched(network, T)
    with batched.record():
        losses = task_losses(network, x)
    batched.backward(losses, Weighted("gramian"))
    with pytest.raises(InputError, match=r"no layer .* inside record\(\)"):
        batched.backward(losses, Weighted("gramian"))


def test_hooks_do_not_outlive_an_error() -> None:
    network, _ = made("mlp")
    batched = TaskBatched(network, T)
    with pytest.raises(ZeroDivisionError), batched.record():
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in network.modules())


def test_parameters_that_change_later_are_refused() -> None:
    network, _ = made("mlp")
    batched = TaskBatched(network, T)
    network.get_submodule("0").requires_grad_(False)
    with pytest.raises(InputError, match="make a new TaskBatched"), batched.record():
        pass


def test_compiled_networks_are_recorded() -> None:
    network, x = made("mlp")
    compiled = torch.compile(network, backend="eager")
    task_losses(compiled, x)  # compiled before hooks are there
    batched = TaskBatched(network, T)
    with batched.record():
        losses = task_losses(compiled, x)
    rows = oracle(losses, batched.parameters)
    combiner = Weighted("gramian")
    batched.backward(losses, combiner)
    assert_gradients(network, rows, combiner.fixed(losses))


def test_recordings_that_overlap_leave_compilation_as_it_was() -> None:
    """As two agents in threads do: the first to begin is the first to end."""
    graphs = list[str]()

    def compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph.code)
        return graph.forward

    network, x = made("mlp")
    compiled = torch.compile(network, backend=compiler)
    first, second = (TaskBatched(made("mlp")[0], T).record() for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    task_losses(compiled, x)
    assert not graphs
    second.__exit__(None, None, None)
    task_losses(compiled, x)
    assert graphs


# ---------------------------------------------------------------------------------------------- broken promises


def backward(network: nn.Module, losses_of: Callable[[nn.Module, Tensor], Tensor], num_tasks: int = T) -> Combination:
    torch.manual_seed(1)
    batched = TaskBatched(network.double(), num_tasks)
    with batched.record():
        losses = losses_of(network, torch.randn(T, B, FEATURES, dtype=torch.float64))
    return batched.backward(losses, Weighted("gramian", num_tasks))


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "batch statistics": lambda y: (y - y.mean((0, 1))) / y.std((0, 1)),
    "maximum over tasks": lambda y: y / y.abs().amax(),
    "the next task": lambda y: y + 0.1 * y.roll(1, 0),
    "swapped dimensions": lambda y: y[:, :T].transpose(0, 1),
}


@pytest.mark.parametrize("mix", MIXING)
def test_mixed_tasks_are_found(mix: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, 3))
    with pytest.raises(InputError, match=r"the losses mix tasks behind layer '[02]'"):
        backward(network, lambda net, x: MIXING[mix](net(x)).square().flatten(1).mean(1))


def test_parameters_used_outside_their_layer_are_found() -> None:
    network = nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, 3))
    with pytest.raises(InputError, match="layer '0' does not come from its calls alone"):
        backward(
            network, lambda net, x: net(x).square().flatten(1).mean(1) + net.get_parameter("0.weight").square().sum()
        )


def test_a_hook_that_changes_the_output_is_found() -> None:
    network = nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, 3))
    network[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(InputError, match="layer '0' does not come from its calls alone"):
        backward(network, task_losses)


def test_broken_promises_leave_no_gradient_and_later_backwards_work() -> None:
    network, x = made("mlp")
    batched = TaskBatched(network, T)
    with batched.record():
        losses = task_losses(network, x)
    with pytest.raises(InputError, match="mix tasks"):
        batched.backward(losses + losses.sum(), Weighted("gramian"))
    assert all(p.grad is None for p in batched.parameters)
    with batched.record():
        losses = task_losses(network, x)
    batched.backward(losses, Weighted("gramian"))


@pytest.mark.parametrize("late", [False, True])
def test_changes_in_place_are_found(late: bool) -> None:
    """At every backward, not only the first."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    batched = TaskBatched(network, T)
    x = torch.randn(T, B, FEATURES, dtype=torch.float64)
    if late:
        with batched.record():
            losses = task_losses(network, x)
        batched.backward(losses, Weighted("gramian"))
    network[1] = nn.ReLU(inplace=True)
    with batched.record():
        losses = task_losses(network, x)
    with pytest.raises(InputError, match="output of layer '0' was changed in place"):
        batched.backward(losses, Weighted("gramian"))


@pytest.mark.parametrize("name", ["linear", "ensemble_linear", "embedding"])
def test_a_wrong_task_dimension_is_named(name: str) -> None:
    network, x = made(name)
    batched = TaskBatched(network, T)
    with batched.record():
        losses = task_losses(network, torch.cat([x, x]))[:T]
    with pytest.raises(InputError, match=rf"layer '.*' got or gave a tensor of shape .*: expected {T} tasks"):
        batched.backward(losses, Weighted("gramian"))


def test_a_wrong_number_of_losses_is_named() -> None:
    network, x = made("mlp")
    batched = TaskBatched(network, T)
    with batched.record():
        losses = task_losses(network, x)
    with pytest.raises(InputError, match=re.escape(f"one loss for each of {T} tasks, got (3,)")):
        batched.backward(losses[:3], Weighted("gramian", 3))


def test_a_jacobian_over_the_limit_is_refused() -> None:
    network, x = made("mlp")
    batched = TaskBatched(network, T, memory_limit=1000)
    with batched.record():
        losses = task_losses(network, x)
    with pytest.raises(
        InputError, match="4 tasks x 73 parameters needs 2,336 bytes, memory_limit is 1,000: raise it, or"
    ):
        batched.backward(losses, Weighted("jacobian"))


# ------------------------------------------------------------------------------------------- unsupported layers


class SubclassedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def tied() -> nn.Module:
    network = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES))
    network[2].weight = network[0].weight
    return network


def own_parameter() -> nn.Module:
    network = Calls(lambda self, x: self.body(x) * self.gain, body=nn.Linear(FEATURES, 3))
    network.gain = nn.Parameter(torch.ones(3))
    return network


UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(FEATURES, B), nn.BatchNorm1d(B), nn.Linear(B, 2)),
        r"layer '1' \(BatchNorm1d with parameters weight, bias\) has no per-task gradient rule",
    ),
    "subclass": (lambda: nn.Sequential(SubclassedLinear(FEATURES, 3)), r"layer '0' \(SubclassedLinear"),
    "own parameter": (own_parameter, r"layer 'Calls' \(Calls with parameters gain\)"),
    "parametrised": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, 3))),
        "layer '0' .*ParametrizedLinear",
    ),
    "re-parametrised by a hook": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(FEATURES, 3))),
        r"layer '0' \(Linear with parameters bias, weight_orig\)",
    ),
    "scaled embedding": (
        lambda: Calls(
            lambda self, x: self.head(self.table(indices(x))),
            table=nn.Embedding(4, 3, scale_grad_by_freq=True),
            head=nn.Linear(3, 2),
        ),
        r"layer 'table' \(Embedding",
    ),
    "tied": (tied, "layers '0' and '2' share a parameter"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_unsupported_layers_are_named(kind: str) -> None:
    make, message = UNSUPPORTED[kind]
    with pytest.raises(InputError, match=message + ".*allow_slow=True"):
        TaskBatched(make(), T)


@pytest.mark.parametrize("kind", UNSUPPORTED)
@pytest.mark.parametrize(
    ("needs", "memory_limit"), [("losses", 0), ("gramian", 0), ("gramian", 1 << 20), ("jacobian", 1 << 20)]
)
def test_allow_slow_is_exact(kind: str, needs: Needs, memory_limit: int) -> None:
    torch.manual_seed(0)
    network = UNSUPPORTED[kind][0]().double()
    batched = TaskBatched(network, T, allow_slow=True, memory_limit=memory_limit)
    with batched.record():
        losses = task_losses(network, torch.randn(T, B, FEATURES, dtype=torch.float64).abs())
    rows = oracle(losses, batched.parameters)
    combiner = Weighted(needs)
    batched.backward(losses, combiner, scale=0.5)
    assert_gradients(network, rows, 0.5 * combiner.fixed(losses))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(InputError, match="no trainable parameters"):
        TaskBatched(nn.Linear(2, 2).requires_grad_(False), T)


# ------------------------------------------------------------------------------------------------ non-finite values


def test_finite_values_with_an_infinite_sum_pass_and_of_others_the_first_task_is_named() -> None:
    largest = torch.finfo(torch.float32).max
    check_finite("loss", torch.tensor([largest, largest, -1.0]))
    check_finite("gradient", torch.full((2, 3), largest))
    for bad in ([[1.0, 1.0, math.inf], [1.0, math.nan, 1.0]], [1.0, -math.inf, math.inf]):
        with pytest.raises(NonFiniteError, match=r"^non-finite gradient \(task 1\)$"):
            check_finite("gradient", torch.tensor(bad))


class Square(torch.autograd.Function):
    """``x^2`` whose gradient of the last row is not a number."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        gradient[-1] = torch.nan
        return gradient


class BadWeight(Weighted):
    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return super()._weights(losses, gramian).index_fill(0, torch.tensor(2), torch.inf)

    def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
        return super()._combine(losses, jacobian) * torch.inf


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize(
    ("needs", "memory_limit"), [("losses", 0), ("gramian", 0), ("gramian", 1 << 20), ("jacobian", 1 << 20)]
)
@pytest.mark.parametrize(("quantity", "task"), [("loss", 2), ("gradient", 3), ("weight", 2)])
def test_non_finite_values_stop_before_anything_is_written(
    quantity: str, task: int | None, needs: Needs, memory_limit: int, checked: bool
) -> None:
    network, x = made("mlp")
    batched = TaskBatched(network, T, memory_limit=memory_limit)
    if checked:  # after a good step
        with batched.record():
            losses = task_losses(network, x)
        batched.backward(losses, Weighted(needs))
    before = [None if p.grad is None else p.grad.clone() for p in batched.parameters]
    with batched.record():
        y = network(x)
        losses = (Square.apply(y) if quantity == "gradient" else y.square()).flatten(1).mean(1)
        if quantity == "loss":
            losses = losses * torch.tensor([1.0, 1.0, torch.inf, torch.nan])
    combiner = BadWeight(needs) if quantity == "weight" else Weighted(needs)
    if quantity == "weight" and needs == "jacobian":  # no weights: all there is to see is the update
        quantity, task = "gradient", None
    if quantity == "gradient" and needs == "losses":  # the graph, which would have told, is freed
        task = None
    with pytest.raises(NonFiniteError, match=f"non-finite {quantity}") as caught:
        batched.backward(losses, combiner)
    assert (caught.value.quantity, caught.value.task) == (quantity, task)
    for old, parameter in zip(before, batched.parameters, strict=True):
        assert (old is None) == (parameter.grad is None)
        if old is not None and parameter.grad is not None:
            assert torch.equal(old, parameter.grad)
    if quantity == "loss" or (task == 3 and needs != "losses"):
        assert combiner.calls == 0


@pytest.mark.parametrize("columns", [5, CHUNK, 3 * CHUNK, 3 * CHUNK + 7])
def test_a_long_product_in_chunks_is_the_product(columns: int) -> None:
    torch.manual_seed(0)
    rows, before = torch.randn(T, columns, dtype=torch.float64), torch.randn(T, T, dtype=torch.float64)
    torch.testing.assert_close(inner_products(rows, before), before + rows @ rows.T)
    torch.testing.assert_close(inner_products(rows[:, :-1]), rows[:, :-1] @ rows[:, :-1].T)


def test_a_million_columns_cost_no_digits() -> None:
    rows = torch.randn(T, 10**6, generator=torch.Generator().manual_seed(0))
    exact = rows.double() @ rows.double().T
    assert (inner_products(rows) - exact).abs().max() < 1e-6 * exact.max()
