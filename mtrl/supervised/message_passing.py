"""The message-passing network that the multi-task papers train on QM9 (Gilmer et al., 2017)."""

import torch
from torch import Tensor, nn

ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
"""Atomic numbers."""
_RADII = (0.31, 0.76, 0.71, 0.66, 0.57)  # covalent, in Angstrom (Cordero et al., 2008)
_STRETCH = 1.2  # atoms are bonded if they are nearer than their radii times this
_HIDDEN = 128
_STEPS = 3
_GROUPS = 4  # of a batch's molecules, by size
_NEVER = 1e9  # more than a hidden unit can be


class MessagePassing(nn.Module):
    """From molecules to vectors: three rounds of messages between all atoms, then attention over the atoms.

    It is the example network of ``torch_geometric`` (``NNConv``, ``GRU``, ``Set2Set``) that Navon et al. (2022) and
    their successors train, for molecules that are padded to one size. Its layers give the same numbers, without a
    matrix of ``width`` x ``width`` for every pair of atoms: the matrix of a pair is a sum of 128, weighed by its hidden
    units, so that each atom is multiplied by these 128 first. Atoms are described by element, atomic number and bonded
    hydrogens, pairs by distance and bond; the papers have bond orders, hybridisation and aromaticity besides, which
    RDKit derives.

    Inputs are ``[N, atoms, 4]``: atomic numbers, 0 where there is no atom, and coordinates in Angstrom. Outputs are
    ``[N, width]``.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.lift = nn.Linear(len(ELEMENTS) + 2, width)
        self.pair = nn.Linear(2, _HIDDEN)
        self.matrices = nn.Linear(_HIDDEN, width * width)
        self.root = nn.Linear(width, width)
        self.update = nn.GRUCell(width, width)
        self.attention = nn.LSTMCell(2 * width, width)
        self.last = nn.Linear(2 * width, width)
        self.numbers: Tensor = nn.Buffer(torch.tensor(list(ELEMENTS.values())), persistent=False)
        self.radii: Tensor = nn.Buffer(torch.tensor(_RADII), persistent=False)

    def forward(self, molecules: Tensor) -> Tensor:
        """The molecules' vectors."""
        order = (molecules[..., 0] > 0).sum(1).argsort(stable=True)
        vectors = torch.cat([self.vectors(alike) for alike in molecules[order].chunk(_GROUPS)])
        return vectors[order.argsort()]

    def vectors(self, molecules: Tensor) -> Tensor:
        """The vectors of molecules that are best of much the same size: all are padded to that of the largest."""
        there = molecules[..., 0] > 0
        molecules = molecules[:, : int(there.sum(1).max())]
        there = there[:, : molecules.shape[1]]
        atoms, pairs = self.described(molecules, there)
        apart = (
            there[:, :, None] & there[:, None, :] & ~torch.eye(there.shape[1], dtype=torch.bool, device=there.device)
        )
        x = hidden = torch.relu(self.lift(atoms))
        weights = self.weights(pairs, apart, x.dtype)
        for _ in range(_STEPS):
            messages = torch.relu(self.messages(x, weights, apart))
            hidden = self.update(messages.flatten(0, 1), hidden.flatten(0, 1)).view(x.shape)
            x = hidden
        return torch.relu(self.last(self.pooled(x, there)))

    def described(self, molecules: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of atoms, ``[N, n, 7]``, and of pairs of them, ``[N, n, n, 2]``."""
        number, places = molecules[..., 0], molecules[..., 1:]
        kind = (number[..., None] == self.numbers).to(places)
        distance = (places[:, :, None] - places[:, None, :]).square().sum(-1).sqrt()
        radius = kind @ self.radii.to(places)
        bonded = (distance < _STRETCH * (radius[:, :, None] + radius[:, None, :])).to(places)
        bonded = bonded * (1 - torch.eye(number.shape[1], device=places.device, dtype=places.dtype))
        bonded = bonded * there[:, :, None] * there[:, None, :]
        hydrogens = bonded @ kind[..., :1]
        return torch.cat([kind, number[..., None], hydrogens], -1), torch.stack([distance, bonded], -1)

    def weights(self, pairs: Tensor, apart: Tensor, dtype: torch.dtype) -> Tensor:
        """The pairs' hidden units ``[N, n, n, 128]``, 0 where there is no pair, from distances as they are.

        The bias, and what makes units 0, are columns beside the two of the pairs: a product of four columns has a
        gradient that libraries compute ten times as fast as that of two.
        """
        beside = torch.stack([torch.ones_like(apart), ~apart], -1).to(pairs)
        bias = self.pair.bias
        rows = torch.cat([self.pair.weight.T, bias[None], bias.new_full((1, _HIDDEN), -_NEVER)])
        with torch.autocast(pairs.device.type, enabled=False):
            units = torch.cat([pairs, beside], -1) @ rows
        return torch.relu(units.to(dtype))

    def messages(self, x: Tensor, weights: Tensor, apart: Tensor) -> Tensor:
        """Each atom's mean message from the others and its own, ``[N, n, width]``; ``NNConv`` in other words."""
        count, atoms, width = x.shape
        bases = self.matrices.weight.view(width, width, _HIDDEN)
        moved = torch.einsum("njc,cok->njko", x, bases).reshape(count, atoms * _HIDDEN, width)
        constant = (apart.to(x) @ x) @ self.matrices.bias.view(width, width)
        summed = weights.reshape(count, atoms, atoms * _HIDDEN) @ moved + constant
        own: Tensor = self.root(x)
        return summed / apart.sum(2, keepdim=True).clamp(min=1) + own

    def pooled(self, x: Tensor, there: Tensor) -> Tensor:
        """The atoms' sum under attention that looks at them three times, ``[N, 2 width]``; ``Set2Set``."""
        count, _, width = x.shape
        found = x.new_zeros(count, 2 * width)
        query, cell = x.new_zeros(count, width), x.new_zeros(count, width)
        for _ in range(_STEPS):
            query, cell = self.attention(found, (query, cell))
            scores = (x @ query[..., None]).squeeze(-1).masked_fill(~there, float("-inf"))
            found = torch.cat([query, (scores.softmax(1)[:, None] @ x).squeeze(1)], 1)
        return found
