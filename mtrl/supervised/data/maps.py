"""What data sets with a target at every pixel share, and those in MTAN's layout (Liu et al., 2019).

That is ``{train,val}/{image,depth,...}/0.npy`` and so on.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mtrl.errors import InputError
from mtrl.supervised.dense import Kind, ScaleAndFlip
from mtrl.supervised.dense_networks import dense_model
from mtrl.supervised.problem import Benchmark
from mtrl.supervised.tasks import Task
from mtrl.text import counted

Reader = Callable[[Path], Tensor]


@dataclass(frozen=True)
class Maps:
    """One of a sample's maps: where it lies and how it is read.

    Attributes:
        folders: names that its folder has in one release or another; the first that is there is read.
        read: makes ``[H, W]`` or ``[C, H, W]`` of a file, or an `InputError` that names it.
    """

    folders: Sequence[str]
    read: Reader


class Arrays(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """The samples of a folder, by their numbers: an image and its targets, all of one size.

    Raises `InputError` if a map's folder is missing, or folders do not hold the same files ``0.npy``, ``1.npy``, ...

    Attributes:
        size: height and width of all maps; where none is given, those of the first image.
    """

    def __init__(
        self,
        folder: Path,
        image: Reader,
        targets: Mapping[str, Maps],
        source: str,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.readers = {"image": image} | {name: maps.read for name, maps in targets.items()}
        self.folders = {"image": _find(folder, ["image"], source)}
        self.folders |= {name: _find(folder, maps.folders, source) for name, maps in targets.items()}
        numbers = {name: _numbers(path) for name, path in self.folders.items()}
        self.numbers = sorted(set.union(*numbers.values()))
        for name, found in numbers.items():
            if lacking := sorted(set(self.numbers) - found):
                raise InputError(
                    f"{self.folders[name]} lacks {counted(len(lacking), 'file')}, the first is {lacking[0]}.npy"
                )
        if self.numbers != list(range(len(self.numbers))):
            first = next(place for place, number in enumerate(self.numbers) if place != number)
            raise InputError(f"{folder} lacks {first}.npy, but has a later one: only partly copied?")
        if not self.numbers:
            raise InputError(f"{self.folders['image']} has no files 0.npy, 1.npy, ... {source}")
        if size is None:
            height, width = image(self.folders["image"] / "0.npy").shape[-2:]
            size = height, width
        self.size = size

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One sample; `InputError` if one of its files is damaged or holds something else."""
        maps = {}
        for name, read in self.readers.items():
            path = self.folders[name] / f"{self.numbers[index]}.npy"
            maps[name] = read(path)
            if maps[name].shape[-2:] != self.size:
                raise InputError(f"{path} is of {_times(maps[name].shape[-2:])} pixels, expected {_times(self.size)}")
        return maps.pop("image"), maps


@dataclass(frozen=True)
class Part(Dataset[tuple[Any, Any]]):
    """Some of a data set's samples, in a row."""

    samples: Any
    rows: range

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """One sample."""
        sample: tuple[Any, Any] = self.samples[self.rows[index]]
        return sample


class Dense(NamedTuple):
    """A task at every pixel: what it is, how many channels its head has, and what its targets are when zoomed."""

    task: Task
    channels: int
    kind: Kind


def dense_benchmark(
    tasks: Mapping[str, Dense],
    train: Any,
    official: Any,
    size: tuple[int, int],
    *,
    held_out: float,
    augment: bool,
    evaluation_batch: int,
    **model: Any,
) -> Benchmark:
    """A benchmark of tasks at every one of ``size`` pixels.

    The last ``held_out`` of the training samples are what models are selected by, as in Kurin et al.'s code; where that
    is 0, the ``official`` ones are, which they are reported on too. Raises `InputError` if a split would be empty.

    Args:
        tasks: by name.
        train: the samples of the published training split.
        official: those of the published validation or test split.
        size: height and width of the answers.
        held_out: a share.
        augment: see `mtrl.supervised.dense.ScaleAndFlip`.
        evaluation_batch: how many samples are evaluated at once.
        model: options of `mtrl.supervised.dense_networks.dense_model`.
    """
    first = int(len(train) * (1 - held_out))
    splits = (Part(train, range(first)), Part(train, range(first, len(train))), official)
    if held_out and not 0 < first < len(train):
        raise InputError(f"benchmark.held_out={held_out} of {len(train)} samples leaves a split without any")
    return Benchmark(
        {name: dense.task for name, dense in tasks.items()},
        dense_model(outputs={name: dense.channels for name, dense in tasks.items()}, size=size, **model),
        *(splits if held_out else (train, official, official)),
        augment=ScaleAndFlip({name: dense.kind for name, dense in tasks.items()}) if augment else None,
        evaluation_batch=evaluation_batch,
    )


