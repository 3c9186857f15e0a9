"""How each kind of layer gets its parameters' gradients, per group of samples, from its input and output gradient."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrl.layers import EnsembleEmbedding, EnsembleLayerNorm, EnsembleLinear

Gradients = dict[str, Tensor]
Rule = Callable[[nn.Module, Tensor, Tensor, Gradients], None]
"""Fills ``out[name]`` (``[K, *parameter.shape]``) for each trainable parameter with the gradients of K groups of N
samples, given the input and the output's gradient as ``[K, N, features]`` (``[E, K, N, features]`` in an ensemble)."""


def _linear(module: nn.Module, x: Tensor, delta: Tensor, out: Gradients) -> None:
    if "weight" in out:
        torch.bmm(delta.transpose(1, 2), x, out=out["weight"])
    if "bias" in out:
        torch.sum(delta, 1, out=out["bias"])


def _layer_norm(module: nn.Module, x: Tensor, delta: Tensor, out: Gradients) -> None:
    assert isinstance(module, nn.LayerNorm)
    shape = list(module.normalized_shape)
    x, delta = (tensor.view(*tensor.shape[:-1], *shape) for tensor in (x, delta))
    if "weight" in out:
        torch.sum(delta * functional.layer_norm(x, shape, eps=module.eps), 1, out=out["weight"])
    if "bias" in out:
        torch.sum(delta, 1, out=out["bias"])


def _embedding(module: nn.Module, index: Tensor, delta: Tensor, out: Gradients) -> None:
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        delta = delta * (index != module.padding_idx)
    out["weight"].zero_().scatter_add_(1, index.long().expand_as(delta), delta)


def _ensemble_linear(module: nn.Module, x: Tensor, delta: Tensor, out: Gradients) -> None:
    for member in range(len(x)):
        if "weight" in out:
            torch.bmm(x[member].transpose(1, 2), delta[member], out=out["weight"][:, member])
        if "bias" in out:
            torch.sum(delta[member], 1, out=out["bias"][:, member])


def _ensemble_layer_norm(module: nn.Module, x: Tensor, delta: Tensor, out: Gradients) -> None:
    assert isinstance(module, EnsembleLayerNorm)
    if "weight" in out:
        normalized = functional.layer_norm(x, x.shape[-1:], eps=module.eps)
        torch.sum((delta * normalized).transpose(0, 1), 2, out=out["weight"])
    if "bias" in out:
        torch.sum(delta.transpose(0, 1), 2, out=out["bias"])


def _ensemble_embedding(module: nn.Module, index: Tensor, delta: Tensor, out: Gradients) -> None:
    for member in range(len(delta)):
        _embedding(module, index, delta[member], {"weight": out["weight"][:, member]})


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    EnsembleLinear: _ensemble_linear,
    EnsembleLayerNorm: _ensemble_layer_norm,
    EnsembleEmbedding: _ensemble_embedding,
}
SUPPORTED = ", ".join(cls.__name__ for cls in _RULES)


def rule_for(module: nn.Module, trainable: Collection[str]) -> Rule | None:
    """The rule of a module that owns the trainable parameters of these names, or None.

    Exact types only: a subclass, or a module re-parametrised by hooks, may compute something else.
    """
    if not set(trainable) <= {"weight", "bias"}:
        return None
    if isinstance(module, nn.Embedding) and (module.sparse or module.scale_grad_by_freq):
        return None
    return _RULES.get(type(module))


def grouped_by_task(module: nn.Module, x: Tensor, delta: Tensor, num_tasks: int) -> tuple[Tensor, Tensor]:
    """Brings a layer's input and its output's gradient to the shape that its rule reads.

    Tasks are expected in the first dimension; in the second, after the members, where there is an ensemble.

    Raises:
        ValueError: if a tensor has no such dimension; the message says which tensor.
    """
    lead = int(isinstance(module, (EnsembleLinear, EnsembleLayerNorm, EnsembleEmbedding)))
    if not x.is_floating_point():
        return _grouped(x.unsqueeze(-1), 0, num_tasks), _grouped(delta, lead, num_tasks)
    features = len(module.normalized_shape) if isinstance(module, nn.LayerNorm) else 1
    return (
        _grouped(x.flatten(-features), lead, num_tasks),
        _grouped(delta.flatten(-features), lead, num_tasks),
    )


def _grouped(x: Tensor, task_dim: int, num_tasks: int) -> Tensor:
    if x.dim() < task_dim + 2 or x.shape[task_dim] != num_tasks:
        raise ValueError(f"tensor of shape {tuple(x.shape)}")
    return x.reshape(*x.shape[: task_dim + 1], -1, x.shape[-1])
