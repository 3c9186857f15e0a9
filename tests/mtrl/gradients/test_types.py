"""Types of numbers: whatever the parameters' and activations', gradients are combined in float32 or better."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from mtrl import combiners, gradients
from mtrl.combiners import Combiner
from mtrl.errors import InputError
from mtrl.gradients import TaskBatched
from mtrl.gradients.layers import EnsembleLayerNorm, EnsembleLinear

T, B, WIDTH = 3, 8, 6
HALF = [torch.bfloat16, torch.float16]
METHODS = ["unitary", "fixed", "mgda", "moco"]


class Seen(Combiner):
    """Uneven weights through the Gramian; keeps it."""

    needs = "gramian"

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        assert gramian is not None
        self.gramian = gramian.clone()
        return torch.linspace(0.5, 2.0, self.num_tasks, dtype=losses.dtype)


def make(name: str) -> Combiner:
    options: dict[str, Any] = {"weights": [1.0, 0.5, 2.0]} if name == "fixed" else {}
    return combiners.make(name, T, **options)


def jacobian_of(losses: Any, inputs: list[Any]) -> Tensor:
    """One task's gradient a row, in float64; a complex entry is two."""
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
        dense = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(found, inputs, strict=True)]
        rows.append(torch.cat([(torch.view_as_real(g) if g.is_complex() else g).flatten().double() for g in dense]))
    return torch.stack(rows)


def filled(parameters: list[Any]) -> Tensor:
    dense = [p.grad.to_dense() for p in parameters]
    return torch.cat([(torch.view_as_real(g) if g.is_complex() else g).flatten().double() for g in dense])


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


# ------------------------------------------------------------------------------------------------- half precision


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "mlp": nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 2)),
        "ensemble": nn.Sequential(
            EnsembleLinear(2, WIDTH, 5), EnsembleLayerNorm(2, 5), nn.ReLU(), EnsembleLinear(2, 5, 1)
        ),
    }


@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
@pytest.mark.parametrize("cast", ["autocast", "parameters"])
@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("name", ["mlp", "ensemble"])
def test_task_batches_in_half_precision(name: str, half: torch.dtype, cast: str, memory_limit: int) -> None:
    network = networks()[name]
    x = torch.randn(T, B, WIDTH)
    if cast == "parameters":
        network, x = network.to(half), x.to(half)
    batched, combiner = TaskBatched(network, T, memory_limit=memory_limit), Seen(T)
    with torch.autocast("cpu", half, enabled=cast == "autocast"), batched.record():
        y = network(x.expand(2, *x.shape) if name == "ensemble" else x)
    losses = (y.movedim(0, 2) if name == "ensemble" else y).flatten(1).float().square().mean(1)
    jacobian = jacobian_of(losses, batched.parameters)
    batched.backward(losses, combiner)
    tolerance = 10 * torch.finfo(half).eps
    assert combiner.gramian.dtype == torch.float32
    assert_near(combiner.gramian.double(), jacobian @ jacobian.T, tolerance)
    assert_near(filled(batched.parameters), torch.linspace(0.5, 2.0, T).double() @ jacobian, tolerance)
    assert {p.grad.dtype for p in batched.parameters} == {torch.float32 if cast == "autocast" else half}


@pytest.mark.parametrize("by", ["parameters", "representation", "aliases"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("half", HALF)
def test_shared_inputs_under_autocast(half: torch.dtype, method: str, by: str) -> None:
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 4))
        heads = nn.ModuleList(nn.Linear(4, 1) for _ in range(T))
        with torch.autocast("cpu", half, enabled=enabled):
            z = encoder(torch.randn(B, WIDTH))
            read = gradients.fan_out(z, T) if by == "aliases" else (z,) * T
            losses = [(head(own) - 1).square().mean() for head, own in zip(heads, read, strict=True)]
        options = {"representation": {"parameters": None, "representation": z, "aliases": read}[by]}
        combination = gradients.backward(losses, make(method), shared=encoder, specific=heads, **options)
        parameters = [*encoder.parameters(), *heads.parameters()]
        assert {p.grad.dtype for p in parameters if p.grad is not None} == {torch.float32}
        assert combination.losses.dtype == torch.float32
        found.append(filled(parameters))
    if method != "mgda":  # whose weights depend on all digits
        assert_near(found[1], found[0], 20 * torch.finfo(half).eps)
    assert bool(found[1].isfinite().all())


