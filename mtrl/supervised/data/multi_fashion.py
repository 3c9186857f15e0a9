"""Multi-Fashion and Multi-(Fashion + MNIST) (Lin et al., 2019), from the two sets' own files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mtrl.errors import InputError
from mtrl.ranges import Count
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.multi_mnist import SOURCE as MNIST_SOURCE
from mtrl.supervised.data.multi_mnist import read_splits
from mtrl.supervised.data.overlay import make_benchmark, overlay
from mtrl.supervised.problem import Benchmark

SOURCE = (
    "Fashion-MNIST is published at https://github.com/zalandoresearch/fashion-mnist (MIT), and is Debian's package "
    "dataset-fashion-mnist; nothing is downloaded here"
)
_DEBIAN = "/usr/share/datasets/fashion-mnist"
_OPTIONS: dict[str, Any] = {"put": partial(overlay, offset=8, canvas=36, size=36), "kernels": (9, 5), "hidden": False}


@benchmark("multi_fashion")
def multi_fashion(
    tasks: Sequence[str] = ("CL", "CR"),
    dropout: float = 0.0,
    *,
    data_dir: str | None = None,
    validation: int = 10_000,
    pairs_per_digit: Count = 2,
    data_seed: int = 0,
) -> Benchmark:
    """Two articles of Fashion-MNIST of different kinds on a canvas of 36x36, at its top left and bottom right.

    Images are not resampled. That each is "moved by up to 4 pixels in each direction" is read as from the middle of the
    canvas to its corner; docs/supervised.md says why. The network is that of Lin et al.'s code: kernels of 9 and 5, and
    a linear layer as head. Unlike theirs, pixels are standardised, and a part of the training set is held out for
    validation. Raises `InputError` on an unknown task, or if a file is missing, incomplete or not of MNIST's kind.

    Args:
        tasks: a selection of ``CL CR RL RR``, see `mtrl.supervised.data.overlay.TASKS`.
        dropout: of encoder and heads.
        data_dir: where the four IDX files are, gzipped or not; None is where Debian's package has them.
        validation: how many of the last training images are held out.
        pairs_per_digit: how many pairs each article of a split is the left one of.
        data_seed: draws the pairs.
    """
    parts = read_splits(Path(data_dir or _DEBIAN), validation, SOURCE)
    scale = {"mean": 0.2860, "deviation": 0.3530}  # of Fashion-MNIST's training pixels
    options = _OPTIONS | scale | {"distinct": True}
    return make_benchmark(tasks, parts, dropout, pairs_per_digit, data_seed, **options)


@benchmark("multi_fashion_and_mnist")
def multi_fashion_and_mnist(
    tasks: Sequence[str] = ("CL", "CR"),
    dropout: float = 0.0,
    *,
    data_dir: str | None = None,
    mnist_dir: str | None = None,
    validation: int = 10_000,
    pairs_per_digit: Count = 2,
    data_seed: int = 0,
) -> Benchmark:
    """A digit of MNIST at the top left and an article of Fashion-MNIST at the bottom right: `multi_fashion` otherwise.

    Args:
        tasks: a selection of ``CL CR RL RR``; left is the digit.
        dropout: of encoder and heads.
        data_dir: where Fashion-MNIST's files are; None is where Debian's package has them.
        mnist_dir: where MNIST's are, as for `mtrl.supervised.data.multi_mnist.multi_mnist`.
        validation: how many of the last training images of both are held out.
        pairs_per_digit: how many pairs each digit of a split is in.
        data_seed: draws the pairs.
    """
    if mnist_dir is None:
        raise InputError(f"benchmark=multi_fashion_and_mnist needs benchmark.mnist_dir=DIR. {MNIST_SOURCE}")
    digits = read_splits(Path(mnist_dir), validation)
    articles = read_splits(Path(data_dir or _DEBIAN), validation, SOURCE)
    scale = {"mean": 0.2084, "deviation": 0.3306}  # means of both sets
    options = _OPTIONS | scale | {"right_sources": articles}
    return make_benchmark(tasks, digits, dropout, pairs_per_digit, data_seed, **options)
