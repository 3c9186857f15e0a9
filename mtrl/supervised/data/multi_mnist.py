"""Multi-MNIST (Sabour et al., 2017; Sener & Koltun, 2018) from MNIST's own files, which are never downloaded."""

import gzip
import math
import zlib
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtrl.errors import InputError
from mtrl.ranges import Count
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.overlay import make_benchmark, overlay
from mtrl.supervised.problem import Benchmark

SOURCE = "MNIST is published at http://yann.lecun.com/exdb/mnist/ under CC BY-SA 3.0; nothing is downloaded here"
_SIDE = 28
_MEAN, _DEVIATION = 0.1307, 0.3081  # of MNIST's training pixels


@benchmark("multi_mnist")
def multi_mnist(
    tasks: Sequence[str] = ("CL", "CR"),
    dropout: float = 0.5,
    *,
    data_dir: str | None = None,
    validation: int = 10_000,
    pairs_per_digit: Count = 1,
    data_seed: int = 0,
) -> Benchmark:
    """Overlays MNIST digits as the papers do: a canvas of 36x36, the right digit at 6, resampled to 28x28.

    Raises `InputError` on an unknown task, or if a file is missing, incomplete or not MNIST's.

    Args:
        tasks: a selection of ``CL CR RL RR``, see `mtrl.supervised.data.overlay.TASKS`.
        dropout: of encoder and heads.
        data_dir: where the four IDX files are, gzipped or not, or torchvision's folder above ``MNIST/raw`` or ``raw``.
        validation: how many of the last training digits are held out.
        pairs_per_digit: how many images each digit of a split is the left one of.
        data_seed: draws the pairs.
    """
    if data_dir is None:
        raise InputError(
            f"benchmark=multi_mnist needs data_dir=DIR with train-images-idx3-ubyte and the others. {SOURCE}"
        )
    parts = read_splits(Path(data_dir), validation)
    put = partial(overlay, offset=6, canvas=36, size=_SIDE)
    return make_benchmark(tasks, parts, dropout, pairs_per_digit, data_seed, put=put, mean=_MEAN, deviation=_DEVIATION)


def read_splits(directory: Path, validation: int, source: str = SOURCE) -> list[tuple[Tensor, Tensor]]:
    """The images ``[N, 28, 28]`` in [0, 1] and labels ``[N]`` of the training, validation and test split.

    The last ``validation`` training images are held out. Raises `InputError` if a file is missing, incomplete or not of
    MNIST's kind, with the ``source`` where it can be had.
    """
    digits, labels = _labelled_digits(directory, "train", source)
    if not 0 < validation < len(digits):
        raise InputError(f"validation: expected 1 to {len(digits) - 1} of {len(digits)} digits, got {validation}")
    test = _labelled_digits(directory, "t10k", source)
    return [(digits[:-validation], labels[:-validation]), (digits[-validation:], labels[-validation:]), test]


def _labelled_digits(directory: Path, part: str, source: str) -> tuple[Tensor, Tensor]:
    images_file, labels_file = (
        _find(directory, f"{part}-{kind}-ubyte", source) for kind in ("images-idx3", "labels-idx1")
    )
    images, labels = read_idx(images_file, 3, source), read_idx(labels_file, 1, source)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise InputError(f"{images_file}: images of {images.shape[1]}x{images.shape[2]} pixels, expected 28x28")
    if len(images) != len(labels):
        raise InputError(f"{images_file} has {len(images)} images, but {labels_file} has {len(labels)} labels")
    if not len(images):
        raise InputError(f"{images_file} has no images")
    if labels.max() > 9:
        record = int((labels > 9).argmax())
        raise InputError(f"{labels_file}: label {labels[record]} of record {record} is not a digit from 0 to 9")
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()


def _find(directory: Path, name: str, source: str) -> Path:
    folders = [directory, directory / "raw", directory / "MNIST" / "raw"]
    dotted = name.replace("-idx", ".idx")  # in some copies
    for folder, candidate in product(folders, (name, f"{name}.gz", dotted, f"{dotted}.gz")):
        if (folder / candidate).is_file():
            return folder / candidate
    raise InputError(f"there is no {name} or {name}.gz in {', '.join(map(str, folders))}. {source}")


def read_idx(path: Path, dimensions: int, source: str = SOURCE) -> np.ndarray:
    """The writable array of so many dimensions in an IDX file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Raises `InputError` if the file is damaged, incomplete, or holds something else.
    """
    try:
        content = path.read_bytes()
        data = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged or only partly copied ({error}). {source}") from error
    start = 4 * (1 + dimensions)
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < start:
        raise InputError(f"{path} is not an IDX file of bytes in {dimensions} dimensions. {source}")
    shape = np.frombuffer(data, ">u4", dimensions, 4).tolist()
    expected = math.prod(shape) + start
    if len(data) != expected:
        raise InputError(f"{path} has {len(data):,} bytes, its header says {expected:,}: only partly copied? {source}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()
