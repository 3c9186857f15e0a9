"""Can linear scalarization explore the whole Pareto front? The criterion of Hu et al. (2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import eq

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

    Always if the width ``rank`` (at least 1) is at least the rank of the Gramian G ``[k, k]``: one W is then best for
    all. For width 1 if and only if G, for width k-1 if and only if the inverse of G is doubly non-negative after
    negating some targets. Between these no criterion is known.

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
    """The indices to negate for a symmetric matrix to have no negative entry, and a cycle that forbids it: one is None.

    A walk over the graph of non-zero entries gives every index the sign that its neighbours demand. Where two
    demands differ, the two ways there make a cycle whose product of signs is negative. The diagonal is positive.
    """
    relative = cosines(matrix)
    signs = np.where(np.abs(relative) > TOLERANCE, np.sign(relative), 0).astype(int).tolist()
    found: dict[int, int] = {}
    ways: dict[int, tuple[int, ...]] = {}  # from where the walk started
    for start in range(len(signs)):
        queue = [] if start in found else [start]
        found.setdefault(start, 1)
        ways.setdefault(start, (start,))
        for i in queue:
            for j, sign in enumerate(signs[i]):
                if sign and j not in found:
                    found[j], ways[j] = found[i] * sign, (*ways[i], j)
                    queue.append(j)
                elif sign and found[j] != found[i] * sign:
                    parting = sum(map(eq, ways[i], ways[j]))
                    return None, (*reversed(ways[i][parting - 1 :]), *ways[j][parting:])
    return tuple(i for i in range(len(signs)) if found[i] < 0), None


def cosines(matrix: Array) -> Array:
    """A Gramian ``[k, k]`` of vectors scaled to length 1."""
    scale = np.sqrt(np.diagonal(matrix))
    return np.asarray(matrix / np.outer(scale, scale), dtype=np.float64)
