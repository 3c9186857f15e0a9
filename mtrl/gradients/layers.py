"""Layers and their rules: how each gets its parameters' gradients, per group of samples.

Beside torch's own layers there are ensembles: E independent copies evaluated as one batched operation.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

Fill = Callable[[nn.Module, Tensor, Tensor, dict[str, Tensor]], None]
"""Fills ``out[name]`` (``[K, *parameter.shape]``) for each trainable parameter with the gradients of K groups of N
samples, given the input and the output's gradient as ``[K, N, features]`` (``[E, K, N, features]`` in an ensemble); all
in float32 or better."""


class Rule(NamedTuple):
    """How a kind of layer gets its parameters' gradients."""

    fill: Fill
    task_dim: int
    """Which dimension of input and output tells the task: 1 in an ensemble, whose members come first."""
    mixed: bool = False
    """Whether it takes input and gradient in the type of the layer's own product (as under autocast)."""


_RULES: dict[type[nn.Module], Rule] = {}


def register_rule(layer: type[nn.Module], *, task_dim: int = 0, mixed: bool = False) -> Callable[[Fill], Fill]:
    """Makes the decorated function the `Rule` of a class of layers, whose parameters are called weight and bias.

    It holds for the class itself: a subclass may compute something else.
    """

    def register(fill: Fill) -> Fill:
        _RULES[layer] = Rule(fill, task_dim, mixed)
        return fill

    return register


def rule_for(module: nn.Module, trainable: Collection[str]) -> Rule | None:
    """The rule of a module that owns the trainable parameters of these names, or None.

    Exact types only: a subclass, or a module re-parametrised by hooks, may compute something else.
    """
    if not set(trainable) <= {"weight", "bias"} or any(module.get_parameter(name).is_complex() for name in trainable):
        return None
    if isinstance(module, nn.Embedding) and (module.sparse or module.scale_grad_by_freq):
        return None
    return _RULES.get(type(module))


def supported() -> str:
    """The names of all layers that have a rule."""
    return ", ".join(layer.__name__ for layer in _RULES)


def grouped_by_task(module: nn.Module, rule: Rule, x: Tensor, delta: Tensor, num_tasks: int) -> tuple[Tensor, Tensor]:
    """Brings a layer's input and its output's gradient to the shape that its rule reads.

    Raises:
        ValueError: if a tensor has no dimension of the tasks where it is expected; the message says which tensor.
    """
    if not x.is_floating_point():  # indices, the same for all members of an ensemble
        return _grouped(x.unsqueeze(-1), 0, num_tasks), _grouped(delta, rule.task_dim, num_tasks)
    features = _features(module)
    return (
        _grouped(x.flatten(-features), rule.task_dim, num_tasks),
        _grouped(delta.flatten(-features), rule.task_dim, num_tasks),
    )


def count_of_samples(module: nn.Module, rule: Rule, output: Tensor) -> int:
    """How many samples of each task a layer's output is of; 1 where it has no dimension of them."""
    place = rule.task_dim + 1
    return output.shape[place] if output.dim() > place + _features(module) else 1


def _features(module: nn.Module) -> int:
    """How many dimensions hold the features."""
    return len(module.normalized_shape) if isinstance(module, nn.LayerNorm | nn.RMSNorm) else 1


def _grouped(x: Tensor, task_dim: int, num_tasks: int) -> Tensor:
    if x.dim() < task_dim + 2 or x.shape[task_dim] != num_tasks:
        raise ValueError(f"tensor of shape {tuple(x.shape)}")
    return x.reshape(*x.shape[: task_dim + 1], -1, x.shape[-1])


class TaskRows(nn.Module):
    """A table of which each task has a row of its own: no gradient of it is shared, so that none is combined.

    Args:
        num_tasks: T.
        size: of a row; rows start with a length of about 1.
    """

    def __init__(self, num_tasks: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_tasks, size) * size**-0.5)

    def forward(self) -> Tensor:
        """The table, ``[T, size]``: the loss of a task may depend on its own row alone."""
        return self.weight


# -------------------------------------------------------------------------------------------------- torch's layers


@register_rule(nn.Linear, mixed=True)
def _linear(module: nn.Module, x: Tensor, delta: Tensor, out: dict[str, Tensor]) -> None:
    if "weight" in out:
        _product(delta.transpose(1, 2), x, out["weight"])
    if "bias" in out:
        _sum(delta, out["bias"])


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    if left.dtype == out.dtype:
        torch.bmm(left, right, out=out)
    else:  # as fast as the layer's own, and as exact
        out.copy_(torch.bmm(left, right))


def _sum(delta: Tensor, out: Tensor) -> None:
    torch.sum(delta, 1, dtype=out.dtype, out=out)