@pytest.mark.parametrize("size", [600.0, 3e4])
@pytest.mark.parametrize("way", ["parameters", "representation", "batched"])
@pytest.mark.parametrize("method", METHODS)
def test_float16_gradients_of_any_norm_are_finite(method: str, way: str, size: float) -> None:
    """Their squares are not float16 numbers, nor is the norm of many."""
    layer = nn.Linear(16, 1, bias=False).half()
    x = torch.full((T, 1, 16), size / 8, dtype=torch.float16)
    x[1] *= -0.5
    if way == "batched":
        batched = TaskBatched(layer, T)
        with batched.record():
            losses = 1 + layer(x).flatten(1).float().sum(1)
        jacobian = jacobian_of(losses, [layer.weight])
        combination = batched.backward(losses, make(method), scale=0.25)
    else:
        z = layer.weight * 1
        losses = 1 + (z.float() * x.float()).sum((1, 2))
        jacobian = jacobian_of(losses, [layer.weight])
        given = z if way == "representation" else None
        combination = gradients.backward(losses, make(method), shared=layer, representation=given, scale=0.25)
    assert float(jacobian.norm(dim=1).max()) > 256
    assert bool(combination.update_norm.isfinite())
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float16
    if combination.weights is not None:
        assert_near(filled([layer.weight]), 0.25 * combination.weights.double() @ jacobian, 1e-3)


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("way", ["parameters", "representation", "batched"])
def test_gramians_of_half_precision_are_summed_in_float32(way: str, half: torch.dtype) -> None:
    """In bfloat16, adding 1 to 256 changes nothing."""
    layer = nn.Linear(3000, 1, bias=False).to(half)
    x = torch.ones(T, 1, 3000, dtype=half)
    combiner = Seen(T)
    if way == "batched":
        batched = TaskBatched(layer, T)
        with batched.record():
            losses = layer(x).flatten(1).sum(1)
        batched.backward(losses, combiner)
    else:
        z = layer.weight * 1
        losses = (z.float() * x.float()).sum((1, 2))
        given = z if way == "representation" else None
        gradients.backward(losses, combiner, shared=layer, representation=given)
    assert combiner.gramian.tolist() == [[3000.0] * T] * T


# --------------------------------------------------------------------------------- several types, sparse, complex


@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
@pytest.mark.parametrize(
    "types", [(torch.float32, torch.float64), (torch.bfloat16, torch.float32), (torch.float16, torch.float64)]
)
@pytest.mark.parametrize("method", METHODS)
def test_parameters_of_two_types(method: str, types: tuple[torch.dtype, torch.dtype], memory_limit: int) -> None:
    if method == "moco" and not memory_limit:
        memory_limit = 1 << 19
    for batched in (False, True):
        torch.manual_seed(0)
        network = nn.ModuleList([nn.Linear(WIDTH, 4).to(types[0]), nn.Linear(4, 1).to(types[1])])
        x = torch.randn(T, B, WIDTH).to(types[0])
        tasks = TaskBatched(network, T, memory_limit=memory_limit)
        with tasks.record():
            y = network[1](network[0](x).tanh().to(types[1]))
        losses = (y.double() - torch.arange(T)[:, None, None]).square().mean((1, 2))
        parameters = list(network.parameters())
        jacobian = jacobian_of(losses, parameters)
        combiner = make(method)
        if batched:
            combination = tasks.backward(losses, combiner)
        else:
            combination = gradients.backward(losses, combiner, shared=network, memory_limit=memory_limit)
        assert [p.grad.dtype for p in parameters if p.grad is not None] == [p.dtype for p in parameters]
        oracle = make(method)
        if combination.weights is None:
            expected = oracle.combine(losses, jacobian)
        else:
            expected = combination.weights.double() @ jacobian
        assert_near(filled(parameters), expected.double(), 20 * max(torch.finfo(kind).eps for kind in types))


