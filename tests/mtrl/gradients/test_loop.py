"""What a user's own loop may get wrong, and what it may rely on: trained parameters, freed graphs, one process."""

import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mtrl import combiners, gradients
from mtrl.errors import InputError
from mtrl.gradients import promises

T, WIDTH = 3, 4
METHODS = ["unitary", "mgda", "graddrop"]  # losses, Gramian, Jacobian


class Net(nn.Module):
    """A shared encoder of two layers, and one head per task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(5, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(T))
        self.x, self.y = torch.randn(7, 5), torch.randn(T, 7, 1)

    def losses(self, *read: Tensor) -> list[Tensor]:
        return [(head(z) - y).square().mean() for head, z, y in zip(self.heads, read, self.y, strict=True)]

    def backward(self, losses: Any, method: str, **options: Any) -> gradients.Combination:
        options = {"shared": self.encoder, "specific": self.heads} | options
        return gradients.backward(losses, combiners.make(method, T), **options)

    def untouched(self) -> bool:
        return all(parameter.grad is None for parameter in self.parameters())


# ------------------------------------------------------------------------------------------- what is not trained


def without_graph(net: Net) -> list[Tensor]:
    with torch.no_grad():
        return net.losses(*[net.encoder(net.x)] * T)


def one_detached(net: Net) -> list[Tensor]:
    z = net.encoder(net.x)
    return net.losses(z, z.detach(), z)


def published(net: Net) -> list[Tensor]:
    """As in MGDA-UB's published code: heads read a copy of the representation that collects its gradient."""
    z = net.encoder(net.x).detach().clone().requires_grad_()
    return net.losses(z, z, z)


NOTHING: dict[str, tuple[Callable[[Net], list[Tensor]], str]] = {
    "numbers": (lambda net: [torch.tensor(1.0)] * T, "loss of task 0 does not depend on any parameter"),
    "without a graph": (without_graph, "loss of task 0 does not depend on any parameter"),
    "one number": (
        lambda net: [*net.losses(*[net.encoder(net.x)] * T)[:2], torch.tensor(0.0)],
        "loss of task 2 does not depend on any parameter",
    ),
    "detached": (lambda net: net.losses(*[net.encoder(net.x).detach()] * T), "task 0 does not depend on any shared"),
    "one detached": (one_detached, "loss of task 1 does not depend on any shared parameter"),
    "published": (published, "loss of task 0 does not depend on any shared parameter"),
    "re-entrant": (
        lambda net: net.losses(*[checkpoint(net.encoder, net.x.requires_grad_(), use_reentrant=True)] * T),
        "does not depend on any shared parameter: .* re-entrant checkpoint",
    ),
    "another encoder": (lambda net: net.losses(*[Net().encoder(net.x) * 2] * T), "does not depend on any shared"),
}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", NOTHING)
def test_losses_that_train_nothing_shared_are_refused(kind: str, method: str, stacked: bool) -> None:
    net, (make, message) = Net(), NOTHING[kind]
    losses: Any = make(net)
    with pytest.raises(InputError, match=message):
        net.backward(torch.stack(losses) if stacked else losses, method)
    assert net.untouched()


@pytest.mark.parametrize("method", METHODS)
def test_a_vector_of_losses_that_trains_nothing_is_refused(method: str) -> None:
    net = Net()
    z = net.encoder(net.x).detach()
    y = torch.cat([head(z) for head in net.heads], 1)
    for losses, message in ((y.mean(0), "any shared parameter"), (y.mean(0).detach(), "any parameter")):
        with pytest.raises(InputError, match=message):
            net.backward(losses, method)
    assert net.untouched()


@pytest.mark.parametrize("method", METHODS)
def test_task_batches_that_train_nothing_are_refused(method: str) -> None:
    net = nn.Linear(5, 2)
    batched = gradients.TaskBatched(net, T)
    constant = torch.ones(T)
    elsewhere = nn.Linear(5, 2)(torch.randn(T, 6, 5)).flatten(1).mean(1)
    for losses, message in ((constant, "task 0 does not depend on any parameter"), (elsewhere, "any trainable")):
        with batched.record():
            net(torch.randn(T, 6, 5))
        with pytest.raises(InputError, match=message):
            batched.backward(losses, combiners.make(method, T))
    with batched.record():
        y = net(torch.randn(T, 6, 5)).flatten(1).mean(1)
    with pytest.raises(InputError, match="task 1 does not depend on any parameter"):
        batched.backward(torch.stack([y[0], y[1].detach(), y[2]]), combiners.make(method, T))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_batch_without_labels_is_a_zero_that_hangs_on_the_outputs() -> None:
    net = Net()
    z = net.encoder(net.x)
    losses = [*net.losses(z, z, z)[:2], 0 * net.heads[2](z).sum()]
    combination = net.backward(losses, "mgda", insight=True)
    assert combination.gramian is not None
    assert combination.gramian[2].tolist() == [0, 0, 0]


