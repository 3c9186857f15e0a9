"""What every combiner in the registry has to do, on every family of Jacobians.

Methods under wrappers are in the list too. A new method needs no entry here: `Promise`'s defaults apply. An entry in
``PROMISES`` says where a method promises more, and where it promises less and why. Methods in files elsewhere are
tested by ``MTRL_PLUGINS=mine.py python -m pytest tests/property -k NAME``.
"""

import ast
import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from mtrl import combiners, ranges
from mtrl.combiners import Combiner
from mtrl.combiners.wrappers.wrapper import Wrapper
from mtrl.errors import InputError
from mtrl.plugins import load_file
from tests.property.matrices import FAMILIES, TASKS, P, problem

for file in filter(None, os.environ.get("MTRL_PLUGINS", "").split(os.pathsep)):
    load_file("MTRL_PLUGINS", file)
WRAPPED = [
    "sdmgrad halves=True",
    *("mgda every=2", "pcgrad every=3", "nash_mtl every=2", "uncertainty every=2"),
    *("cagrad smooth=0.5", "rlw_normal smooth=0.9", "famo smooth=0.5", "imtl smooth=0.5"),
    *("upgrad log=True", "imtl_g log=True", "aligned_mtl log=True"),
    *("mgda every=2 smooth=0.5", "fairgrad every=2 smooth=0.5 log=True"),
]
"""Methods under wrappers, or with an option: what is common to all methods holds of them too."""
NAMES = combiners.names() + WRAPPED


def never(jacobian: Tensor) -> bool:
    return False


def always(jacobian: Tensor) -> bool:
    return True


def stationary(jacobian: Tensor) -> bool:
    """Whether a convex combination of the non-zero gradients is zero."""
    units = torch.nn.functional.normalize(jacobian[jacobian.any(1)]).numpy()
    if not len(units):
        return False
    system = np.vstack([units.T, np.ones(len(units))])
    return bool(nnls(system, np.eye(len(system))[-1])[1] < 1e-6)


def independent(jacobian: Tensor) -> bool:
    return int(torch.linalg.matrix_rank(torch.nn.functional.normalize(jacobian))) == len(jacobian)


@dataclass(frozen=True)
class Promise:
    options: Callable[[int], dict[str, Any]] = lambda tasks: {}
    """Options without which the method cannot be made, or would not get to its point within a test."""
    random: bool = False
    """Draws from its generator: equivariant under permutations in distribution only."""
    not_equivariant: str = ""
    """Why a permutation of the tasks does not permute the weights."""
    degree: float | None = None
    """``combine(c J) = c^degree combine(J)`` for c > 0; None promises nothing (losses-only methods: always 1)."""
    row_scaling: str = ""
    """What positive factors on the rows leave alone: the whole update (``"update"``) or its ``"direction"``."""
    non_conflicting: Callable[[Tensor], bool] = never
    """For which J the update makes no task worse: ``J d >= 0``."""
    arrives: Callable[[Tensor], bool] = never
    """For which J the method documents that its equation has no solution, and gives an update of 0."""
    single_task: str = ""
    """Why the update for a single task is not a positive multiple of its gradient."""
    steps: int = 2
    """The number of steps after which the method's state has come into play."""
    rounding: float = 1e-11
    """What rounding leaves of an update where the gradients cancel, relative to the smallest of them."""


PROMISES = {
    "fixed": Promise(
        options=lambda tasks: {"weights": [1.0 + task for task in range(tasks)]},
        not_equivariant="the weights are given by position",
    ),
    "random_grad_drop": Promise(random=True, single_task="a single task is dropped with probability 1 - p"),
    "rlw_normal": Promise(random=True),
    "rlw_dirichlet": Promise(random=True),
    "dwa": Promise(options=lambda tasks: {"period": 1}),
    "stch": Promise(options=lambda tasks: {"warmup": 1}),
    "graddrop": Promise(random=True, degree=1),
    "sign_agnostic_drop": Promise(random=True, degree=1, single_task="entries of a single task are dropped"),
    "db_mtl": Promise(degree=1),
    "excess_mtl": Promise(degree=1),
    "imtl_g": Promise(degree=1),
    "imtl": Promise(degree=1),
    "mgda": Promise(degree=1, non_conflicting=always),
    "edm": Promise(degree=1, row_scaling="direction", non_conflicting=always),
    "cdtt": Promise(steps=12),
    "pcgrad": Promise(random=True, degree=1),
    # The sine of an angle near 180 degrees is exact to the root of the machine epsilon only.
    "gradvac": Promise(random=True, degree=1, rounding=1e-7),
    "cagrad": Promise(degree=1),
    "nash_mtl": Promise(
        options=lambda tasks: {"update_every": 2, "max_norm": math.inf},
        degree=0,
        row_scaling="update",
        non_conflicting=always,
        arrives=stationary,
    ),
    "fairgrad": Promise(
        options=lambda tasks: {"max_norm": math.inf},
        degree=-1 / 3,
        non_conflicting=always,
        arrives=stationary,
    ),
    "aligned_mtl": Promise(degree=1),
    "upgrad": Promise(degree=1, non_conflicting=always),
    "dualproj": Promise(degree=1, non_conflicting=always),
    "conflict_free": Promise(degree=1, row_scaling="direction", non_conflicting=independent),
    "sdmgrad": Promise(degree=1),
}