@register_rule(nn.LayerNorm)
def _layer_norm(module: nn.Module, x: Tensor, delta: Tensor, out: dict[str, Tensor]) -> None:
    assert isinstance(module, nn.LayerNorm)
    shape = list(module.normalized_shape)
    x, delta = (tensor.view(*tensor.shape[:-1], *shape) for tensor in (x, delta))
    if "weight" in out:
        torch.sum(delta * functional.layer_norm(x, shape, eps=module.eps), 1, out=out["weight"])
    if "bias" in out:
        torch.sum(delta, 1, out=out["bias"])


@register_rule(nn.RMSNorm)
def _rms_norm(module: nn.Module, x: Tensor, delta: Tensor, out: dict[str, Tensor]) -> None:
    assert isinstance(module, nn.RMSNorm)
    shape = list(module.normalized_shape)
    x, delta = (tensor.view(*tensor.shape[:-1], *shape) for tensor in (x, delta))
    torch.sum(delta * functional.rms_norm(x, shape, eps=module.eps), 1, out=out["weight"])


@register_rule(nn.Embedding)
def _embedding(module: nn.Module, index: Tensor, delta: Tensor, out: dict[str, Tensor]) -> None:
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        delta = delta * (index != module.padding_idx)
    out["weight"].zero_().scatter_add_(1, index.long().expand_as(delta), delta)


# ------------------------------------------------------------------------------------------------------- ensembles


class _OneOutput(torch.autograd.Function):
    """``torch.baddbmm`` for one output, whose gradient by the input it gives without a product over one dimension.

    For such a product, torch's CUDA build compiles a kernel when first asked, which takes a C compiler.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return torch.baddbmm(bias, x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias, x, weight = ctx.saved_tensors
        x_of_product, weight_of_product = x.to(delta.dtype), weight.to(delta.dtype)  # which autocast may have chosen
        return (
            delta.sum(1, keepdim=True).to(bias.dtype),
            (delta * weight_of_product.mT).to(x.dtype),
            torch.bmm(x_of_product.mT, delta).to(weight.dtype),
        )


class EnsembleLinear(nn.Module):
    """E linear layers as one batched matrix product: ``y[e] = x[e] W[e] + b[e]``."""

    def __init__(self, ensemble_size: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(ensemble_size, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(ensemble_size, out_features))
        for member in self.weight.data:
            nn.init.kaiming_uniform_(member.T, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[E, ..., in_features]`` to ``[E, ..., out_features]``."""
        product = torch.baddbmm if self.weight.shape[-1] > 1 else _OneOutput.apply
        y = product(self.bias.unsqueeze(1), x.flatten(1, -2), self.weight)
        return y.view(*x.shape[:-1], -1)


@register_rule(EnsembleLinear, task_dim=1, mixed=True)
def _ensemble_linear(module: nn.Module, x: Tensor, delta: Tensor, out: dict[str, Tensor]) -> None:
    for member in range(len(x)):
        if "weight" in out:
            _product(x[member].transpose(1, 2), delta[member], out["weight"][:, member])
        if "bias" in out:
            _sum(delta[member], out["bias"][:, member])


class EnsembleLayerNorm(nn.Module):
    """E layer normalisations over the last dimension, each with its own scale and shift."""

    def __init__(self, ensemble_size: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ensemble_size, features))
        self.bias = nn.Parameter(torch.zeros(ensemble_size, features))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[E, ..., features]`` to the same shape."""
        if x.dtype != self.weight.dtype and len(self.weight) == 1:
            return functional.layer_norm(x, x.shape[-1:], self.weight[0], self.bias[0], self.eps)
        # Under autocast, x goes on in its own type, which scale and shift would widen.
        scale, shift = self.weight.to(x.dtype), self.bias.to(x.dtype)
        shape = (x.shape[0],) + (1,) * (x.dim() - 2) + (x.shape[-1],)
        normalized = functional.layer_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(shift.view(shape), normalized, scale.view(shape))


@register_rule(EnsembleLayerNorm, task_dim=1)
def _ensemble_layer_norm(module: nn.Module, x: Tensor, delta: Tensor, out: dict[str, Tensor]) -> None:
    assert isinstance(module, EnsembleLayerNorm)
    if "weight" in out:
        normalized = functional.layer_norm(x, x.shape[-1:], eps=module.eps)
        torch.sum((delta * normalized).transpose(0, 1), 2, out=out["weight"])
    if "bias" in out:
        torch.sum(delta.transpose(0, 1), 2, out=out["bias"])


class EnsembleEmbedding(nn.Module):
    """E embedding tables ``[num_embeddings, embedding_dim]`` looked up with the same indices."""

    def __init__(self, ensemble_size: int, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ensemble_size, num_embeddings, embedding_dim))

    def forward(self, index: Tensor) -> Tensor:
        """Maps integer indices ``[...]`` to ``[E, ..., embedding_dim]``."""
        return self.weight[:, index]


@register_rule(EnsembleEmbedding, task_dim=1)
def _ensemble_embedding(module: nn.Module, index: Tensor, delta: Tensor, out: dict[str, Tensor]) -> None:
    for member in range(len(delta)):
        _embedding(module, index, delta[member], {"weight": out["weight"][:, member]})