def test_after_the_first_call_no_graph_is_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    net, combiner, walks = Net(), combiners.make("graddrop", T), list[int]()
    walk = promises.reached

    def counted(*args: Any, **options: Any) -> list[int]:
        walks.append(1)
        return walk(*args, **options)

    monkeypatch.setattr(promises, "reached", counted)

    def step(**options: Any) -> int:
        walks.clear()
        z = net.encoder(net.x)
        given = options or {"representation": z}
        gradients.backward(net.losses(z, z, z), combiner, shared=net.encoder, specific=net.heads, **given)
        return len(walks)

    assert step() > 0
    assert step() == 0
    assert step(representation=None) > 0  # something else


# ---------------------------------------------------------------------------------------------- what is no such thing

MISTAKEN: dict[str, tuple[dict[str, Any], str]] = {
    "dict of losses": ({"losses": dict.fromkeys("abc")}, "losses are a dict, expected a sequence"),
    "a number": ({"losses": [1.0, 2.0, 3.0]}, "loss of task 0 is a float, expected a tensor"),
    "pairs": ({"shared": nn.Linear(1, 1).named_parameters()}, "expected modules or parameters.* got a tuple"),
    "names": ({"specific": ["heads"]}, "expected modules or parameters.* got a str"),
    "dict of maps": ({"representation": {"p3": None}}, "a tensor or a list of tensors, got a dict"),
    "no map": ({"representation": [None]}, "a tensor or a list of tensors, got a list"),
    "a name": ({"combiner": "imtl_g"}, "expected a combiner, such as .*, got 'imtl_g'"),
    "a class": ({"combiner": combiners.get("imtl_g")}, "expected a combiner, such as .*, got <class"),
}


@pytest.mark.parametrize("kind", MISTAKEN)
def test_what_is_mistaken_for_something_else_is_named(kind: str) -> None:
    net, (given, message) = Net(), MISTAKEN[kind]
    z = net.encoder(net.x)
    options: dict[str, Any] = {"losses": net.losses(z, z, z), "combiner": combiners.make("imtl_g", T)}
    with pytest.raises(InputError, match=message):
        gradients.backward(**(options | {"shared": net.encoder, "specific": net.heads} | given))
    assert net.untouched()


def test_what_is_mistaken_for_task_batches_is_named() -> None:
    net = nn.Linear(5, 2)
    wrong: Any = net.parameters()
    with pytest.raises(InputError, match="expected a module as the network, got a generator"):
        gradients.TaskBatched(wrong, T)
    wrong = "3"
    with pytest.raises(InputError, match="num_tasks: expected an integer of at least 1, got '3'"):
        gradients.TaskBatched(net, wrong)
    batched = gradients.TaskBatched(net, T)
    with batched.record():
        losses = net(torch.randn(T, 6, 5)).flatten(1).mean(1)
    wrong = list(losses)
    with pytest.raises(InputError, match=r"expected the losses as one tensor \[T\] \(torch.stack\), got a list"):
        batched.backward(wrong, combiners.make("mgda", T))
    wrong = "mgda"
    with pytest.raises(InputError, match=r"expected a combiner, such as .*, got 'mgda'"):
        batched.backward(losses, wrong)