def plain(name: str) -> str:
    """The method's own name."""
    return name.split()[0]


def method(name: str) -> type[Combiner]:
    return combiners.get(plain(name))


def wrappers(name: str) -> dict[str, Any]:
    return {option: ast.literal_eval(value) for option, value in (word.split("=") for word in name.split()[1:])}


def promise(name: str) -> Promise:
    own = PROMISES.get(plain(name), Promise())
    if name == plain(name):
        return own
    # Weights of other steps, or for other gradients, may make a task worse.
    return replace(own, non_conflicting=never, row_scaling="", steps=own.steps + 2)


def degree(name: str) -> float | None:
    return 1 if method(name).needs == "losses" else promise(name).degree


def make(name: str, tasks: int, **options: Any) -> Combiner:
    return combiners.make(plain(name), tasks, **promise(name).options(tasks), **wrappers(name), **options)


def update(combiner: Combiner, losses: Tensor, jacobian: Tensor) -> Tensor:
    """One step of training as the combiner sees it."""
    direction = combiner.combine(losses, jacobian.clone())
    if combiner.needs_losses_after_step:
        combiner.after_step(losses / (1 + losses))
    return direction


def updates(combiner: Combiner, losses: Tensor, jacobian: Tensor) -> Tensor:
    """The direction after some steps on one Jacobian and growing losses."""
    for step in range(promise(combiner.name).steps + 2 * isinstance(combiner, Wrapper)):
        direction = update(combiner, losses * (1 + step * losses), jacobian)
    return direction


def solvable(name: str, family: str) -> list[int]:
    """The numbers of tasks for which the family has a solution; checks that the others get no update."""
    tasks = []
    for t in TASKS:
        losses, jacobian = problem(family, t)
        if not promise(name).arrives(jacobian):
            tasks.append(t)
            continue
        combiner = make(name, t)
        assert not combiner.combine(losses, jacobian).any()
        assert combiner.stationary
    return tasks


def rounding(name: str, jacobian: Tensor) -> float:
    """The length of an update that is zero but for rounding."""
    norms = jacobian.norm(dim=1)
    if not norms.any():
        return 0.0
    return promise(name).rounding * norms[norms > 0].min().item() + 1e-15 * norms.max().item()


def assert_same(name: str, actual: Tensor, expected: Tensor, jacobian: Tensor, case: object = "") -> None:
    error, norm = (actual - expected).norm(), expected.norm()
    assert error <= 1e-6 * norm + rounding(name, jacobian), f"{case}: off by {error:.3g} at a norm of {norm:.3g}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_update_is_finite(name: str, family: str) -> None:
    for t in solvable(name, family):
        losses, jacobian = problem(family, t)
        for dtype in (torch.float64, torch.float32):
            direction = updates(make(name, t), losses.to(dtype), jacobian.to(dtype))
            assert direction.shape == (P,)
            assert direction.dtype == dtype
            assert direction.isfinite().all(), (t, dtype)
            assert family != "zeros" or not direction.any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "name", [name for name in NAMES if not promise(name).random and not promise(name).not_equivariant]
)
def test_permuting_the_tasks_changes_nothing(name: str, family: str) -> None:
    for t in solvable(name, family):
        losses, jacobian = problem(family, t)
        order = torch.randperm(t, generator=torch.Generator().manual_seed(1))
        expected = updates(make(name, t), losses, jacobian)
        assert_same(name, updates(make(name, t), losses[order], jacobian[order]), expected, jacobian, t)


