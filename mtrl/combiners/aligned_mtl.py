"""Independent component alignment for multi-task learning (Senushkin, Patakin, Kuznetsov & Konushin, 2023)."""

from typing import Literal

import numpy as np

from mtrl.combiners import Array, GramianCombiner, register
from mtrl.combiners.solvers import eigen


@register("aligned_mtl")
class AlignedMTL(GramianCombiner):
    """Aligned-MTL (Senushkin et al., 2023, algorithm 1): gradients with their principal components made equal.

    The aligned gradients are the closest ones to ``J``, up to a scale, that are orthonormal within its row space:
    with ``J = U S V^T`` of rank R, ``s U V^T``, so ``w = s U S^-1 U^T 1``. The scale ``s`` is the smallest singular
    value, the median or the root mean square of them. Orthogonal gradients of one length keep weight 1.

    The singular values come from ``diag(|g|) C^(1/2)`` with the cosines ``C``, which keeps gradients of norms down to
    1e-14 of the largest, where the eigenvalues of ``G`` would lose them below 1e-7.

    Args:
        scale: ``min`` (default, the paper), ``median`` or ``rmse`` (options of the authors' code).
    """

    weights_specific = False  # authors' code (optim/aligned/balancer.py): scale_decoder_grad=False

    def _setup(self, *, scale: Literal["min", "median", "rmse"] = "min") -> None:
        self.scale = scale

    def _solve_nonzero(self, norms: Array, cosines: Array, precision: float) -> Array:
        values, vectors = eigen(cosines, precision)
        left, singular, _ = np.linalg.svd(norms[:, None] * vectors * np.sqrt(values), full_matrices=False)
        scales = {"min": singular[-1], "median": np.median(singular), "rmse": np.sqrt((singular**2).mean())}
        weights: Array = left @ (left.sum(0) / singular) * scales[self.scale]
        return weights
