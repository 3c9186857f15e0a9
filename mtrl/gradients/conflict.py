"""What the per-task gradients of one step say about conflict between tasks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtrl.gradients import Combination


def cosine_matrix(gramian: Tensor) -> Tensor:
    """The pairwise cosines ``[T, T]`` of gradients with these inner products, 0 where one is zero (its own too)."""
    norms = gramian.diagonal().sqrt()
    products = torch.outer(norms, norms)
    return torch.where(products > 0, gramian / products, 0).clamp(-1, 1)


def magnitude_similarity(gramian: Tensor) -> Tensor:
    """``2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2)`` (Yu et al., 2020, definition 3), ``[T, T]``, 0 where both are zero."""
    squares = gramian.diagonal()
    sums = squares[:, None] + squares
    norms = squares.sqrt()
    return torch.where(sums > 0, 2 * torch.outer(norms, norms) / sums, 0)


def conflict_metrics(combination: Combination, tasks: Sequence[str]) -> dict[str, Any]:
    """Flat measures of gradient conflict, for logging.

    Returns:
        ``weight/<task>`` where the method has weights; with a Gramian ``cosine_to_update/<task>`` and
        ``summed_gradient_norm``; from two tasks on also ``norm_spread`` (the largest gradient's norm over the
        smallest that is not 0; 0 where all are) and, over all pairs, ``cosine_mean``, ``cosine_min``,
        ``conflicting_pairs`` (the share with a negative cosine), ``magnitude_similarity`` (the mean) and the matrix
        ``cosines`` (`cosine_matrix` as nested lists, to three decimals).
    """
    found: dict[str, Tensor] = {}
    matrix: dict[str, list[list[float]]] = {}
    if combination.weights is not None:
        found |= zip([f"weight/{task}" for task in tasks], combination.weights, strict=True)
    if combination.alignment is not None:
        found |= zip([f"cosine_to_update/{task}" for task in tasks], combination.alignment, strict=True)
    gramian = combination.gramian
    if gramian is not None:
        found["summed_gradient_norm"] = gramian.sum().clamp_min(0).sqrt()
    if gramian is not None and len(tasks) > 1:
        pairs = torch.triu_indices(len(tasks), len(tasks), 1, device=gramian.device).unbind()
        cosines = cosine_matrix(gramian).double()
        matrix["cosines"] = cosines.cpu().numpy().round(3).tolist()
        of_pairs = cosines[pairs]
        found |= {"cosine_mean": of_pairs.mean(), "cosine_min": of_pairs.min()}
        found["conflicting_pairs"] = (of_pairs < 0).to(of_pairs).mean()
        squares = gramian.diagonal()
        found["norm_spread"] = (squares.amax() / torch.where(squares > 0, squares, torch.inf).amin()).sqrt()
        found["magnitude_similarity"] = magnitude_similarity(gramian)[pairs].mean()
    values = torch.stack([value.double() for value in found.values()]).tolist() if found else []
    return dict(zip(found, values, strict=True)) | matrix