@pytest.mark.parametrize("by", ["parameters", "representation"])
@pytest.mark.parametrize("method", METHODS)
def test_sparse_embeddings_get_sparse_gradients(method: str, by: str) -> None:
    def losses_of(table: nn.Embedding, head: nn.Module) -> tuple[list[Tensor], Tensor]:
        z = table(torch.tensor([[0, 2], [2, 2], [5, 0]]))
        return [(task + 1.0 - head(z[task])).square().mean() for task in range(T)], z

    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table, head = nn.Embedding(7, 3, sparse=sparse), nn.Linear(3, 1)
        for _ in range(2):  # the second time, there is something to add to
            losses, z = losses_of(table, head)
            given = z if by == "representation" else None
            gradients.backward(losses, make(method), shared=[table.weight], specific=head, representation=given)
        assert table.weight.grad is not None
        assert table.weight.grad.is_sparse == sparse
        if sparse:
            assert sorted(set(table.weight.grad.coalesce().indices()[0].tolist())) == [0, 2, 5]
            torch.optim.SparseAdam([table.weight]).step()
        found.append(filled([table.weight, *head.parameters()]))
    torch.testing.assert_close(found[1], found[0])
    with pytest.raises(InputError, match=r"layer 'Embedding' \(Embedding with parameters weight\)"):
        TaskBatched(nn.Embedding(7, 3, sparse=True), T)


@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
@pytest.mark.parametrize("way", ["parameters", "representation", "batched"])
@pytest.mark.parametrize("method", METHODS)
def test_a_complex_entry_is_two_real_ones(method: str, way: str, memory_limit: int) -> None:
    if method == "moco":
        memory_limit = 1 << 20
    grads = []
    for as_complex in (False, True):
        torch.manual_seed(0)
        bias, parts = nn.Parameter(torch.randn(3)), torch.randn(4, 2)
        turn = nn.Parameter(torch.view_as_complex(parts) if as_complex else parts)
        x = torch.randn(T, 4)
        z = (turn if as_complex else torch.view_as_complex(turn)) * (1 + 2j)
        losses = 1 + (z.real * x).sum(1).square() + (z.imag + x).square().sum(1) + (bias * torch.arange(T)).square()
        net = nn.ParameterList([bias, turn])  # an odd number of real entries comes first
        if way == "batched":
            combination = TaskBatched(net, T, allow_slow=True, memory_limit=memory_limit).backward(losses, make(method))
        elif way == "representation":
            combination = gradients.backward(losses, make(method), shared=[turn], specific=[bias], representation=z)
        else:
            combination = gradients.backward(losses, make(method), shared=net, memory_limit=memory_limit)
        assert turn.grad is not None
        assert turn.grad.dtype == turn.dtype
        assert bool(combination.update_norm.isfinite())
        grads.append(filled([bias, turn]))
    torch.testing.assert_close(grads[1], grads[0])


def test_complex_layers_have_no_rule_and_complex_losses_no_gradient() -> None:
    layer = nn.Linear(3, 3, dtype=torch.complex64)
    with pytest.raises(InputError, match=r"layer 'Linear'.*allow_slow=True"):
        TaskBatched(layer, T)
    losses = [layer(torch.ones(3, dtype=torch.complex64)).sum() for _ in range(T)]
    with pytest.raises(InputError, match="the loss of task 0 is complex"):
        gradients.backward(losses, make("unitary"), shared=layer)


@pytest.mark.parametrize("layer", ["linear", "norm", "table", "ensemble"])
def test_inputs_by_keyword(layer: str) -> None:
    modules = {
        "linear": nn.Linear(WIDTH, 2),
        "norm": nn.LayerNorm(WIDTH),
        "table": nn.Embedding(4, 2),
        "ensemble": EnsembleLinear(2, WIDTH, 2),
    }
    module, x = modules[layer], torch.randn(T, B, WIDTH)
    given: Any = {
        "table": {"input": torch.arange(T * B).view(T, B) % 4},
        "ensemble": {"x": x.expand(2, T, B, WIDTH)},
    }.get(layer, {"input": x})
    batched, combiner = TaskBatched(module, T), Seen(T)
    with batched.record():
        y = module(**given)
    losses = (y.movedim(0, 2) if layer == "ensemble" else y).flatten(1).square().sum(1)
    jacobian = jacobian_of(losses, batched.parameters)
    batched.backward(losses, combiner)
    torch.testing.assert_close(combiner.gramian, (jacobian @ jacobian.T).float())


# ------------------------------------------------------------------------------------------------------ GradScaler


