"""The fully shared networks of multi-task SAC: a tanh-Gaussian actor, and any number of critics.

Inputs carry tasks in the first dimension, ``[T, ...]``; which task an observation is of, the networks append to it
themselves: as a one-hot vector, or as a row of a table that the critics learn. Inputs of some of the tasks come with
their numbers, ``tasks``.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.values import Values
from mtrl.gradients.layers import EnsembleLayerNorm, EnsembleLinear, TaskRows
from mtrl.rl.protocols import Floats, Policy


def rows_of(by_task: Tensor, tasks: Tensor | None) -> Tensor:
    """The rows ``[N, ...]`` of tasks with these numbers, ``[N]``, of those of all, ``[T, ...]``; None is all."""
    return by_task if tasks is None else by_task[tasks]


def one_hot(num_tasks: int) -> Tensor | None:
    """The codes of tasks that are told apart by their numbers, ``[T, T]``; of 0 tasks, none."""
    return torch.eye(num_tasks) if num_tasks else None


def with_codes(codes: Tensor | None, tasks: Tensor | None, observations: Tensor, *others: Tensor) -> Tensor:
    """Appends each task's code and what else there is: ``[T, ..., O]`` and ``[T, ..., N]`` to ``[T, ..., O + C + N]``.

    ``codes``, ``[T, C]``, are of all tasks; where the first dimension of the rest is not, ``tasks`` are its numbers.
    """
    parts = [observations, *others]
    if codes is not None:
        own = rows_of(codes, tasks)
        shape = (len(own),) + (1,) * (observations.dim() - 2) + (-1,)
        parts.insert(1, own.view(shape).expand(*observations.shape[:-1], -1))
    return torch.cat(parts, -1) if len(parts) > 1 else observations


Linear = Callable[[int, int], nn.Module]
Norm = Callable[[int], nn.Module] | None


def _layer(size: int, width: int, linear: Linear, norm: Norm) -> list[nn.Module]:
    return [linear(size, width), *([norm(width)] if norm else [])]


def mlp(sizes: Sequence[int], linear: Linear, norm: Norm) -> nn.Sequential:
    """Hidden layers with ReLU, normalised before it if so asked, and a linear output."""
    layers: list[nn.Module] = []
    for size, width in pairwise(sizes[:-1]):
        layers += [*_layer(size, width, linear, norm), nn.ReLU()]
    return nn.Sequential(*layers, linear(sizes[-2], sizes[-1]))


class ResidualBlock(nn.Module):
    """``x + f(x)``, where ``f`` is two linear layers with ReLU between (BroNet: Nauman et al., 2024, figure 2)."""

    def __init__(self, width: int, linear: Linear, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_layer(width, width, linear, norm), nn.ReLU(), *_layer(width, width, linear, norm))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., width]`` to the same shape."""
        y: Tensor = self.layers(x)
        return x + y


def residual(sizes: Sequence[int], linear: Linear, norm: Norm) -> nn.Sequential:
    """The first hidden layer of `mlp`, one `ResidualBlock` for each further one, and a linear output."""
    width = sizes[1]
    blocks = [ResidualBlock(width, linear, norm) for _ in sizes[2:-1]]
    return nn.Sequential(*_layer(sizes[0], width, linear, norm), nn.ReLU(), *blocks, linear(width, sizes[-1]))


BLOCKS: dict[str, tuple[Callable[..., nn.Sequential], Callable[[Tensor], object]]] = {
    "mlp": (mlp, nn.init.xavier_uniform_),
    "residual": (residual, partial(nn.init.orthogonal_, gain=2**0.5)),
}
"""How hidden layers are put together, and how all weights start."""


