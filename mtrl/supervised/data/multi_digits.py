"""Overlaid handwritten digits from scikit-learn's own wheel: real data, nothing to download."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mtrl.errors import InputError
from mtrl.ranges import Count
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.overlay import TASKS, make_benchmark, overlay
from mtrl.supervised.problem import Benchmark


@benchmark("multi_digits")
def multi_digits(
    tasks: Sequence[str] = TASKS, dropout: float = 0.0, *, pairs_per_digit: Count = 5, data_seed: int = 0
) -> Benchmark:
    """Overlays the 1,797 digits of 8x8 pixels of the UCI optical recognition set (Alpaydin & Kaynak, 1998).

    The digits are split 60:20:20 before they are paired, so that none occurs in two splits. Images are 10x10. Raises
    `InputError` on an unknown task, or if scikit-learn is missing.

    Args:
        tasks: a selection of ``CL CR RL RR``, see `mtrl.supervised.data.overlay.TASKS`.
        dropout: of encoder and heads.
        pairs_per_digit: how many images each digit of a split is the left one of.
        data_seed: draws the splits and the pairs.
    """
    parts = read_digits("multi_digits", data_seed)
    put = partial(overlay, offset=2, canvas=10, size=10)
    return make_benchmark(tasks, parts, dropout, pairs_per_digit, data_seed, put=put, kernels=(3, 3), padding=1)


def read_digits(name: str, data_seed: int) -> list[tuple[Tensor, Tensor]]:
    """The digits ``[N, 8, 8]`` in [0, 1] and labels ``[N]`` of the three splits of a benchmark, drawn by a seed."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(f"benchmark={name} needs scikit-learn: pip install scikit-learn") from error
    source = load_digits()
    digits = torch.as_tensor(source.images, dtype=torch.float32) / 16
    labels = torch.as_tensor(source.target, dtype=torch.int64)
    shuffled = torch.randperm(len(digits), generator=torch.Generator().manual_seed(data_seed))
    return [(digits[part], labels[part]) for part in shuffled.tensor_split([1078, 1437])]


def _put(left: Tensor, right: Tensor, _: torch.Generator) -> Tensor:
    return overlay(left, right, offset=2, canvas=10, size=10)