class Overflow(torch.autograd.Function):
    """The identity, whose gradient overflows where it passes 1e4, as float16's does at 65504."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return torch.where(gradient.abs() > 1e4, torch.inf, gradient)


def train(method: str, way: str, scale: float | None, steps: int = 4) -> tuple[Tensor, list[bool], Combiner, float]:
    """Parameters after some steps, which steps were skipped, the combiner, and the scale at the end."""
    torch.manual_seed(0)
    encoder, head = nn.Linear(WIDTH, 4), nn.Linear(4, 1)
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], 0.01)
    scaler = GradScaler("cpu", init_scale=scale or 1.0, growth_interval=1000, enabled=scale is not None)
    combiner, skipped = make(method), []
    network = nn.Sequential(encoder, head)
    batched = TaskBatched(network, T)
    x, targets = torch.randn(T, B, WIDTH), torch.arange(1.0, T + 1)[:, None, None]
    for _ in range(steps):
        optimizer.zero_grad()
        before = [p.detach().clone() for p in network.parameters()]
        with batched.record():
            z = Overflow.apply(encoder(x))
            losses = (head(z) - targets).square().mean((1, 2)) + 0.1
        if way == "batched":
            combination = batched.backward(losses, combiner, scaler=scaler)
        else:
            given = z if way == "representation" else None
            combination = gradients.backward(
                losses, combiner, shared=encoder, specific=head, representation=given, scaler=scaler
            )
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 1e9)
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
        assert same != bool(combination.update_norm.isfinite())
        skipped.append(same)
    return torch.cat([p.detach().flatten() for p in network.parameters()]), skipped, combiner, scaler.get_scale()


@pytest.mark.parametrize("way", ["parameters", "representation", "batched"])
@pytest.mark.parametrize("method", [*METHODS, "pcgrad", "graddrop"])
def test_a_scaler_changes_nothing_and_skips_what_overflows(method: str, way: str) -> None:
    plain, never, *_ = train(method, way, None, steps=3)
    scaled, skipped, *_ = train(method, way, 2.0**8, steps=3)
    assert not any(never)
    assert not any(skipped)
    torch.testing.assert_close(scaled, plain)
    after, skipped, combiner, scale = train(method, way, 2.0**16, steps=12)
    assert any(skipped) or way == "representation"  # what is passed back may be small
    assert not skipped[-1]
    assert scale == 2.0 ** (16 - sum(skipped))
    if combiner.needs != "losses" and way != "representation":  # the state has seen the steps that were taken alone
        fresh, _, expected, _ = train(method, way, 2.0**8, steps=12 - sum(skipped))
        torch.testing.assert_close(after, fresh)
        for key, value in expected.state_dict().items():
            torch.testing.assert_close(combiner.state_dict()[key], value)


@pytest.mark.parametrize("by", ["parameters", "representation", "batched"])
def test_the_combiner_never_sees_the_scale(by: str) -> None:
    layer, x = nn.Linear(WIDTH, 1), torch.randn(T, B, WIDTH)
    seen = []
    for scaler in (None, GradScaler("cpu", init_scale=2.0**10)):
        layer.zero_grad()
        batched, combiner = TaskBatched(layer, T), Seen(T)
        with batched.record():
            z = layer(x)
        losses = z.square().mean((1, 2))
        if by == "batched":
            combination = batched.backward(losses, combiner, scaler=scaler, insight=True)
        else:
            given = z if by == "representation" else None
            combination = gradients.backward(
                losses, combiner, shared=layer, representation=given, scaler=scaler, insight=True
            )
        assert layer.weight.grad is not None
        assert combination.alignment is not None
        seen += [[combiner.gramian, combination.update_norm, combination.alignment, layer.weight.grad]]
    torch.testing.assert_close(seen[1][:3], seen[0][:3])
    torch.testing.assert_close(seen[1][3], 2.0**10 * seen[0][3])


@pytest.mark.parametrize("by", ["parameters", "representation"])
@pytest.mark.parametrize("method", ["mgda", "graddrop", "moco"])
def test_one_task_that_overflows_skips_the_step_though_the_sum_would_not(method: str, by: str) -> None:
    w = nn.Parameter(torch.tensor([1.0]))
    z = w * 1
    losses = [1 + Overflow.apply(z).sum() * 20, 1 - Overflow.apply(z).sum() * 19, 1 + z.sum()]
    scaler = GradScaler("cpu", init_scale=1024.0)
    gradients.backward(
        losses, make(method), shared=[w], scaler=scaler, representation=z if by == "representation" else None
    )
    assert w.grad is not None
    assert not bool(w.grad.isfinite().any())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_loss_that_overflows_is_skipped_with_a_scaler_and_an_error_without(method: str, value: float) -> None:
    for scaler in (None, GradScaler("cpu")):
        w, combiner = nn.Parameter(torch.ones(2)), make(method)
        before = {key: value.clone() for key, value in combiner.state_dict().items()}
        losses = [w.sum(), w.sum() * value, w.square().sum()]
        if scaler is None:
            with pytest.raises(gradients.NonFiniteError, match=r"non-finite loss \(task 1\)"):
                gradients.backward(losses, combiner, shared=[w])
            assert w.grad is None
        else:
            combination = gradients.backward(losses, combiner, shared=[w], scaler=scaler)
            assert combination.weights is None
            assert w.grad is not None
            assert not bool(w.grad.isfinite().any())
        for key, state in combiner.state_dict().items():
            assert torch.equal(state, before[key])


# ------------------------------------------------------------------------------------- matrix products in bfloat16


class CoarseProducts(TorchDispatchMode):
    """Matrix products of float32 whose factors are rounded, as processors do that are asked for speed."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.mask = -1 << bits

    def rounded(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        return (x.contiguous().view(torch.int32) & self.mask).view(torch.float32)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}.get(func.__name__.split(".")[0])
        if first is not None:
            args = (*args[:first], *map(self.rounded, args[first : first + 2]), *args[first + 2 :])
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[("tf32", 13), ("bf16", 16)], ids=["tf32", "bf16"])
def coarse(request: pytest.FixtureRequest) -> Iterator[TorchDispatchMode]:
    """Both what torch is told and what its products do then; not every processor does as told."""
    mode, bits = request.param
    backend: Any = torch.backends.mkldnn
    before = backend.matmul.fp32_precision
    backend.matmul.fp32_precision = mode
    with CoarseProducts(bits) as products:
        yield products
    backend.matmul.fp32_precision = before