def read_image(path: Path) -> Tensor:
    """An image ``[H, W, 3]`` in RGB from 0 to 1, as ``[3, H, W]`` of float32; else an `InputError`."""
    array = read_array(path, 3)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{path} is of type {array.dtype}, expected float, from 0 to 1")
    refuse(path, array, ~((array >= -0.001) & (array <= 1.001)), "expected 0 to 1")
    return torch.from_numpy(array).float().permute(2, 0, 1).contiguous()


def read_labels(classes: int, path: Path) -> Tensor:
    """Labels ``[H, W]``, whole numbers from 0, or -1 where there is none, as int64; else an `InputError`."""
    array = read_array(path, 1)
    numbers = np.arange(-1, classes)
    refuse(
        path, array, ~np.isin(array, numbers), f"expected a label from 0 to {classes - 1}, or -1 where there is none"
    )
    return torch.from_numpy(array).long()


class Unit(NamedTuple):
    """What depths are in; the largest that there can be, and how large the largest of an image is at least."""

    name: str
    largest: float
    least: float = 0.0


def read_depth(unit: Unit, path: Path) -> Tensor:
    """Depths ``[H, W]`` or ``[H, W, 1]`` as `depth_map` has them."""
    return depth_map(path, read_array(path, 1), unit)


def depth_map(where: Path | str, array: np.ndarray[Any, Any], unit: Unit) -> Tensor:
    """Depths ``[H, W]`` as ``[1, H, W]`` of float32, NaN where there is 0; `InputError` if they are not of the unit."""
    refuse(where, array, ~((array >= 0) & (array <= unit.largest)), f"expected 0 to {unit.largest:g}, {unit.name}")
    if 0 < array.max() < unit.least:
        raise InputError(f"{where}: the largest depth is {array.max():g} {unit.name}, expected at least {unit.least:g}")
    depth = torch.from_numpy(array).float()[None]
    return depth.where(depth > 0, torch.nan)


def read_normals(path: Path) -> Tensor:
    """Normals ``[H, W, 3]`` as unit vectors ``[3, H, W]``, NaN where all three are 0; `InputError` if one is longer."""
    array = read_array(path, 3)
    normals = torch.from_numpy(array).float().permute(2, 0, 1)
    lengths = normals.norm(dim=0, keepdim=True)
    refuse(path, lengths[0].numpy(), (~(lengths[0] <= 1.01)).numpy(), "the length of a normal, expected at most 1")
    units: Tensor = (normals / lengths).where(lengths > 0, torch.nan)
    return units


def read_array(path: Path, channels: int) -> np.ndarray[Any, Any]:
    """An array ``[H, W, channels]``, or ``[H, W]`` for one channel; nothing is unpickled."""
    try:
        with path.open("rb") as file:
            array: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged or only partly copied ({' '.join(str(error).split())})") from error
    if channels == 1 and array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    expected = "[H, W, 3]" if channels == 3 else "[H, W]"
    if array.ndim != (3 if channels == 3 else 2) or (channels == 3 and array.shape[-1] != 3):
        raise InputError(f"{path} is of shape {list(array.shape)}, expected {expected}")
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise InputError(f"{path} is of type {array.dtype}, expected numbers")
    return array.astype(array.dtype.newbyteorder("="))


def refuse(where: Path | str, array: np.ndarray[Any, Any], wrong: np.ndarray[Any, Any], expected: str) -> None:
    """Raises `InputError`, which names the first pixel, if any is ``wrong``."""
    if wrong.any():
        place = tuple(int(axis[0]) for axis in np.nonzero(wrong))
        found = f"row {place[0]}, column {place[1]}: {array[place]:g}"
        raise InputError(f"{where}, {found}, {expected}; {int(wrong.sum()):,} such values")


def nearest(array: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """The pixels ``[..., H, W]`` of a map of another size that the centres of the new ones fall into."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, array.shape[-2:], strict=True)
    )
    return array[..., rows[:, None], columns]


def open_image(path: Path, modes: Sequence[str]) -> Any:
    """A decoded image; `InputError` if its file is damaged or has other pixels than one of Pillow's ``modes``."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} is damaged or only partly copied ({' '.join(str(error).split())})") from error
    if image.mode not in modes:
        kinds = {"L": "8-bit grey", "I;16": "16-bit grey", "RGB": "RGB"}
        raise InputError(f"{path} has pixels of kind {image.mode}, expected {kinds[modes[0]]}")
    return image


def _find(folder: Path, names: Sequence[str], source: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise InputError(f"{folder} has no folder {' or '.join(names)}. {source}")


def _numbers(folder: Path) -> set[int]:
    stems = [Path(name).stem for name in os.listdir(folder) if name.endswith(".npy")]
    return {int(stem) for stem in stems if stem.isdecimal() and str(int(stem)) == stem}


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