@pytest.mark.parametrize("method", METHODS)
def test_hooks_see_the_combined_gradient_once(method: str) -> None:
    plain, hooked = Net(), Net()
    z = plain.encoder(plain.x)
    plain.backward(plain.losses(z, z, z), method)
    seen: dict[Tensor, Tensor] = {}

    def take(parameter: Tensor) -> None:  # as an optimizer that steps within the backward pass
        assert parameter not in seen
        assert parameter.grad is not None
        seen[parameter], parameter.grad = parameter.grad, None

    for parameter in hooked.parameters():
        parameter.register_post_accumulate_grad_hook(take)
    z = hooked.encoder(hooked.x)
    hooked.backward(hooked.losses(z, z, z), method)
    assert hooked.untouched()
    for expected, parameter in zip(plain.parameters(), hooked.parameters(), strict=True):
        torch.testing.assert_close(seen[parameter], expected.grad, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------ past the representation


@pytest.mark.parametrize("aliased", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_a_shared_parameter_past_the_representation_is_found(aliased: bool, scale: float) -> None:
    for path in ("penalty", "skip", "first layer"):
        net = Net()
        hidden = net.encoder[:2](net.x)
        z = net.encoder[2:](hidden)
        read = gradients.fan_out(z, T) if aliased else (z,) * T
        losses = net.losses(*read)
        losses[1] = (
            losses[1]
            + scale
            * {
                "penalty": net.encoder[0].weight.square().sum(),
                "skip": net.heads[1](hidden).sum(),
                "first layer": net.encoder[:1](net.x).sum(),
            }[path]
        )
        with pytest.raises(InputError, match="reaches the loss of task 1 past the representation"):
            net.backward(losses, "graddrop", representation=read if aliased else z)
        assert net.untouched()


def test_a_representation_that_is_not_read_or_made_elsewhere_is_refused() -> None:
    net = Net()
    z = net.encoder(net.x)
    aliases = gradients.fan_out(z, T)
    second = z * 2
    cases: list[tuple[list[Tensor], Any, str]] = [
        (net.losses(z, z, z), z.detach(), "the representation does not depend on any trainable parameter"),
        (net.losses(z, z, z), [], "the representation does not depend on any trainable parameter"),
        (net.losses(z, z, z), aliases, "the loss of task 0 does not depend on the representation"),
        (net.losses(aliases[0], aliases[0], aliases[2]), aliases, "task 1 does not depend on the representation"),
        (net.losses(aliases[0], aliases[1] + aliases[0], aliases[2]), aliases, "task 1 reads another task's alias"),
        (net.losses(*aliases), list(aliases), "mark them"),
        (net.losses(z, z + second, second), [z, second], "a map of the representation depends on another"),
    ]
    for method in METHODS[1:]:
        for losses, representation, message in cases:
            with pytest.raises(InputError, match=message):
                net.backward(losses, method, representation=representation, retain_graph=True)
    with pytest.raises(InputError, match="the representation depends on a specific parameter"):
        net.backward(
            net.losses(z, z, z),
            "graddrop",
            shared=net.encoder[0],
            specific=[*net.heads, net.encoder[2]],
            representation=z,
        )
    assert net.untouched()


# --------------------------------------------------------------------------------- listed twice, several feature maps


def loop(losses: list[Tensor], parameters: list[nn.Parameter], weights: Tensor) -> list[Tensor]:
    return list(
        torch.autograd.grad(sum(w * x for w, x in zip(weights, losses, strict=True)), parameters, retain_graph=True)
    )


@pytest.mark.parametrize("method", [*METHODS, "moco", "pcgrad", "dwa"])
@pytest.mark.parametrize("by", ["parameters", "representation", "aliases"])
def test_parameters_listed_twice_count_once(method: str, by: str) -> None:
    found = []
    for twice in (False, True):
        net = Net()
        net.heads[2] = net.heads[0]
        z = net.encoder(net.x)
        read = gradients.fan_out(z, T) if by == "aliases" else (z,) * T
        shared = [*net.encoder.parameters()]
        options: dict[str, Any] = {"representation": {"parameters": None, "representation": z, "aliases": read}[by]}
        if by == "parameters" and method == "mgda":
            options["measured"] = [shared[2]] * (1 + twice)
        heads = [net.heads[0], net.heads[1], net.heads[2]] if twice else net.heads
        net.backward(net.losses(*read), method, shared=shared * (1 + twice), specific=heads, **options)
        found.append([parameter.grad for parameter in net.parameters()])
    for one, two in zip(*found, strict=True):
        assert one is not None
        torch.testing.assert_close(two, one, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["mgda", "db_mtl"])
@pytest.mark.parametrize("aliased", [False, True])
@pytest.mark.parametrize("num_maps", [1, T, T + 1])  # as many as tasks, too
def test_several_feature_maps_are_one_representation(method: str, aliased: bool, num_maps: int) -> None:
    torch.manual_seed(1)
    branches = nn.ModuleList(nn.Linear(5, 2 + k) for k in range(num_maps)).double()
    heads: Any = nn.ModuleList(nn.ModuleList(nn.Linear(2 + k, 1) for k in range(num_maps)) for _ in range(T)).double()
    x, y = torch.randn(7, 5).double(), torch.randn(T, 7, 1).double()
    maps = [branch(x).tanh() for branch in branches]
    read = gradients.fan_out(maps, T) if aliased else [maps] * T
    losses = [
        (sum(part(z) for part, z in zip(head, own, strict=True)) - target).square().mean()
        for head, own, target in zip(heads, read, y, strict=True)
    ]
    rows = [torch.autograd.grad(x, own, retain_graph=True) for x, own in zip(losses, read, strict=True)]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    values = torch.stack(losses).detach()
    direction = combiners.make(method, T).combine(values, jacobian.clone())
    pieces = [p.view_as(z) for p, z in zip(direction.split([z.numel() for z in maps]), maps, strict=True)]
    expected = torch.autograd.grad(maps, list(branches.parameters()), pieces, retain_graph=True)
    representation: Any = read if aliased else maps
    gradients.backward(
        losses, combiners.make(method, T), shared=branches, specific=heads, representation=representation
    )
    for parameter, gradient in zip(branches.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


# ------------------------------------------------------------------------------------------------- the graph is freed


def saved_by(forward: Callable[[], Any]) -> tuple[Any, list[weakref.ref[Tensor]]]:
    """The result of a forward pass, and weak references to copies of all that autograd saved."""
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        copy = tensor.detach().clone()
        saved.append(weakref.ref(copy))
        return copy

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda copy: copy):
        return forward(), saved


def alive(saved: list[weakref.ref[Tensor]]) -> int:
    return sum(reference() is not None for reference in saved)


@pytest.mark.parametrize("insight", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by", ["parameters", "representation", "aliases"])
def test_the_last_pass_frees_the_graph(by: str, method: str, stacked: bool, insight: bool) -> None:
    net = Net()

    def forward() -> Any:
        z = net.encoder(net.x)
        read = gradients.fan_out(z, T) if by == "aliases" else (z,) * T
        losses = net.losses(*read)
        return torch.stack(losses) if stacked else losses, z, read

    (losses, z, read), saved = saved_by(forward)
    options = {"representation": {"parameters": None, "representation": z, "aliases": read}[by], "insight": insight}
    before = alive(saved)
    net.backward(losses, method, retain_graph=True, **options)
    assert alive(saved) == before
    net.backward(losses, method, **options)
    left = alive(saved)
    if insight and method != "mgda":
        assert left == before  # it was looked at once more
    elif not stacked and (method, by) in (
        ("mgda", "parameters"),
        ("graddrop", "parameters"),
        ("graddrop", "representation"),
    ):
        assert left <= 3 * (T - 1)  # heads that were passed loss by loss
    else:
        assert left == 0
    if not insight:
        with pytest.raises(InputError, match="an earlier backward pass has freed the graph"):
            net.backward(losses, method, **options)


@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
@pytest.mark.parametrize("method", METHODS)
def test_the_last_pass_through_task_batches_frees_the_graph(method: str, memory_limit: int) -> None:
    net = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    batched = gradients.TaskBatched(net, T, memory_limit=memory_limit or 1000 * (method == "graddrop"))
    for _ in range(2):  # with and without the check of promises

        def forward() -> Tensor:
            with batched.record():
                return net(torch.randn(T, 6, 5)).square().flatten(1).mean(1)

        losses, saved = saved_by(forward)
        batched.backward(losses, combiners.make(method, T))
        # Nothing is behind the outputs of the first layer: its own input stays.
        assert alive(saved) <= (0 if method == "unitary" else 2)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func.__name__.split(".")[0] in ("mm", "addmm", "bmm")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["unitary", "rlw_normal", "famo", "uncertainty"])
def test_losses_methods_cost_one_plain_backward(method: str) -> None:
    counts = []
    for ours in (False, True):
        net = Net()
        z = net.encoder(net.x)
        losses = torch.stack(net.losses(z, z, z))
        del z
        with Products() as passes:
            if ours:
                net.backward(losses, method)
            else:
                losses.sum().backward()  # type: ignore[no-untyped-call]
        counts.append(passes.products)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("options", [{}, {"every": 2}])
def test_a_method_that_is_not_shown_the_losses_after_a_step_says_so(options: dict[str, Any]) -> None:
    net, forgotten = Net(), combiners.make("famo", T, **options)

    def step(combiner: combiners.Combiner, *, shown: bool) -> Tensor:
        losses = torch.stack(net.losses(*[net.encoder(net.x)] * T))
        gradients.backward(losses, combiner, shared=net.encoder, specific=net.heads)
        if shown:
            combiner.after_step(losses / 2)
        return losses

    step(forgotten, shown=False)
    with pytest.warns(UserWarning, match="famo was not shown the losses after the last step") as said:
        losses = step(forgotten, shown=False)
    assert said[0].filename == __file__
    forgotten.after_step(losses)
    with warnings.catch_warnings(action="error"):
        for combiner in (forgotten, combiners.make("famo", T, **options)):
            for _ in range(3):
                step(combiner, shown=True)
        for _ in range(2):
            step(combiners.make("uncertainty", T), shown=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("donated", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by", ["parameters", "representation", "aliases"])
def test_a_compiled_encoder_trains_or_the_switch_is_named(by: str, method: str, donated: bool) -> None:
    torch._dynamo.reset()

    def train(compiled: bool) -> Net:
        net = Net()
        net.encoder = nn.Sequential(
            nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, WIDTH), nn.GELU()
        )  # with buffers to donate
        encoder = torch.compile(net.encoder, backend="aot_eager") if compiled else net.encoder
        encoder(net.x).sum().backward()  # the backward of a compiled module is compiled by its first pass
        net.zero_grad()
        z = encoder(net.x)
        read = gradients.fan_out(z, T) if by == "aliases" else (z,) * T
        given = {"parameters": None, "representation": z, "aliases": read}[by]
        net.backward(net.losses(*read), method, representation=given)
        return net

    with functorch.patch(donated_buffer=donated):
        if donated and method != "unitary" and by == "parameters":
            with pytest.raises(InputError, match=r"set torch\._functorch\.config\.donated_buffer = False"):
                train(compiled=True)
        else:
            for ours, theirs in zip(train(compiled=True).parameters(), train(compiled=False).parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad)


# ---------------------------------------------------------------------------------------------------- one process


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def ways_in(net: Net) -> list[Callable[[], Any]]:
    z = net.encoder(net.x)
    batched = gradients.TaskBatched(nn.Linear(5, 2), T)
    return [
        lambda: net.backward(net.losses(z, z, z), "unitary", retain_graph=True),
        lambda: net.backward(net.losses(z, z, z), "graddrop", representation=z),
        lambda: gradients.TaskBatched(nn.Linear(5, 2), T),
        lambda: batched.source(batched.network(torch.randn(T, 6, 5)).flatten(1).mean(1)),
    ]


@pytest.mark.usefixtures("one_process")
def test_one_process_is_no_replica_but_a_wrapped_module_is() -> None:
    net = Net()
    for way in ways_in(net):
        way()
    wrapped = DistributedDataParallel(net.encoder)
    z = wrapped(net.x)
    cases: list[Callable[[], Any]] = [
        lambda: net.backward(net.losses(z, z, z), "mgda", shared=wrapped),
        lambda: net.backward(
            net.losses(z, z, z), "mgda", specific=[net.heads, DistributedDataParallel(nn.Linear(2, 2))]
        ),
        lambda: gradients.TaskBatched(wrapped, T),
        lambda: gradients.TaskBatched(nn.Sequential(DistributedDataParallel(nn.Linear(5, 2))), T),
    ]
    for case in cases:
        with pytest.raises(InputError, match="wrapped in DistributedDataParallel"):
            case()


@pytest.mark.parametrize("method", METHODS)
def test_a_default_device_changes_nothing(method: str) -> None:
    """On ``meta``, what is made without a device would hold no numbers."""

    def found(net: Net) -> list[Tensor | None]:
        z, batched = net.encoder(net.x), gradients.TaskBatched(net.encoder, T)
        net.backward(net.losses(z, z, z), method)
        with batched.record():
            losses = net.encoder(net.x.expand(T, 7, 5)).square().mean((1, 2)) + net.y.mean((1, 2)) ** 2
        batched.backward(losses, combiners.make(method, T))
        return [parameter.grad for parameter in net.parameters()]

    expected, net = found(Net()), Net()
    with torch.device("meta"):
        gradients_there = found(net)
    torch.testing.assert_close(gradients_there, expected, rtol=0, atol=0)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("given", ["modules", "parameters", "parameters from before"])
def test_sharded_parameters_are_refused(given: str) -> None:
    """Also after a forward pass, in which plain parameters take their place."""
    net = Net()
    fully_shard(net.encoder, mesh=init_device_mesh("cpu", (1,)))
    shared: Any = net.encoder if given == "modules" else list(net.encoder.parameters())
    z = net.encoder(net.x)
    if given == "parameters":
        shared = list(net.encoder.parameters())
        assert not any(hasattr(parameter, "device_mesh") for parameter in shared)
    with pytest.raises(InputError, match="parameters are sharded, by fully_shard or the like"):
        net.backward(net.losses(z, z, z), "unitary", shared=shared)
    other = Net()
    other.backward(other.losses(*[other.encoder(other.x)] * 3), "unitary")


def test_replicas_are_refused_in_every_way_in() -> None:
    """Two processes, as far as this one can tell."""
    net = Net()
    ways = ways_in(net)
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        for way in ways:
            with pytest.raises(InputError, match="runs 2 processes, whose replicas would drift apart"):
                way()
    finally:
        distributed.destroy_process_group()
    assert net.untouched()
