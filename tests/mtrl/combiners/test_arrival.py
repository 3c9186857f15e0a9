"""Where training arrives: at Pareto-stationary points, and near them, every method goes on."""

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl import combiners, gradients

BALANCED: list[tuple[str, dict[str, Any]]] = [
    ("nash_mtl", {}),
    ("nash_mtl", {"max_norm": math.inf}),
    ("fairgrad", {}),
    ("fairgrad", {"alpha": 0.5}),
    ("fairgrad", {"alpha": 5.0, "max_norm": math.inf}),
]


def vanishing(kind: str, tasks: int, seed: int = 0) -> Tensor:
    """Gradients of which a convex combination is zero."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(tasks, 40))
    if kind == "opposite":  # two of them; the others are not in the way
        rows[1] = -3 * rows[0]
    elif kind == "pairs":
        rows[1::2] = -rows[: 2 * (tasks // 2) : 2]
    elif kind == "sum":
        rows[-1] = -rows[:-1].sum(0)
    else:
        rows = rows[:, :1] * np.sign(rng.normal(size=40))
        rows[:2] = [[1.0] * 40, [-1.0] * 40]
    return torch.from_numpy(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["opposite", "pairs", "sum", "line"])
@pytest.mark.parametrize(("name", "options"), BALANCED)
def test_the_update_is_zero_where_there_is_no_solution(
    name: str, options: dict[str, Any], kind: str, dtype: torch.dtype
) -> None:
    for tasks in (2, 3, 10, 50):
        for scale in (1e-6, 1.0, 1e6):
            jacobian = (vanishing(kind, tasks) * scale).to(dtype)
            combiner = combiners.make(name, tasks, **options)
            assert not combiner.combine(torch.ones(tasks, dtype=dtype), jacobian).any(), (tasks, scale)
            assert combiner.stationary


@pytest.mark.parametrize(("name", "options"), BALANCED)
def test_training_goes_on_after_it_has_arrived(
    name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and what comes after is solved as if nothing had been."""
    every = {"update_every": 3} if name == "nash_mtl" else {}
    combiner = combiners.make(name, 3, **options, **every)
    ones = torch.ones(3, dtype=torch.float64)
    arrived, free = vanishing("sum", 3), torch.eye(3, 40, dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            combiner.combine(ones, arrived.clone())
            assert combiner.stationary
    assert [record.getMessage().startswith(f"warning: {name} makes no update") for record in caplog.records] == [True]
    expected = combiners.make(name, 3, **options).combine(ones, free.clone())
    torch.testing.assert_close(combiner.combine(ones, free.clone()), expected)
    assert not combiner.stationary


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [name for name in combiners.names() if combiners.get(name).needs != "losses"])
def test_near_arrival_no_run_ends(name: str, dtype: torch.dtype) -> None:
    for tasks in (2, 3, 5, 10):
        for exponent in np.arange(0.0, 17.0, 1.0 if tasks < 10 else 2.0):
            for kind in ("opposite", "pairs", "sum"):
                noise = torch.from_numpy(np.random.default_rng(1).normal(size=(tasks, 40)))
                jacobian = (vanishing(kind, tasks) + 10**-exponent * noise).to(dtype)
                found = combiners.make(name, tasks).combine(torch.ones(tasks, dtype=dtype), jacobian)
                assert found.isfinite().all(), (tasks, exponent, kind)


@pytest.mark.parametrize("c", [0.4, 0.9, 3.0])
def test_cagrad_near_arrival_is_in_its_ball_and_as_good_as_the_mean(c: float) -> None:
    """No level between two neighbouring numbers reaches the radius: the one within is taken."""
    for tasks in (2, 3, 5):
        for exponent in np.arange(5.0, 8.01, 0.1):
            noise = torch.from_numpy(np.random.default_rng(2).normal(size=(tasks, 40)))
            jacobian = vanishing("opposite", tasks, 1) + 10**-exponent * noise
            mean = jacobian.mean(0)
            combiner = combiners.make("cagrad", tasks, c=c, shrink="none")
            direction = combiner.combine(torch.ones(tasks, dtype=torch.float64), jacobian.clone())
            assert (direction - mean).norm() <= (1 + 1e-6) * c * mean.norm()
            assert (jacobian @ direction).min() >= (jacobian @ mean).min() - 1e-12


STARTS = [(-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)]


def toy(point: Tensor) -> Tensor:
    """The two objectives of Liu et al., 2021, appendix B, as Navon et al., 2022 scale them."""
    x, y = point
    above, below = (y / 2).tanh().clamp_min(0), (-y / 2).tanh().clamp_min(0)
    logs = ((-x - 7) / 2 - (-y).tanh()).abs(), ((-x + 3) / 2 + (-y).tanh() + 2).abs()
    losses = [
        above * (inner.clamp_min(5e-6).log() + 6) + below * (((centre - x).square() + (y + 8).square() / 10) / 10 - 20)
        for inner, centre in zip(logs, (7, -7), strict=True)
    ]
    return torch.stack([0.1 * losses[0], losses[1]])


@pytest.mark.parametrize(
    ("dtype", "steps", "starts"), [(torch.float32, 240, STARTS), (torch.float64, 400, STARTS[3:4])]
)
@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad"])
def test_the_papers_toy_is_run_to_its_front(
    name: str, dtype: torch.dtype, steps: int, starts: list[tuple[float, float]]
) -> None:
    """From all starts, with Adam: training meets points of the front, and ends where the gradients are opposite."""
    for start in starts:
        point = torch.tensor(start, dtype=dtype, requires_grad=True)
        combiner, adam, arrivals = combiners.make(name, 2), torch.optim.Adam([point]), 0
        for step in range(steps):
            adam.param_groups[0]["lr"] = 0.3 * 0.5 ** max(0.0, 24 * step / steps - 12)
            adam.zero_grad()
            gradients.backward(toy(point), combiner, shared=[point])
            arrivals += combiner.stationary
            adam.step()
        first, second = (torch.autograd.grad(loss, point, retain_graph=True)[0] for loss in toy(point))
        assert arrivals, start
        assert torch.nn.functional.cosine_similarity(first, second, dim=0).item() < -0.999, start