@pytest.mark.parametrize("name", [name for name in NAMES if promise(name).random])
def test_permuting_the_tasks_keeps_the_distribution(name: str) -> None:
    losses, jacobian = problem("random", 3)
    jacobian = jacobian[:, :4] * torch.tensor([[0.5], [1.0], [2.0]])
    order = torch.tensor([2, 0, 1])
    draws = [torch.stack([update(make(name, 3, seed=seed), losses, jacobian) for seed in range(400)])]
    draws += [
        torch.stack([update(make(name, 3, seed=seed), losses[order], jacobian[order]) for seed in range(400, 800)])
    ]
    error = ((draws[0].var(0) + draws[1].var(0)) / 400).sqrt()
    assert ((draws[0].mean(0) - draws[1].mean(0)).abs() <= 4 * error + 1e-9).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name in NAMES if degree(name) is not None])
def test_scaling_the_jacobian(name: str, family: str) -> None:
    for t in solvable(name, family):
        losses, jacobian = problem(family, t)
        expected = updates(make(name, t), losses, jacobian)
        for scale in (1e-4, 30.0):
            actual = updates(make(name, t), losses, scale * jacobian) / scale ** degree(name)
            assert_same(name, actual, expected, jacobian, (t, scale))


EXTREMES = {torch.float64: (2.0**-490, 2.0**490), torch.float32: (2.0**-95, 2.0**95)}
"""Powers of 2, so that nothing is rounded; entries are normal numbers, squares of float32 are out of range."""


@pytest.mark.parametrize("dtype", EXTREMES)
@pytest.mark.parametrize(
    "name", [name for name in NAMES if method(name).needs != "losses" and degree(name) is not None]
)
def test_scaling_to_the_ends_of_the_range(name: str, dtype: torch.dtype) -> None:
    if "log" in name or (name == "excess_mtl" and dtype == torch.float32):
        return  # it remembers sums of squares; FairGrad's weights of the logarithms' gradients are beyond the range
    for family in ("random", "conflicting", "rank_deficient", "zero_rows", "duplicates"):
        for t in set(solvable(name, family)) - {50}:
            losses, jacobian = (part.to(dtype) for part in problem(family, t))
            expected = updates(make(name, t), losses, jacobian).double()
            for scale in EXTREMES[dtype]:
                actual = updates(make(name, t), losses, scale * jacobian).double() / scale ** degree(name)
                error = (actual - expected).norm()
                rounding = 1e-13 if dtype == torch.float64 else 1e-6
                size = expected.norm() + jacobian.double().norm() if degree(name) == 1 else 1e2 * expected.norm()
                assert error <= rounding * size, (family, t, scale)


@pytest.mark.parametrize("family", ["random", "aligned"])
@pytest.mark.parametrize("name", [name for name in NAMES if promise(name).row_scaling])
def test_scaling_the_rows(name: str, family: str) -> None:
    for t in solvable(name, family):
        losses, jacobian = problem(family, t)
        factors = torch.logspace(-2, 2, t, dtype=torch.float64)[:, None]
        expected = updates(make(name, t), losses, jacobian)
        actual = updates(make(name, t), losses, factors * jacobian)
        if promise(name).row_scaling == "direction":
            expected, actual = expected / expected.norm(), actual / actual.norm()
        assert_same(name, actual, expected, jacobian, t)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name in NAMES if method(name).needs != "jacobian"])
def test_weights_from_the_gramian_give_the_same_update(name: str, family: str) -> None:
    for t in solvable(name, family):
        losses, jacobian = problem(family, t)
        weights = make(name, t).weights(losses, jacobian @ jacobian.T)
        assert weights.shape == (t,)
        assert weights.dtype == losses.dtype
        assert_same(name, make(name, t).combine(losses, jacobian), weights @ jacobian, jacobian, t)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name in NAMES if promise(name).non_conflicting is not never])
def test_no_task_is_made_worse(name: str, family: str) -> None:
    for t in solvable(name, family):
        losses, jacobian = problem(family, t)
        if not promise(name).non_conflicting(jacobian):
            continue
        direction = updates(make(name, t), losses, jacobian)
        allowed = 1e-6 * direction.norm() + rounding(name, jacobian)
        assert (jacobian @ direction >= -allowed * jacobian.norm(dim=1)).all(), t


@pytest.mark.parametrize("name", [name for name in NAMES if not promise(name).single_task])
def test_single_task_gets_its_own_gradient(name: str) -> None:
    losses, jacobian = problem("random", 1)
    direction = updates(make(name, 1), losses, jacobian)
    scale = direction @ jacobian[0] / jacobian[0].square().sum()
    assert scale > 0
    assert_same(name, direction, scale * jacobian[0], jacobian)


