"""Steps for one group of tasks after the other (Pascal et al.): what such methods share, whatever is trained."""

from collections.abc import Sequence

import torch

from mtrl.errors import InputError


def random_groups(names: Sequence[str], count: int | None, seed: int) -> list[list[str]]:
    """Distributes tasks at random to groups of equal size, give or take one (Pascal et al., section 3.4).

    Without a ``count``, 1 to the number of tasks (else an `InputError`), there is one group per task.
    """
    if count is None:
        return [[name] for name in names]
    if not 1 <= count <= len(names):
        raise InputError(f"method.groups: expected 1 to {len(names)} for {len(names)} tasks, got {count}")
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return [[names[i] for i in order[group::count]] for group in range(count)]


def refuse_combiner(method: str, combiner: str) -> None:
    """Raises `InputError` where a method that combines no gradients is given a combiner, which unitary stands for."""
    if combiner != "unitary":
        raise InputError(f"method={method} does without a combiner: leave out combiner={combiner}")
