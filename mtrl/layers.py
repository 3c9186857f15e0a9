"""Ensembles of layers: E independent copies evaluated as one batched operation."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class EnsembleLinear(nn.Module):
    """E linear layers as one batched matrix product: ``y[e] = x[e] W[e] + b[e]``.

    Args:
        ensemble_size: the number of copies E.
        in_features: the size of the last input dimension.
        out_features: the size of the last output dimension.
    """

    def __init__(self, ensemble_size: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(ensemble_size, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(ensemble_size, out_features))
        for member in self.weight.data:
            nn.init.kaiming_uniform_(member.T, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[E, ..., in_features]`` to ``[E, ..., out_features]``."""
        y = torch.baddbmm(self.bias.unsqueeze(1), x.flatten(1, -2), self.weight)
        return y.view(*x.shape[:-1], -1)


class EnsembleLayerNorm(nn.Module):
    """E layer normalisations over the last dimension, each with its own scale and shift.

    Args:
        ensemble_size: the number of copies E.
        features: the size of the last dimension.
    """

    def __init__(self, ensemble_size: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ensemble_size, features))
        self.bias = nn.Parameter(torch.zeros(ensemble_size, features))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[E, ..., features]`` to the same shape."""
        shape = (x.shape[0],) + (1,) * (x.dim() - 2) + (x.shape[-1],)
        normalized = functional.layer_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias.view(shape), normalized, self.weight.view(shape))


class EnsembleEmbedding(nn.Module):
    """E embedding tables looked up with the same indices.

    Args:
        ensemble_size: the number of copies E.
        num_embeddings: the number of rows of each table.
        embedding_dim: the size of each row.
    """

    def __init__(self, ensemble_size: int, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ensemble_size, num_embeddings, embedding_dim))

    def forward(self, index: Tensor) -> Tensor:
        """Maps integer indices ``[...]`` to ``[E, ..., embedding_dim]``."""
        return self.weight[:, index]
