"""Families of Jacobians that every combiner has to live with: float64, shape ``[T, P]``, from a seed."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

P = 64
TASKS = (1, 2, 3, 10, 50)


def normal(*shape: int, generator: Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def aligned(t: int, g: Generator) -> Tensor:
    return normal(P, generator=g) + 0.3 * normal(t, P, generator=g)


def conflicting(t: int, g: Generator) -> Tensor:
    """Two camps that pull against each other."""
    side = torch.where(torch.arange(t) % 2 == 0, 1.0, -1.0)[:, None]
    return side * normal(P, generator=g) + 0.3 * normal(t, P, generator=g)


def stationary(t: int, g: Generator) -> Tensor:
    """A convex combination of the rows is zero."""
    jacobian = normal(t, P, generator=g)
    share = torch.rand(t, generator=g, dtype=torch.float64) + 0.5
    jacobian[-1] = -(share[:-1] @ jacobian[:-1]) / share[-1]
    return jacobian


def rank_deficient(t: int, g: Generator) -> Tensor:
    rank = max(t // 2, 1)
    return normal(t, rank, generator=g) @ normal(rank, P, generator=g)


def zero_rows(t: int, g: Generator) -> Tensor:
    """A third of the tasks, at least one, has no gradient."""
    jacobian = normal(t, P, generator=g)
    jacobian[: max(t // 3, 1)] = 0
    return jacobian


def duplicates(t: int, g: Generator) -> Tensor:
    """Every gradient belongs to two tasks."""
    return normal((t + 1) // 2, P, generator=g).repeat(2, 1)[:t]


def parallel(t: int, g: Generator) -> Tensor:
    """Every direction belongs to two tasks, whose gradients differ in length."""
    return duplicates(t, g) * torch.logspace(-1, 1, t, dtype=torch.float64)[torch.randperm(t, generator=g), None]


def opposite(t: int, g: Generator) -> Tensor:
    """The first two gradients point away from each other."""
    jacobian = normal(t, P, generator=g)
    jacobian[1:2] = -2 * jacobian[:1]
    return jacobian


def scales(t: int, g: Generator) -> Tensor:
    """Norms spread over 1e-6 to 1e6."""
    order = torch.randperm(t, generator=g)
    return normal(t, P, generator=g) * torch.logspace(-6, 6, t, dtype=torch.float64)[order, None]


FAMILIES: dict[str, Callable[[int, Generator], Tensor]] = {
    "random": lambda t, g: normal(t, P, generator=g),
    "aligned": aligned,
    "conflicting": conflicting,
    "stationary": stationary,
    "rank_deficient": rank_deficient,
    "zero_rows": zero_rows,
    "zeros": lambda t, g: torch.zeros(t, P, dtype=torch.float64),
    "duplicates": duplicates,
    "parallel": parallel,
    "opposite": opposite,
    "scales": scales,
    "tiny": lambda t, g: 1e-6 * normal(t, P, generator=g),
    "huge": lambda t, g: 1e6 * normal(t, P, generator=g),
}


def problem(family: str, tasks: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Positive losses ``[T]`` and a Jacobian ``[T, P]``."""
    generator = Generator().manual_seed(seed)
    jacobian = FAMILIES[family](tasks, generator)
    return normal(tasks, generator=generator).exp(), jacobian
