"""What a critic's outputs mean, and how they are learned: one number per action, or a distribution of returns.

Functions take one sample in their last dimensions and any number of samples before them. Symbols are the papers':
``r`` a reward, ``gamma`` the discount (0 where the episode ended for good), ``z`` atoms, ``p`` their probabilities.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn


def soft_target(r: Tensor, gamma: Tensor, v: Tensor, bonus: Tensor) -> Tensor:
    """``r + gamma (v - bonus)``, all ``[...]``, where ``bonus`` is ``alpha log pi(a'|s')`` (Haarnoja et al., 2018)."""
    return r + gamma * (v - bonus)


def categorical_projection(z_target: Tensor, p: Tensor, z: Tensor) -> Tensor:
    """Moves probabilities of arbitrary atoms to the nearest two fixed ones (Bellemare et al., 2017, equation 7).

    Args:
        z_target: where the probabilities are, ``[..., N]``; beyond the fixed atoms they count at the outermost.
        p: how large they are, ``[..., N]``.
        z: the fixed atoms ``[N]``, rising in equal steps.

    Returns:
        The probabilities of the fixed atoms, ``[..., N]``; their sum is that of ``p``, and so is their mean value
        where no target lies beyond the outermost atoms.
    """
    last = len(z) - 1
    b = ((z_target - z[0]) / (z[-1] - z[0]) * last).clamp(0, last)
    lower = b.floor()
    above = p * (b - lower)
    lower = lower.long()
    m = torch.zeros_like(p).scatter_add_(-1, lower, p - above)
    return m.scatter_add_(-1, (lower + 1).clamp(max=last), above)


def categorical_target(r: Tensor, gamma: Tensor, p: Tensor, bonus: Tensor, z: Tensor) -> Tensor:
    """The projected distribution of ``r + gamma (z - bonus)``, ``[..., N]`` like ``p``; the others are ``[...]``."""
    z_target = torch.addcmul((r - gamma * bonus).unsqueeze(-1), gamma.unsqueeze(-1), z)
    return categorical_projection(z_target, p, z)


def cross_entropy(m: Tensor, logits: Tensor) -> Tensor:
    """``-sum_i m_i log p_i``: ``[..., N]`` twice to ``[...]``."""
    return -(m * logits.log_softmax(-1)).sum(-1)


class Values(nn.Module):
    """What the outputs ``[E, ..., outputs]`` of E critics say.

    Args:
        pessimistic: whether E critics are worth the least of theirs, or their mean.
    """

    outputs: int

    def __init__(self, *, pessimistic: bool) -> None:
        super().__init__()
        self.pessimistic = pessimistic

    def joint_value(self, outputs: Tensor) -> Tensor:
        """``[E, ..., outputs]`` to action values ``[...]``."""
        values = self.value(outputs)
        return values.amin(0) if self.pessimistic else values.mean(0)

    @abstractmethod
    def value(self, outputs: Tensor) -> Tensor:
        """``[..., outputs]`` to action values ``[...]``."""

    @abstractmethod
    def target(self, r: Tensor, gamma: Tensor, next_outputs: Tensor, bonus: Tensor) -> Tensor:
        """What the outputs should become: ``[...]`` thrice and ``[E, ..., outputs]`` to ``[..., outputs]``."""

    @abstractmethod
    def mean_target(self, target: Tensor) -> Tensor:
        """The mean action value of targets."""

    @abstractmethod
    def error(self, outputs: Tensor, target: Tensor) -> Tensor:
        """How far outputs ``[E, ..., outputs]`` are from a target: ``[E, ...]``, not negative."""


class ScalarValues(Values):
    """One number, learned by squared errors."""

    outputs = 1

    def value(self, outputs: Tensor) -> Tensor:
        """See `Values`."""
        return outputs.squeeze(-1)

    def target(self, r: Tensor, gamma: Tensor, next_outputs: Tensor, bonus: Tensor) -> Tensor:
        """See `Values`."""
        return soft_target(r, gamma, self.joint_value(next_outputs), bonus)

    def mean_target(self, target: Tensor) -> Tensor:
        """See `Values`."""
        return target.mean()

    def error(self, outputs: Tensor, target: Tensor) -> Tensor:
        """See `Values`."""
        return (self.value(outputs) - target).square()


class CategoricalValues(Values):
    """Logits of equally spaced atoms, learned by cross-entropy (C51: Bellemare et al., 2017).

    Args:
        limit: the outermost atoms are its negative and itself.
        atoms: N.
        pessimistic: see `Values`; the least distribution is the one with the least mean.
    """

    z: Tensor

    def __init__(self, limit: float, atoms: int, *, pessimistic: bool) -> None:
        super().__init__(pessimistic=pessimistic)
        self.outputs = atoms
        self.register_buffer("z", torch.linspace(-limit, limit, atoms), persistent=False)

    def value(self, outputs: Tensor) -> Tensor:
        """See `Values`."""
        return (outputs.softmax(-1) * self.z).sum(-1)

    def target(self, r: Tensor, gamma: Tensor, next_outputs: Tensor, bonus: Tensor) -> Tensor:
        """See `Values`."""
        p = next_outputs.softmax(-1)
        if self.pessimistic:
            least = (p * self.z).sum(-1).argmin(0, keepdim=True).unsqueeze(-1).expand_as(p[:1])
            return categorical_target(r, gamma, p.gather(0, least)[0], bonus, self.z)
        return categorical_target(r, gamma, p.mean(0), bonus, self.z)

    def mean_target(self, target: Tensor) -> Tensor:
        """See `Values`."""
        return (target * self.z).sum(-1).mean()

    def error(self, outputs: Tensor, target: Tensor) -> Tensor:
        """See `Values`."""
        return cross_entropy(target, outputs)
