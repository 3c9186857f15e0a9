"""A stereo picture with its true disparities, from scikit-image: real dense targets for a smoke test, and no more."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from mtrl.errors import InputError
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.packages import data_of
from mtrl.supervised.problem import Benchmark, MultiTaskModel, Split
from mtrl.supervised.tasks import check_tasks, regression

SOURCE = "the package scikit-image has the files (BSD; the scene is Middlebury's of 2014): pip install scikit-image"
_FILES = ("motorcycle_left.png", "motorcycle_right.png", "motorcycle_disp.npz")
_PATCH = 64
_WIDTH = 32
_COLUMNS = (7, 9)  # of patches, from the left: training, then validation, then the test


@benchmark("motorcycle")
def motorcycle(
    tasks: Sequence[str] = ("disparity", "right"), dropout: float = 0.0, *, data_dir: str | None = None
) -> Benchmark:
    """One scene in patches of 64x64: from the left view, the disparity of every pixel, and the right view.

    **A smoke test of dense prediction: its numbers mean nothing.** It is a single picture (500x741 pixels), of which
    the left part is for training and the right part for validation and the test. Disparities are in patch widths; where
    there is none, as at 7% of the pixels, the target is missing. Raises `InputError` on an unknown task, or if a
    file is missing, damaged or of another size.

    Args:
        tasks: a selection of ``disparity`` and ``right``.
        dropout: of the representation's channels.
        data_dir: where ``motorcycle_left.png``, ``motorcycle_right.png`` and ``motorcycle_disp.npz`` are; None is
            in the installed package.
    """
    tasks = check_tasks(tasks, ["disparity", "right"])
    left, right, disparity = (
        _read(_folder(data_dir) / name, *how)
        for name, how in zip(_FILES, [(_pixels, 3), (_pixels, 3), (_disparities, 2)], strict=True)
    )
    if not left.shape[1:] == right.shape[1:] == disparity.shape[1:]:
        raise InputError(f"the views and disparities in {_folder(data_dir)} are of different sizes")
    targets = {"disparity": disparity / _PATCH, "right": right}
    columns = left.shape[2] // _PATCH
    if columns <= _COLUMNS[1]:
        raise InputError(f"the pictures in {_folder(data_dir)} are {left.shape[2]} pixels wide: too few patches")
    splits = [
        Split(_patches(left, part), {task: _patches(targets[task], part) for task in tasks})
        for part in (slice(_COLUMNS[0]), slice(*_COLUMNS), slice(_COLUMNS[1], columns))
    ]
    encoder = nn.Sequential(
        nn.Conv2d(3, _WIDTH, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(_WIDTH, _WIDTH, 5, padding=2),
        nn.ReLU(),
        nn.Dropout2d(dropout),
    )
    heads = {task: nn.Conv2d(_WIDTH, len(targets[task]), 3, padding=1) for task in tasks}
    return Benchmark({task: regression() for task in tasks}, MultiTaskModel(encoder, heads), *splits)


def _patches(picture: Tensor, columns: slice) -> Tensor:
    """The patches of some columns of a picture ``[C, H, W]``: ``[N, C, 64, 64]``."""
    tiles = picture.unfold(1, _PATCH, _PATCH).unfold(2, _PATCH, _PATCH)[:, :, columns]
    return tiles.permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()


def _read(path: Path, read: Callable[[Path], Any], dimensions: int) -> Tensor:
    try:
        found = read(path)
    except (OSError, ValueError, SyntaxError, KeyError, EOFError, BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is missing or damaged ({reason}); {SOURCE}") from error
    if found.ndim != dimensions:
        raise InputError(f"{path} is of shape {found.shape}, which is not scikit-image's")
    return torch.from_numpy(found).permute(2, 0, 1) if dimensions == 3 else torch.from_numpy(found)[None]


def _pixels(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255


def _disparities(path: Path) -> Any:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        found = archive["arr_0"].astype(np.float32)
    return np.where(np.isfinite(found), found, np.nan).astype(np.float32)


def _folder(data_dir: str | None) -> Path:
    return data_of("skimage", data_dir, f"benchmark=motorcycle: {SOURCE}, or data_dir=DIR with {', '.join(_FILES)}")
