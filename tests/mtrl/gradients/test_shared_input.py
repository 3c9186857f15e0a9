"""Several losses on one input, against a plain loop of `torch.autograd.grad`."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl import combiners, gradients
from mtrl.combiners import Combiner, Needs
from mtrl.errors import InputError
from mtrl.gradients import NonFiniteError

T = 3
WEIGHTS = torch.tensor([2.0, -0.5, 0.25], dtype=torch.float64)


class Weighted(Combiner):
    """Fixed weights, by whichever way ``needs`` says; keeps what it was shown."""

    def __init__(self, needs: Needs, *, weights_specific: bool = False) -> None:
        super().__init__(T)
        self.needs = needs  # type: ignore[misc]
        self.weights_specific = weights_specific  # type: ignore[misc]
        self.calls = 0
        self.seen = torch.empty(0)

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        self.calls += 1
        self.seen = losses if gramian is None else gramian.clone()
        return WEIGHTS

    def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
        self.calls += 1
        self.seen = jacobian.clone()
        direction = WEIGHTS @ jacobian
        jacobian.fill_(torch.nan)  # it may be overwritten
        return direction


class CountBackward(torch.autograd.Function):
    """The identity, which counts the backward passes through it."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        CountBackward.passes += 1
        return gradient


class Model(nn.Module):
    """An encoder, a layer that nothing uses and one head per task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv1d(2, 3, 2)
        self.last = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(9, 4))
        self.idle = nn.Linear(2, 2)
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(T))
        self.double()
        self.x = torch.randn(5, 2, 4, dtype=torch.float64)
        CountBackward.passes = 0

    @property
    def shared(self) -> list[Tensor]:
        return [*self.first.parameters(), *self.last.parameters(), *self.idle.parameters()]

    def encode(self) -> Tensor:
        encoded: Tensor = self.last(CountBackward.apply(self.first(self.x)))
        return encoded

    def losses(self, inputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
        inputs = (inputs,) * T if isinstance(inputs, Tensor) else inputs
        heads = zip(self.heads, inputs, [0.1, 1.0, 10.0], strict=True)
        return [scale * (head(z) - 1).square().mean() for head, z, scale in heads]


def rows(losses: list[Tensor], inputs: list[Tensor]) -> Tensor:
    found = [torch.autograd.grad(x, inputs, retain_graph=True, materialize_grads=True) for x in losses]
    return torch.stack([torch.cat([g.flatten() for g in gradients_]) for gradients_ in found])


def weighted(losses: list[Tensor], inputs: Sequence[Tensor], weights: Tensor) -> tuple[Tensor | None, ...]:
    objective = (weights * torch.stack(losses)).sum()
    return torch.autograd.grad(objective, inputs, retain_graph=True, allow_unused=True)


def assert_grad(parameters: Sequence[Tensor], expected: tuple[Tensor | None, ...], factor: float = 1.0) -> None:
    for parameter, gradient in zip(parameters, expected, strict=True):
        if gradient is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, factor * gradient)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("weights_specific", [False, True])
@pytest.mark.parametrize("by", ["parameters", "representation", "aliases"])
@pytest.mark.parametrize("needs", ["losses", "gramian", "jacobian"])
def test_equals_a_loop_over_losses(needs: Needs, by: str, weights_specific: bool, as_tensor: bool) -> None:
    model = Model()
    z = model.encode()
    given = gradients.fan_out(z, T) if by == "aliases" else z
    losses = model.losses(given)
    shared, specific = model.shared, list(model.heads.parameters())
    expected_rows = rows(losses, shared if by == "parameters" else [z])
    expected = weighted(losses, shared, WEIGHTS)
    own = WEIGHTS if weights_specific and needs != "jacobian" else torch.ones_like(WEIGHTS)
    expected_own = weighted(losses, specific, own)
    combiner = Weighted(needs, weights_specific=weights_specific)
    combination = gradients.backward(
        torch.stack(losses) if as_tensor else losses,
        combiner,
        shared=iter(shared),
        specific=model.heads,
        representation=None if by == "parameters" else given,
        scale=0.5,
        insight=True,
    )
    assert_grad(shared, expected, 0.5)
    assert_grad(specific, expected_own, 0.5)
    if needs == "gramian":
        torch.testing.assert_close(combiner.seen, expected_rows @ expected_rows.T)
    if needs == "jacobian":
        torch.testing.assert_close(combiner.seen, expected_rows)
    assert combination.gramian is not None
    torch.testing.assert_close(combination.gramian, expected_rows @ expected_rows.T)
    cosine = torch.cosine_similarity(expected_rows, (WEIGHTS @ expected_rows)[None])
    torch.testing.assert_close(combination.alignment, cosine)
    norm = torch.cat([g.flatten() for g in expected if g is not None]).norm()
    torch.testing.assert_close(combination.update_norm, 0.5 * norm)
    assert (combination.weights is None) == (needs == "jacobian")


@pytest.mark.parametrize(
    ("needs", "by", "passes"),
    [
        ("losses", "parameters", 1),
        ("gramian", "parameters", T),
        ("gramian", "representation", 1),
        ("gramian", "aliases", 1),
        ("jacobian", "parameters", T),
        ("jacobian", "representation", 1),
        ("jacobian", "aliases", 1),
    ],
)
def test_backward_passes_through_the_encoder(needs: Needs, by: str, passes: int) -> None:
    model = Model()
    z = model.encode()
    given = gradients.fan_out(z, T) if by == "aliases" else z
    gradients.backward(
        model.losses(given),
        Weighted(needs),
        shared=model.shared,
        specific=model.heads,
        representation=None if by == "parameters" else given,
    )
    assert CountBackward.passes == passes


@pytest.mark.parametrize("memory_limit", [0, 300, 1000, 1 << 20])
@pytest.mark.parametrize("weigh_specific", [False, True])
def test_parameter_gramian_is_exact_under_any_memory_limit(memory_limit: int, weigh_specific: bool) -> None:
    model = Model()
    losses = model.losses(model.encode())
    expected = rows(losses, model.shared)
    specific = list(model.heads.parameters())
    update = weighted(losses, model.shared, WEIGHTS)
    own = weighted(losses, specific, WEIGHTS if weigh_specific else torch.ones_like(WEIGHTS))
    combiner = Weighted("gramian")
    gradients.backward(
        losses,
        combiner,
        shared=model.shared,
        specific=model.heads,
        memory_limit=memory_limit,
        weigh_specific=weigh_specific,
    )
    torch.testing.assert_close(combiner.seen, expected @ expected.T)
    assert_grad(model.shared, update)
    assert_grad(specific, own)


@pytest.mark.parametrize(("memory_limit", "passes"), [(0, 2 * T + 1), (24 * 15, T + 1), (1 << 20, T)])
def test_blocks_of_parameters_are_no_larger_than_the_limit(memory_limit: int, passes: int) -> None:
    """Blocks of the first layer (12 weights and 3 biases), those of the last do not pass the counter."""
    model = Model()
    losses = model.losses(model.encode())
    with pytest.warns(UserWarning, match="neither shared nor specific"):
        gradients.backward(losses, Weighted("gramian"), shared=model.shared, memory_limit=memory_limit)
    assert CountBackward.passes == passes


def test_gradients_share_no_memory() -> None:
    """Autograd gives both terms of a sum the same gradient."""
    a, b = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    total = a + b
    losses = [(total - target).square().sum() for target in (1.0, 2.0, 3.0)]
    gradients.backward(losses, Weighted("losses"), shared=[a, b])
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.data_ptr() != b.grad.data_ptr()


@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
def test_measured_parameters_make_the_gramian_and_all_are_updated(memory_limit: int) -> None:
    model = Model()
    losses = model.losses(model.encode())
    expected = rows(losses, list(model.last.parameters()))
    update = weighted(losses, model.shared, WEIGHTS)
    combiner = Weighted("gramian")
    with pytest.warns(UserWarning, match="neither shared nor specific"):
        gradients.backward(
            losses, combiner, shared=model.shared, measured=model.last.parameters(), memory_limit=memory_limit
        )
    torch.testing.assert_close(combiner.seen, expected @ expected.T)
    assert_grad(model.shared, update)
    assert all(p.grad is None for p in model.heads.parameters())


def test_weights_of_the_representation_are_exact_for_what_goes_round_it() -> None:
    """A skip connection: the weights come from the representation, the gradient from the whole graph."""
    model = Model()
    z = model.encode()
    losses = [loss + model.first.weight.square().sum() for loss in model.losses(z)]
    expected = weighted(losses, model.shared, WEIGHTS)
    gradients.backward(losses, Weighted("gramian"), shared=model.shared, specific=model.heads, representation=z)
    assert_grad(model.shared, expected)


def test_parameters_that_nothing_trains_are_warned_of_once() -> None:
    model, combiner = Model(), Weighted("gramian")
    count = sum(p.numel() for p in model.heads.parameters())
    said = rf"^the losses depend on {count} parameters \(12 tensors, .*\) that are neither shared nor specific"
    with pytest.warns(UserWarning, match=said):
        gradients.backward(model.losses(model.encode()), combiner, shared=model.shared)
    assert all(p.grad is None for p in model.heads.parameters())
    gradients.backward(model.losses(model.encode()), combiner, shared=model.shared)
    with pytest.warns(UserWarning, match="on 12 parameters"):
        gradients.backward(model.losses(model.encode()), combiner, shared=model.shared[1:], specific=model.heads)


def test_no_warning_where_another_pass_or_nothing_is_to_train_them() -> None:
    model = Model()
    gradients.backward(model.losses(model.encode()), Weighted("losses"), shared=model.shared, retain_graph=True)
    model.heads.requires_grad_(False)
    gradients.backward(model.losses(model.encode()), Weighted("losses"), shared=model.shared)


@pytest.mark.parametrize("name", combiners.names())
def test_every_combiner_fills_every_gradient(name: str) -> None:
    for by in ("parameters", "representation", "aliases"):
        model = Model()
        z = model.encode()
        given = gradients.fan_out(z, T) if by == "aliases" else z
        options: dict[str, Any] = {"fixed": {"weights": [1.0, 2.0, 3.0]}, "modo": {"halves": False}}
        gradients.backward(
            model.losses(given),
            combiners.make(name, T, **options.get(name, {})),
            shared=model.shared,
            specific=model.heads,
            representation=None if by == "parameters" else given,
        )
        filled = [p for p in model.parameters() if p.grad is not None and bool(torch.isfinite(p.grad).all())]
        assert len(filled) == len(list(model.parameters())) - len(list(model.idle.parameters()))


@pytest.mark.parametrize("needs", ["losses", "gramian", "jacobian"])
def test_accumulates_and_insight_does_not_change_a_bit(needs: Needs) -> None:
    found = []
    for insight in (False, True):
        model = Model()
        for _ in range(2):
            gradients.backward(
                model.losses(model.encode()),
                Weighted(needs),
                shared=model.shared,
                specific=model.heads,
                insight=insight,
            )
        losses = model.losses(model.encode())
        assert_grad(model.shared, weighted(losses, model.shared, WEIGHTS), 2.0)
        found.append([p.grad for p in model.parameters()])
    for without, with_ in zip(*found, strict=True):
        assert (without is None and with_ is None) or torch.equal(without, with_)


@pytest.mark.parametrize("insight", [False, True])
@pytest.mark.parametrize("needs", ["losses", "gramian", "jacobian"])
@pytest.mark.parametrize("quantity", ["loss", "gradient", "specific", "weight"])
def test_non_finite_values_stop_before_anything_is_written(quantity: str, needs: Needs, insight: bool) -> None:
    model = Model()
    z = model.encode()
    losses = model.losses(z)
    if quantity == "loss":
        losses[1] = losses[1] * torch.nan
    if quantity == "gradient":
        losses[1] = losses[1] + (z - z.detach()).abs().sum().sqrt()  # 0, with an infinite slope
    if quantity == "specific":
        head = model.heads[1][2].bias
        losses[1] = losses[1] + (head - head.detach()).abs().sum().sqrt()
    combiner = Weighted(needs)
    task: int | None = 1
    if quantity == "weight":
        bad = WEIGHTS.clone()
        bad[1] = torch.inf
        combiner._weights = lambda losses, gramian: bad  # type: ignore[method-assign]
        combiner._combine = lambda losses, jacobian: bad @ jacobian  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError) as caught:
        gradients.backward(losses, combiner, shared=model.shared, specific=model.heads, insight=insight)
    name = "gradient" if quantity == "specific" or (quantity, needs) == ("weight", "jacobian") else quantity
    if (quantity, needs) in (("weight", "jacobian"), ("gradient", "losses")) and not (
        quantity == "gradient" and insight
    ):
        task = None  # the graph, which would have told, is freed
    assert (caught.value.quantity, caught.value.task) == (name, task)
    assert all(p.grad is None for p in model.parameters())


def test_what_excludes_each_other_is_refused() -> None:
    model = Model()
    z = model.encode()
    losses = model.losses(z)
    shared = model.shared
    cases: list[tuple[str, Needs, dict[str, Any]]] = [
        ("no shared or no measured parameter", "losses", {"shared": []}),
        ("no shared or no measured parameter", "gramian", {"measured": []}),
        ("both shared and specific", "losses", {"specific": [model.first]}),
        ("'measured' is for Gramian methods", "gramian", {"measured": shared, "representation": z}),
        ("'measured' is for Gramian methods", "jacobian", {"measured": shared}),
        ("Weighted has no task weights", "jacobian", {"weigh_specific": True}),
        (
            "the Jacobian of 3 tasks x 61 parameters needs 1,464 bytes, memory_limit is 100",
            "jacobian",
            {"memory_limit": 100},
        ),
        ("3 losses, but 2 representations", "gramian", {"representation": gradients.fan_out(z, 2)}),
        ("loss of task 0 does not depend on the repr", "gramian", {"representation": gradients.fan_out(z, 3)}),
        ("loss of task 0 does not depend on the repr", "gramian", {"representation": model.encode()}),
    ]
    for message, needs, options in cases:
        with pytest.raises(InputError, match=message):
            gradients.backward(losses, Weighted(needs), **{"shared": shared, **options})
    with pytest.raises(InputError, match="loss of task 1 has shape"):
        gradients.backward([losses[0], z, losses[2]], Weighted("losses"), shared=shared)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("aliases", [False, True])
@pytest.mark.parametrize("name", ["graddrop", "sign_agnostic_drop"])
def test_dropping_at_the_representation_sees_its_samples(name: str, aliases: bool) -> None:
    """The shared gradient is that of the encoder for the combined gradient by z, samples and signs included."""
    model = Model()
    z = model.encode()
    losses = model.losses(z)
    by_z = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses])
    stacked = torch.stack([loss.detach() for loss in losses])
    along = combiners.make(name, T, seed=2).combine(stacked, by_z.flatten(1), [z.detach()]).view_as(z)
    assert not along.equal(combiners.make(name, T, seed=2).combine(stacked, by_z.flatten(1)).view_as(z))
    expected = torch.autograd.grad(z, model.shared[:4], along)
    z = model.encode()
    shown = gradients.fan_out(z, T) if aliases else z
    combiner = combiners.make(name, T, seed=2)
    gradients.backward(model.losses(shown), combiner, shared=model.shared, specific=model.heads, representation=shown)
    for parameter, gradient in zip(model.shared, expected, strict=False):
        torch.testing.assert_close(parameter.grad, gradient)