@pytest.mark.parametrize("tasks", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip_goes_on_bit_for_bit(name: str, tasks: int) -> None:
    saved = promise(name).steps + 1
    steps = [problem("random", tasks, seed) for seed in range(saved + 3)]
    combiner = make(name, tasks)
    for losses, jacobian in steps[:saved]:
        update(combiner, losses.float(), jacobian.float())
    file = io.BytesIO()
    torch.save(combiner.state_dict(), file)
    file.seek(0)
    restored = make(name, tasks, seed=1)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for losses, jacobian in steps[saved:]:
        expected = update(combiner, losses.float(), jacobian.float())
        assert update(restored, losses.float(), jacobian.float()).equal(expected)


@pytest.mark.parametrize("name", NAMES)
def test_seed(name: str) -> None:
    losses, jacobian = problem("random", 10)
    first, same, other = (updates(make(name, 10, seed=seed), losses, jacobian) for seed in (0, 0, 1))
    assert same.equal(first)
    assert other.equal(first) is not promise(name).random


@pytest.mark.parametrize("zero", [[1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_where_a_loss_is_0(name: str, zero: list[int]) -> None:
    """From the first call on or from later, with a gradient or without: all stays finite, and so does what follows."""
    for dtype, without in ((torch.float64, True), (torch.float32, False)):
        losses, jacobian = (part.to(dtype) for part in problem("aligned", 3))
        learnt, rows = losses.clone(), jacobian.clone()
        learnt[zero] = 0
        if without:
            rows[zero] = 0
        for calls in ([learnt, losses], [losses, learnt, learnt, losses]):
            combiner = make(name, 3)
            for given in calls * 8:
                direction = combiner.combine(given, (rows if given is learnt else jacobian).clone())
                assert direction.isfinite().all()
                if combiner.needs_losses_after_step:
                    combiner.after_step(given.flip(0))
            assert all(value.isfinite().all() for value in combiner.buffers())
            # Every other step is one of those without a loss, and the only one that finds weights.
            kept = "every=2" in name and len(zero) == 3
            assert promise(name).random or kept or direction.any()


@pytest.mark.parametrize("bad", [-1e-30, -1.0, float("nan")])
@pytest.mark.parametrize("name", [name for name in NAMES if method(name).positive_losses or "log" in name])
def test_losses_that_are_not_positive_are_refused(name: str, bad: float) -> None:
    losses, jacobian = problem("random", 3)
    losses[1] = bad
    with pytest.raises(InputError, match=rf"^{plain(name)} needs positive losses, but task 1 has [^\n]*$"):
        make(name, 3).combine(losses, jacobian)


@pytest.mark.parametrize("name", [name for name in NAMES if not (method(name).positive_losses or "log" in name)])
def test_negative_losses_are_taken(name: str) -> None:
    losses, jacobian = problem("random", 3)
    assert updates(make(name, 3), -losses, jacobian).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_are_refused(name: str) -> None:
    losses, jacobian = problem("random", 3)
    with pytest.raises(InputError, match=rf"^{plain(name)} was made for 3 tasks[^\n]*$"):
        make(name, 3).combine(losses[1:], jacobian)
    if method(name).needs == "gramian":
        for gramian in (None, jacobian):
            with pytest.raises(InputError, match=rf"^{plain(name)} needs a Gramian of shape \(3, 3\), got [^\n]*$"):
                make(name, 3).weights(losses, gramian)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name in NAMES if method(name).needs != "jacobian"])
def test_rescaled_weights_sum_to_the_number_of_tasks(name: str, family: str) -> None:
    for t in solvable(name, family):
        losses, jacobian = problem(family, t)
        for dtype in (torch.float64, torch.float32):
            gramian = (jacobian @ jacobian.T).to(dtype)
            plain = make(name, t).weights(losses.to(dtype), gramian)
            weights = make(name, t, rescale=True).weights(losses.to(dtype), gramian)
            total = weights.abs().sum().item()
            assert total == pytest.approx(t if plain.any() else 0, rel=1e-5), (t, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_flows(name: str) -> None:
    losses, jacobian = problem("random", 3)
    losses.requires_grad_()
    jacobian.requires_grad_()
    assert not make(name, 3).combine(losses, jacobian).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_options_are_declared_with_a_default_that_they_allow(name: str) -> None:
    for option, parameter in method(name).options().items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.annotation is not parameter.empty, option
        ranges.check(option, parameter.default, parameter.annotation)


@pytest.mark.parametrize("value", [float("nan"), True, "half"])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_not_words(name: str, value: Any) -> None:
    for option, parameter in method(name).options().items():
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            with pytest.raises(InputError, match=rf"^{option} of {plain(name)}: expected [^\n]*, got {value!r}$"):
                combiners.make(plain(name), 3, **{option: value})


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"^unknown option of {plain(name)} 'recale': did you mean 'rescale'\?$"):
        make(name, 3, recale=True)
