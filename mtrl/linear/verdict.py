"""Can linear scalarization explore the whole Pareto front? The criterion of Hu et al. (2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mtrl.errors import InputError
from mtrl.linear.data import TOLERANCE, Array


@dataclass(frozen=True)
class Verdict:
    """Whether linear scalarization can fully explore the Pareto front.

    Attributes:
        fully: yes, no, or None where no criterion is known.
        reason: one line.
        flips: the targets (from 0) to negate for all inner products to be non-negative, where that is the criterion.
        cycle: targets (from 0) along which the product of the signs is negative, where the criterion fails.
        steps: the cosines from each target of the cycle to the next.
    """

    fully: bool | None
    reason: str
    flips: tuple[int, ...] | None = None
    cycle: tuple[int, ...] = ()
    steps: tuple[float, ...] = ()

    def lines(self, targets: Sequence[int]) -> list[str]:
        """The verdict in words, with its evidence; ``targets`` are as the user numbers them."""
        if self.fully is None:
            return [f"no criterion is known for whether linear scalarization explores the Pareto front: {self.reason}"]
        can = "can" if self.fully else "cannot"
        lines = [f"linear scalarization {can} fully explore the Pareto front: {self.reason}"]
        if self.flips is not None:
            lines.append(f"sign flips: {', '.join(str(targets[i]) for i in self.flips) or 'none'}")
        if self.cycle:
            way = " ".join(f"{targets[i]} -({step:+.3f})-" for i, step in zip(self.cycle, self.steps, strict=True))
            lines.append(f"offending cycle: {way} {targets[self.cycle[0]]} (the product of its signs is negative)")
        return lines


def verdict(gramian: Array, rank: int) -> Verdict:
    """Whether linear scalarization can fully explore the Pareto front (Hu et al., 2023).

    Always if the width is at least the rank of G: one W is then best for all. For width 1 if and only if G,
    for width k-1 if and only if the inverse of G is doubly non-negative after negating some targets. Between
    these no criterion is known.

    Args:
        gramian: ``[k, k]``, G.
        rank: the width q of the shared layer.

    Raises:
        InputError: if ``rank`` is less than 1.
    """
    if rank < 1:
        raise InputError(f"rank: expected an integer of at least 1, got {rank}")
    k = len(gramian)
    independent = int(np.linalg.matrix_rank(cosines(gramian), hermitian=True))
    if rank >= independent:
        which = f"{k} targets" if independent == k else f"{independent} linearly independent targets among {k}"
        return Verdict(True, f"the shared layer's width {rank} is enough for {which}: one model is best for all")
    if rank == 1:
        name, tested = "G", gramian
    elif rank == k - 1:
        name, tested = "the inverse of G", np.linalg.inv(gramian).astype(np.float64)
    else:
        return Verdict(None, f"a width between 1 and k-1 = {k - 1}")
    flips, cycle = sign_flips(tested)
    if cycle is None:
        return Verdict(True, f"{name} is doubly non-negative after the sign flips", flips=flips)
    steps = tuple(float(cosines(tested)[i, j]) for i, j in pairwise((*cycle, cycle[0])))
    return Verdict(False, f"{name} is not doubly non-negative for any sign flips", cycle=cycle, steps=steps)


def sign_flips(matrix: Array) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The indices to negate for a symmetric matrix to have no negative entry, or a cycle that forbids it.

    A walk over the graph of non-zero entries gives every index the sign that its neighbours demand. Where two
    demands differ, the two ways there make a cycle whose product of signs is negative.

    Args:
        matrix: ``[k, k]``, with a positive diagonal.

    Returns:
        The flips, or None; the cycle, or None.
    """
    relative = cosines(matrix)
    signs = np.where(np.abs(relative) > TOLERANCE, np.sign(relative), 0).astype(int)
    found: dict[int, int] = {}
    parent: dict[int, int] = {}
    for start in range(len(signs)):
        if start in found:
            continue
        found[start] = 1
        queue = [start]
        for i in queue:
            for j in np.flatnonzero(signs[i]).tolist():
                if j == i:
                    continue
                demanded = found[i] * int(signs[i, j])
                if j not in found:
                    found[j], parent[j] = demanded, i
                    queue.append(j)
                elif found[j] != demanded:
                    return None, _cycle(parent, i, j)
    return tuple(i for i in range(len(signs)) if found[i] < 0), None


def cosines(matrix: Array) -> Array:
    """A Gramian ``[k, k]`` of vectors scaled to length 1."""
    scale = np.sqrt(np.diagonal(matrix))
    return np.asarray(matrix / np.outer(scale, scale), dtype=np.float64)


def _cycle(parent: dict[int, int], i: int, j: int) -> tuple[int, ...]:
    def path(node: int) -> list[int]:
        nodes = [node]
        while nodes[-1] in parent:
            nodes.append(parent[nodes[-1]])
        return nodes

    up, down = path(i), path(j)
    meeting = next(node for node in up if node in down)
    return (*up[: up.index(meeting) + 1], *reversed(down[: down.index(meeting)]))
