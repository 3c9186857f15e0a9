"""Gradients in a user's own loop: what any method leaves in ``.grad`` is plain autograd's plus its own ``combine``."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl import combiners, gradients
from mtrl.errors import InputError, RunError
from mtrl.gradients.layers import EnsembleLayerNorm, EnsembleLinear
from tests.reliability.runs import SOAK

B, WIDTH = 6, 4
SCALE = 2.0**10
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 5e-2}
TYPES = [torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16]


@dataclass
class Case:
    """A network, its losses, and what `backward` is told of them."""

    draw: random.Random
    num_tasks: int
    dtype: torch.dtype
    autocast: bool
    refused: str = ""  # what has to be said, if this has to be refused

    def maybe(self, chance: float = 0.3) -> bool:
        return self.draw.random() < chance


class Recorded:
    """Two instances of one method: the first is used and keeps what it was shown, the second is the oracle."""

    def __init__(self, name: str, num_tasks: int, rescale: bool) -> None:
        given: dict[str, dict[str, Any]] = {
            "fixed": {"weights": [1.5 / (1 + task) for task in range(num_tasks)]},
            "modo": {"halves": False},
        }
        options = given.get(name, {})
        self.used, self.oracle = (combiners.make(name, num_tasks, seed=3, rescale=rescale, **options) for _ in range(2))
        self.shown: list[tuple[Any, ...]] = []
        for way in ("weights", "combine"):
            setattr(self.used, way, self._recording(getattr(self.used, way)))

    def _recording(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def recording(*args: Any) -> Tensor:
            self.shown.append(tuple(a.clone() if isinstance(a, Tensor) else a for a in args))
            return function(*args)

        return recording

    def answer(self) -> Tensor:
        """What the other instance makes of the same: weights, or a direction."""
        (shown,) = self.shown
        copies: list[Any] = [a.clone() if isinstance(a, Tensor) else a for a in shown]
        way = self.oracle.combine if self.oracle.needs == "jacobian" else self.oracle.weights
        return way(*copies)


def flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """Gradients as one vector of real numbers, in float64."""
    parts = []
    for tensor, parameter in zip(tensors, like, strict=True):
        tensor = torch.zeros_like(parameter) if tensor is None else tensor.to_dense()
        parts.append((torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten().double())
    return torch.cat(parts)


def once(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors if tensor.requires_grad}.values())


def per_task(losses: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
    if not inputs:
        return [() for _ in losses]
    return [torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True) for loss in losses]


def close(found: Tensor, expected: Tensor, magnitude: Tensor, tolerance: float) -> bool:
    return bool((found - expected).norm() <= tolerance * magnitude.norm() + 1e-30)


def weighted(rows: Sequence[Sequence[Tensor | None]], weights: Tensor) -> tuple[list[Tensor | None], list[Tensor]]:
    """The rows' weighted sum by parameter, in float64, and that of the norms: what rounding is relative to."""
    sums: list[Tensor | None] = []
    magnitudes = []
    for column in zip(*rows, strict=True):
        terms = [
            (float(w), g.to_dense().to(torch.complex128 if g.is_complex() else torch.float64))
            for w, g in zip(weights, column, strict=True)
            if g is not None
        ]
        sums.append(sum((w * g for w, g in terms), torch.zeros(())) if terms else None)
        magnitudes.append(sum((abs(w) * torch.full_like(g, float(g.norm())) for w, g in terms), torch.zeros(())))
    return sums, magnitudes