class Actor(nn.Module):
    """A Gaussian policy squashed by tanh (Haarnoja et al., 2018, appendix C).

    The log standard deviation is clamped to its range, which leaves it as it is within and has no gradient beyond. The
    code of Kurin et al. (2022) maps the network's output ``y`` onto the range instead, by
    ``log_std_min + (log_std_max - log_std_min) (tanh(y) + 1) / 2``, so that ``y = 0`` is its middle (a deviation of
    e^-9 for -20 to 2, where it is 1 here).

    Args:
        observation_size: the size O of an observation.
        action_size: the size A of an action in ``[-1, 1]``.
        hidden_sizes: the width of each hidden layer.
        num_tasks: how many tasks to tell apart; 0 tells none.
        embedding_size: of the codes that tell them apart, which are not learned here but given (see `codes`); 0 is a
            one-hot vector.
        layer_norm: normalise after each hidden linear layer.
        block: which of `BLOCKS` the hidden layers are.
        log_std_min: lower bound of the log standard deviation before squashing.
        log_std_max: its upper bound.

    Attributes:
        codes: ``[T, embedding_size]``, the tasks' codes where they are not one-hot; part of the state.
    """

    codes: Tensor
    _one_hot: Tensor | None

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int],
        *,
        num_tasks: int = 0,
        embedding_size: int = 0,
        layer_norm: bool = False,
        block: str = "mlp",
        log_std_min: float = -20.0,
        log_std_max: float = 2.0,
    ) -> None:
        super().__init__()
        self.action_size, self.embedding_size = action_size, embedding_size
        sizes = [observation_size + (embedding_size or num_tasks), *hidden_sizes, 2 * action_size]
        if embedding_size:
            self.register_buffer("codes", torch.zeros(num_tasks, embedding_size))
        self.register_buffer("_one_hot", one_hot(num_tasks), persistent=False)
        build, initialize = BLOCKS[block]
        self.layers = build(sizes, nn.Linear, nn.LayerNorm if layer_norm else None)
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        for layer in self.layers.modules():
            if isinstance(layer, nn.Linear):
                initialize(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, observations: Tensor, tasks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps ``[T, ..., O]`` to the mean and the log standard deviation before squashing, ``[T, ..., A]`` each."""
        codes = self.codes if self.embedding_size else self._one_hot
        outputs = self.layers(with_codes(codes, tasks, observations))
        mean, log_std = outputs.to(observations.dtype).chunk(2, -1)
        return mean, log_std.clamp(self.log_std_min, self.log_std_max)

    def sample(
        self, observations: Tensor, generator: torch.Generator, tasks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Samples actions ``[..., A]`` (reparametrised) and their log-probabilities ``[...]``."""
        mean, log_std = self(observations, tasks)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        raw = mean + log_std.exp() * noise
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(u)^2), written so that it neither overflows nor loses the tails
        log_prob = log_prob - 2 * (math.log(2) - raw - functional.softplus(-2 * raw))
        return raw.tanh(), log_prob.sum(-1)

    def mode(self, observations: Tensor) -> Tensor:
        """The deterministic action used in evaluation, ``tanh(mean)``."""
        mean: Tensor = self(observations)[0]
        return mean.tanh()

    def act_randomly(self, num_tasks: int, generator: torch.Generator) -> Floats:
        """One uniform action in ``[-1, 1]`` per task, ``[T, A]``."""
        uniform = torch.rand((num_tasks, self.action_size), generator=generator, device=generator.device)
        actions: Floats = (uniform * 2 - 1).cpu().numpy()
        return actions

    @torch.no_grad()
    def decide(self, observations: Floats) -> Floats:
        """The deterministic actions of a network on the CPU, ``[T, O]`` to ``[T, A]``."""
        actions: Floats = self.mode(torch.as_tensor(observations)).numpy()
        return actions

    def policy(self, state: dict[str, Tensor] | None = None) -> Policy:
        """The deterministic policy: `decide` of a copy on the CPU, which learning does not change.

        Args:
            state: this network's state at the moment that is meant; None is now.
        """
        frozen = copy.deepcopy(self).cpu()
        if state is not None:
            frozen.load_state_dict(state)
        return frozen.decide


class Critics(nn.Module):
    """E independent critics as one batched network; other arguments are as the `Actor`'s.

    Args:
        values: what the outputs mean.
        size: E.
        embedding_size: of the codes that tell tasks apart, which all E learn together (BRC: Nauman et al., 2025): a row
            of a table, divided by its length; 0 is a one-hot vector.
    """

    _one_hot: Tensor | None

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int],
        values: Values,
        *,
        num_tasks: int = 0,
        embedding_size: int = 0,
        size: int = 2,
        layer_norm: bool = False,
        block: str = "mlp",
    ) -> None:
        super().__init__()
        self.num_tasks, self.values, self.size = num_tasks, values, size
        self.rows = TaskRows(num_tasks, embedding_size) if embedding_size else None
        self.register_buffer("_one_hot", one_hot(num_tasks), persistent=False)
        sizes = [observation_size + (embedding_size or num_tasks) + action_size, *hidden_sizes, values.outputs]
        build, initialize = BLOCKS[block]
        norm = partial(EnsembleLayerNorm, size) if layer_norm else None
        self.layers = build(sizes, partial(EnsembleLinear, size), norm)
        for layer in self.layers.modules():
            if isinstance(layer, EnsembleLinear):
                for member in layer.weight.data:
                    initialize(member)

    def forward(self, observations: Tensor, actions: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Maps ``[T, B, O]`` and ``[T, B, A]`` to what `values` reads, ``[E, T, B, outputs]``."""
        codes = self._one_hot if self.rows is None else self.codes()
        x = with_codes(codes, tasks, observations, actions)
        outputs: Tensor = self.layers(x.expand(self.size, *x.shape))
        return outputs.to(x.dtype)

    def codes(self) -> Tensor:
        """The codes of the tasks, ``[T, embedding_size]``, of length 1."""
        assert self.rows is not None
        return functional.normalize(self.rows(), dim=-1)