class Critics(nn.Module):
    """Two critics, as SAC's."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        sizes = [(12, 64), (64, 64), (64, 64)]
        hidden = [
            part
            for inputs, outputs in sizes
            for part in (EnsembleLinear(2, inputs, outputs), *([EnsembleLayerNorm(2, outputs)] * norm), nn.ReLU())
        ]
        self.layers = nn.Sequential(*hidden, EnsembleLinear(2, 64, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.expand(2, *x.shape))
        return y


def critic_losses(critics: Critics, num_tasks: int, batch_size: int) -> Tensor:
    x = torch.randn(num_tasks, batch_size, 12)
    rewards = torch.logspace(-1, 2, num_tasks)[:, None, None]
    return (critics(x) - rewards * torch.rand(num_tasks, batch_size, 1)).square().mean((0, 2, 3))


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("num_tasks", "batch_size"), [(1, 32), (10, 16), (50, 4)])
def test_valid_critics_are_accepted_with_coarse_products(num_tasks: int, batch_size: int, norm: bool) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        critics = Critics(norm)
        batched = TaskBatched(critics, num_tasks)
        with batched.record():
            losses = critic_losses(critics, num_tasks, batch_size)
        batched.backward(losses, combiners.make("pcgrad", num_tasks))


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("num_tasks", [2, 16])
@pytest.mark.parametrize("kind", ["next task", "eighth task", "statistics", "hook", "outside"])
def test_broken_promises_are_found_with_coarse_products(kind: str, num_tasks: int) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        critics = Critics(norm=False)
        batched = TaskBatched(critics, num_tasks)
        if kind == "hook":
            critics.layers[2].register_forward_hook(lambda module, args, output: 1.5 * output)
        with batched.record():
            x = torch.randn(num_tasks, 16, 12)
            y = critics(x)
            if kind == "next task":
                y = y + 0.1 * y.roll(1, 1)
            if kind == "eighth task":
                y = y + 0.1 * y.roll(num_tasks // 2, 1)
            if kind == "statistics":
                y = (y - y.mean((1, 2), keepdim=True)) / y.std((1, 2), keepdim=True)
            losses = (y - 1).square().mean((0, 2, 3))
            if kind == "outside":
                losses = losses + critics.get_parameter("layers.0.weight").square().mean() * 10
        message = "does not come from its calls alone" if kind in ("hook", "outside") else "the losses mix tasks"
        with pytest.raises(InputError, match=message):
            batched.backward(losses, combiners.make("pcgrad", num_tasks))