@dataclass
class Oracle:
    """What plain autograd says of a case, before `backward` frees the graph."""

    shared: Sequence[Tensor]
    specific: Sequence[Tensor]
    by_shared: Sequence[Sequence[Tensor | None]]
    by_specific: Sequence[Sequence[Tensor | None]]
    jacobian: Tensor
    tolerance: float
    factor: float  # of `scale` and the scaler
    weigh_specific: bool | None
    pieces: Callable[[Tensor], Sequence[Tensor | None]]  # a direction's, by shared parameter

    def check(self, recorded: Recorded, combination: gradients.Combination, before: Sequence[Tensor | None]) -> None:
        """What was shown to the combiner, what it answered, and what was made of that."""
        answer, seen = recorded.answer(), recorded.shown[0][-1 if recorded.used.needs == "gramian" else 1]
        own = ones = torch.ones(len(self.jacobian))
        if recorded.used.needs == "jacobian":
            assert combination.weights is None
            assert close(seen.double(), self.jacobian, self.jacobian, self.tolerance)
            sums = self.pieces(answer)
            magnitudes = weighted(self.by_shared, ones * float(answer.norm() / (self.jacobian.norm() + 1e-30) + 1))[1]
        else:
            assert combination.weights is not None
            assert torch.equal(combination.weights, answer)
            if recorded.used.needs == "gramian":
                self.check_gramian(seen.double())
            sums, magnitudes = weighted(self.by_shared, answer)
            weigh = recorded.used.weights_specific if self.weigh_specific is None else self.weigh_specific
            own = answer if weigh else ones
        self.check_update(self.shared, before[: len(self.shared)], sums, magnitudes)
        self.check_update(self.specific, before[len(self.shared) :], *weighted(self.by_specific, own))

    def check_gramian(self, seen: Tensor) -> None:
        norms = self.jacobian.norm(dim=1) + 1e-2 * (self.tolerance > 1e-2)  # small ones underflow in float16
        allowed = self.tolerance * torch.outer(norms, norms) + 1e-30
        assert bool(((seen - self.jacobian @ self.jacobian.T).abs() <= allowed).all())

    def check_update(
        self,
        parameters: Sequence[Tensor],
        before: Sequence[Tensor | None],
        expected: Sequence[Tensor | None],
        magnitudes: Sequence[Tensor],
    ) -> None:
        """``.grad`` has grown by what was expected, and is there exactly where autograd has a gradient."""
        largest = max([float(magnitude.norm()) for magnitude in magnitudes], default=0.0)
        for parameter, old, new, magnitude in zip(parameters, before, expected, magnitudes, strict=True):
            if new is None:
                assert untouched([parameter], [old])
                continue
            assert parameter.grad is not None
            assert parameter.grad.dtype == parameter.dtype
            found = flat([parameter.grad], [parameter]) - flat([old], [parameter])
            # What cancels in a sum over samples leaves its rounding behind.
            size = self.factor * (flat([magnitude], [parameter]).abs() + largest) + flat([old], [parameter]).abs()
            assert close(found, self.factor * flat([new], [parameter]), size, self.tolerance), (found, new)


def untouched(parameters: Sequence[Tensor], before: Sequence[Tensor | None]) -> bool:
    """Whether every ``.grad`` is as it was."""
    return all(
        p.grad is None if old is None else p.grad is not None and torch.equal(flat([p.grad], [old]), flat([old], [old]))
        for p, old in zip(parameters, before, strict=True)
    )


def given_gradients(case: Case, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Puts something into some ``.grad``; returns copies of all."""
    for parameter in parameters:
        if case.maybe(0.2):
            parameter.grad = torch.randn_like(parameter) / 8
    return [None if p.grad is None else p.grad.clone() for p in parameters]


def outcome(
    case: Case,
    recorded: Recorded,
    oracle: Oracle | None,
    before: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    backward: Callable[[], gradients.Combination],
    may_overflow: bool,
) -> None:
    """`backward` is right, or refuses what it has to and leaves everything as it was."""
    failure: Exception | None = None
    try:
        combination = backward()
    except (InputError, RunError) as error:
        failure = error
    if failure is not None:
        assert untouched(parameters, before)
        if not case.refused:
            assert len(recorded.shown) == 1, failure  # a method that finds no solution does not find one again
            with pytest.raises(type(failure)):
                recorded.answer()
        assert re.search(case.refused, str(failure))
        return
    assert not case.refused, case.refused
    finite = bool(torch.isfinite(flat([p.grad for p in parameters], parameters)).all())
    if may_overflow and not (recorded.shown and finite):
        assert not finite  # so that GradScaler skips the step
        return
    assert oracle is not None
    oracle.check(recorded, combination, before)


# ------------------------------------------------------------------------------------------------- shared inputs


class Complex(nn.Module):
    """A layer with complex parameters between real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.randn(WIDTH // 2, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(z * self.turn).flatten(-2).to(x.dtype)


class Shared(nn.Module):
    """An encoder (whose layers may be reused, frozen, unused, sparse, complex, of another type) and heads."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        sparse = case.maybe(0.5) and case.dtype in (torch.float32, torch.float64)
        self.table = nn.Embedding(5, WIDTH, sparse=sparse)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(case.draw.randint(1, 3)))
        if case.maybe():
            self.layers.append(nn.LayerNorm(WIDTH))
        self.idle = nn.Linear(2, 2)
        self.skip = nn.Linear(WIDTH, WIDTH)
        self.to(case.dtype)
        if case.maybe():
            self.layers.append(Complex())
        self.odd = case.draw.choice([*self.layers]) if case.maybe() and not case.autocast else None
        if self.odd is not None and not isinstance(self.odd, Complex):
            self.odd.to(case.draw.choice([torch.float64, torch.bfloat16]))
        self.reused = case.draw.choice([*self.layers]) if case.maybe() else None
        self.with_table, self.keywords = case.maybe(), case.maybe()
        heads = [nn.Linear(WIDTH, 1).to(case.dtype) for _ in range(case.num_tasks)]
        if case.maybe():
            heads[-1] = heads[0]
        self.heads = nn.ModuleList(heads)
        for parameter in [*self.layers.parameters(), *self.heads[-1].parameters()]:
            parameter.requires_grad_(not case.maybe(0.1))
        self.layers[0].weight.requires_grad_(True)

    def encode(self, x: Tensor, index: Tensor) -> Tensor:
        if self.with_table:
            x = x + self.table(index)
        for layer in [*self.layers, *([self.reused] if self.reused else [])]:
            kind = next(layer.parameters()).dtype
            y = x if kind.is_complex or torch.is_autocast_enabled("cpu") else x.to(kind)
            y = layer(input=y) if self.keywords and not isinstance(layer, Complex) else layer(y)
            x = torch.tanh(y.to(x.dtype))
        return x


def shared_losses(case: Case, net: Shared, by_representation: bool) -> tuple[list[Tensor], Any, list[list[Tensor]]]:
    """Losses, what is given as representation, and what each task's head reads of it."""
    generator = torch.Generator().manual_seed(case.draw.randrange(2**31))
    x = torch.randn(B, WIDTH, generator=generator).to(case.dtype)
    index = torch.randint(5, (B,), generator=generator)
    targets = torch.randn(case.num_tasks, B, 1, generator=generator).to(case.dtype)
    masks = torch.rand(case.num_tasks, B, 1, generator=generator) < 0.8
    masks[:, 0] = True
    if case.maybe(0.1):
        masks[-1] = False  # a batch without a label
    z = net.encode(x, index)
    maps, given = [z], case.draw.choice(["parameters", "tensor", "maps", "aliases", "aliases of maps"])
    if given in ("maps", "aliases of maps"):
        chained = given == "aliases of maps" or case.maybe(0.2)
        maps.append(torch.sin(net.skip(z if chained else x)))
        if chained and given == "maps" and by_representation:
            case.refused = "a map of the representation depends on another"
    read: Any = {
        "aliases": lambda: [[alias] for alias in gradients.fan_out(z, case.num_tasks)],
        "aliases of maps": lambda: gradients.fan_out(maps, case.num_tasks),
    }.get(given, lambda: [maps] * case.num_tasks)()
    representation: Any = {
        "parameters": None,
        "tensor": z,
        "maps": [*maps, z],
        "aliases": gradients.Aliases(own[0] for own in read) if given == "aliases" else None,
        "aliases of maps": read,
    }[given]
    losses = []
    for task, (head, own) in enumerate(zip(net.heads, read, strict=True)):
        error = (wide(head(sum(own[1:], own[0]))) - wide(targets[task])).square() * masks[task]
        losses.append(10.0 ** (task - 1) * error.sum() / masks[task].sum().clamp_min(1) + 0.1)
    return losses, representation, [list(own) for own in read]


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def spoil(case: Case, net: Shared, losses: list[Tensor], representation: Any, needs: str) -> None:
    """Breaks something, and says what has to be said."""
    task = case.draw.randrange(case.num_tasks)
    kind = case.draw.choice(["constant", "detached", "past", "counted"])
    if kind == "constant":
        losses[task] = losses[task].detach()
        case.refused = f"the loss of task {task} does not depend on any parameter"
    elif kind == "detached" and net.heads[task].bias.requires_grad:
        losses[task] = (net.heads[task].bias.float() ** 2).sum() + 0.1
        case.refused = f"the loss of task {task} does not depend on any"
    elif kind == "past" and representation is not None and needs == "jacobian":
        losses[task] = losses[task] + net.layers[0].weight.float().square().sum()
        case.refused = "past the representation"
    elif kind == "counted":
        losses.append(losses[0])
        case.refused = f"was made for {case.num_tasks} tasks, got {case.num_tasks + 1} losses"


def listed(case: Case, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A list of parameters, some of them twice."""
    return [*tensors, *(tensor for tensor in tensors if case.maybe(0.1))]


def shared_inputs(seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    dtype = draw.choice(TYPES)
    case = Case(draw, draw.randint(1, 4), dtype, autocast=dtype == torch.float32 and draw.random() < 0.2)
    recorded = Recorded(draw.choice(combiners.names()), case.num_tasks, rescale=case.maybe())
    needs, net = recorded.used.needs, Shared(case)
    options: dict[str, Any] = {"scale": draw.choice([1.0, 0.25]), "insight": case.maybe()}
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        losses, representation, read = shared_losses(case, net, options["insight"] or needs != "losses")
    shared = [*net.layers.parameters(), *net.idle.parameters(), *net.table.parameters(), *net.skip.parameters()]
    specific = [parameter for head in net.heads for parameter in head.parameters()]
    if case.maybe(0.2) and not case.refused:
        spoil(case, net, losses, representation, needs)
    options |= more_options(case, net, needs, representation is None)
    once_shared, once_specific = once(shared), once(specific)
    before = given_gradients(case, [*once_shared, *once_specific])
    kinds = [torch.bfloat16] if case.autocast else [p.dtype.to_real() for p in net.parameters()]
    oracle = None
    if not case.refused:
        by = [once(options.get("measured", shared))] * len(losses) if representation is None else read
        rows = per_task(losses, once_shared)
        oracle = Oracle(
            once_shared,
            once_specific,
            rows,
            per_task(losses, once_specific),
            torch.stack([flat(per_task([loss], own)[0], own) for loss, own in zip(losses, by, strict=True)]),
            max(TOLERANCE[kind] for kind in kinds),
            options["scale"] * (SCALE if options["scaler"] else 1.0),
            options.get("weigh_specific"),
            lambda direction: (
                split(direction, once_shared, rows) if representation is None else back(direction, read[0], once_shared)
            ),
        )
    given: Any = torch.stack(losses) if case.maybe(0.5) else losses
    outcome(
        case,
        recorded,
        oracle,
        before,
        [*once_shared, *once_specific],
        lambda: gradients.backward(
            given,
            recorded.used,
            shared=listed(case, shared),
            specific=listed(case, specific) if case.maybe(0.5) else [*net.heads, net.heads[0]],
            representation=representation,
            retain_graph=needs == "jacobian" and representation is not None,  # the oracle goes back once more
            **options,
        ),
        options["scaler"] is not None and torch.float16 in kinds,
    )


def more_options(case: Case, net: Shared, needs: str, by_parameters: bool) -> dict[str, Any]:
    """What `backward` can be told beside."""
    options: dict[str, Any] = {"scaler": torch.amp.GradScaler("cpu", init_scale=SCALE) if case.maybe(0.2) else None}
    if needs != "jacobian":
        options["weigh_specific"] = case.draw.choice([None, True, False])
    if needs == "gramian":
        options["memory_limit"] = case.draw.choice([0, 500, 1 << 20])
        if by_parameters and case.maybe():
            options["measured"] = listed(case, [next(net.layers[0].parameters())])
    return options


def split(
    direction: Tensor, parameters: Sequence[Tensor], rows: Sequence[Sequence[Tensor | None]]
) -> list[Tensor | None]:
    """A direction by parameter, where any task has a gradient."""
    sizes = [p.numel() * (2 if p.is_complex() else 1) for p in parameters]
    found: list[Tensor | None] = []
    for piece, parameter, column in zip(direction.split(sizes), parameters, zip(*rows, strict=True), strict=True):
        shaped = (
            torch.view_as_complex(piece.clone().view(*parameter.shape, 2))
            if parameter.is_complex()
            else piece.view_as(parameter)
        )
        found.append(None if all(gradient is None for gradient in column) else shaped)
    return found


def back(direction: Tensor, maps: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """A direction for the representation passed back through the encoder."""
    pieces = [
        piece.view_as(z).to(z.dtype) for piece, z in zip(direction.split([z.numel() for z in maps]), maps, strict=True)
    ]
    return list(torch.autograd.grad(maps, parameters, pieces, allow_unused=True, retain_graph=True))


# -------------------------------------------------------------------------------------------------- disjoint batches


class Batched(nn.Module):
    """Layers that have a rule (reused, frozen, unused, with keyword inputs), or not."""

    def __init__(self, case: Case, slow: bool) -> None:
        super().__init__()
        self.members = 2 if case.maybe() else 0
        linear: Callable[[], nn.Module] = lambda: nn.Linear(WIDTH, WIDTH, bias=not case.maybe(0.2))  # noqa: E731
        norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(WIDTH)  # noqa: E731
        if self.members:
            linear, norm = lambda: EnsembleLinear(2, WIDTH, WIDTH), lambda: EnsembleLayerNorm(2, WIDTH)
        self.layers = nn.ModuleList(case.draw.choice([linear, linear, norm])() for _ in range(case.draw.randint(1, 4)))
        self.table = nn.Embedding(5, WIDTH, padding_idx=1 if case.maybe() else None) if case.maybe() else None
        self.idle = nn.Linear(2, 2) if case.maybe() else None
        self.to(case.dtype)
        if slow:
            self.layers.append(Complex())
        self.reused = case.draw.choice([*self.layers]) if case.maybe() else None
        self.keywords = case.maybe() and not self.members
        for parameter in self.parameters():
            parameter.requires_grad_(not case.maybe(0.1))
            with torch.no_grad():
                parameter.add_(0.3 * torch.randn_like(parameter))
        next(self.layers[-1].parameters()).requires_grad_(True)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        if self.table is not None:
            x = x + (self.table(input=index) if self.keywords else self.table(index))
        if self.members:
            x = x.expand(2, *x.shape)
        for layer in [*self.layers, *([self.reused] if self.reused else [])]:
            y = layer(input=x) if self.keywords and not isinstance(layer, Complex) else layer(x)
            x = torch.tanh(y + 0.1 * x)
        return x.mean(0) if self.members else x


def disjoint_batches(seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    dtype = draw.choice(TYPES)
    case = Case(draw, draw.randint(1, 12), dtype, autocast=dtype == torch.float32 and draw.random() < 0.3)
    recorded = Recorded(draw.choice(combiners.names()), case.num_tasks, rescale=case.maybe())
    needs, net = recorded.used.needs, Batched(case, slow := case.maybe(0.1) and not case.autocast)
    limit = 1 << 20 if needs == "jacobian" else draw.choice([0, 1 << 20])
    batched = gradients.TaskBatched(net, case.num_tasks, memory_limit=limit, allow_slow=slow)
    x = torch.randn(case.num_tasks, B, WIDTH).to(dtype)
    mask = torch.rand(case.num_tasks, B, 1) < 0.8
    if case.maybe(0.1):
        mask[-1] = False  # a batch without a label
    scale = torch.logspace(-1, 1, case.num_tasks)
    kinds = [torch.bfloat16 if case.autocast else dtype, *([torch.float32] if slow else [])]
    options: dict[str, Any] = {"scale": draw.choice([1.0, 0.25]), "insight": case.maybe()}
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE) if case.maybe(0.2) else None
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast), batched.record():
        y = net(x, torch.randint(5, (case.num_tasks, B)))
        if case.maybe(0.1) and case.num_tasks > 1 and needs != "losses" and not slow:
            y = y + 0.5 * y.roll(draw.randrange(1, case.num_tasks), 0)
            case.refused = "mix tasks"
        errors = (wide(y) - 0.2).square() * mask
        losses = scale * errors.sum((1, 2)) / mask.sum((1, 2)).clamp_min(1) + 0.1
        if case.maybe():
            losses = torch.stack(list(losses))
    if case.maybe(0.05):
        losses, case.refused = losses.detach(), "the loss of task 0 does not depend on any parameter"
    before = given_gradients(case, batched.parameters)
    oracle = None
    if not case.refused:
        rows = per_task(list(losses), batched.parameters)
        oracle = Oracle(
            batched.parameters,
            (),
            rows,
            [() for _ in rows],
            torch.stack([flat(row, batched.parameters) for row in rows]),
            max(TOLERANCE[kind] for kind in kinds),
            options["scale"] * (SCALE if scaler else 1.0),
            None,
            lambda direction: split(direction, batched.parameters, rows),
        )
    outcome(
        case,
        recorded,
        oracle,
        before,
        batched.parameters,
        lambda: batched.backward(losses, recorded.used, scaler=scaler, **options),
        scaler is not None and dtype == torch.float16,
    )


@pytest.mark.parametrize("try_case", [shared_inputs, disjoint_batches])
def test_gradients_are_those_of_plain_autograd(try_case: Callable[[int], None]) -> None:
    for seed in range(10_000 if SOAK else 200):
        try:
            try_case(seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
