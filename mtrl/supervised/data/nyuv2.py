"""NYUv2 (Silberman et al., 2012): classes, depths and normals of rooms, pre-processed or from the original file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mtrl.errors import InputError
from mtrl.ranges import FractionBelowOne
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.maps import (
    Arrays,
    Dense,
    Maps,
    Unit,
    dense_benchmark,
    depth_map,
    nearest,
    open_image,
    read_depth,
    read_image,
    read_labels,
    read_normals,
)
from mtrl.supervised.dense import UNLABELLED, distance, normals, segmentation
from mtrl.supervised.dense_networks import Head, Network
from mtrl.supervised.problem import Benchmark
from mtrl.supervised.tasks import check_tasks

SOURCE = (
    "The arrays are published with https://github.com/lorenmt/mtan, the original file at "
    "https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html; nothing is downloaded here"
)
_MAT, _SPLITS, _TO_40, _TO_13 = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat", "class13Mapping.mat"
_NORMALS = "nyu_normals_gt"
_CLASSES = 13
_METRES = Unit("metres", 20.0, 0.5)  # twice as far as the camera sees, and nearer than it sees


@benchmark("nyuv2")
def nyuv2(
    tasks: Sequence[str] = ("segmentation", "depth", "normals"),
    dropout: float = 0.0,
    *,
    data_dir: str | None = None,
    network: Network = "segnet",
    head: Head = "aspp",
    encoder_weights: str | None = None,
    held_out: FractionBelowOne = 0.0,
    augment: bool = True,
) -> Benchmark:
    """13 classes, depth in metres and surface normals at 288x384 pixels of 795 and 654 rooms.

    Raises `InputError` on an unknown task, or if a folder or file is missing. What a file holds is looked at when it is
    read; `mtrl.supervised.scan` reads all.

    Args:
        tasks: of ``segmentation``, ``depth`` and ``normals``.
        dropout: of the representation, or in a ResNet's heads.
        data_dir: the folder with MTAN's ``train`` and ``val``; or with the original ``nyu_depth_v2_labeled.mat``,
            ``splits.mat``, ``classMapping40.mat`` and ``class13Mapping.mat``, which has no normals: these are
            Ladicky et al.'s images, in ``nyu_normals_gt``.
        network: SegNet (Liu et al., 2019), U-Net (Pascal et al.) or dilated ResNets.
        head: of a ResNet.
        encoder_weights: a file of a ResNet's weights, as torchvision has them; None is none.
        held_out: the share of the training images, the last ones, that models are selected by; 0 selects by the test
            split and reports on it, as the literature does.
        augment: zooms and flips training images.
    """
    tasks = check_tasks(tasks, ["segmentation", "depth", "normals"])
    if data_dir is None:
        raise InputError(f"benchmark=nyuv2 needs data_dir=DIR with train and val, or {_MAT}. {SOURCE}")
    train, official = (_original if (Path(data_dir) / _MAT).exists() else _arrays)(Path(data_dir), tasks)
    described = {
        "segmentation": Dense(segmentation(_CLASSES), _CLASSES, "labels"),
        "depth": Dense(distance(), 1, "depth"),
        "normals": Dense(normals(), 3, "normals"),
    }
    return dense_benchmark(
        {task: described[task] for task in tasks},
        train,
        official,
        train.size,
        held_out=held_out,
        augment=augment,
        evaluation_batch=2,  # what the mean of batches' medians is of, in Navon et al.'s code
        network=network,
        head=head,
        dropout=dropout,
        weights=encoder_weights,
    )


def _arrays(folder: Path, tasks: Sequence[str]) -> tuple[Any, Any]:
    maps = {
        "segmentation": Maps(["label"], partial(read_labels, _CLASSES)),
        "depth": Maps(["depth"], partial(read_depth, _METRES)),
        "normals": Maps(["normal"], read_normals),
    }
    chosen = {task: maps[task] for task in tasks}
    train = Arrays(folder / "train", read_image, chosen, SOURCE)
    return train, Arrays(folder / "val", read_image, chosen, SOURCE, train.size)


def _original(folder: Path, tasks: Sequence[str]) -> tuple[Any, Any]:
    path, splits = folder / _MAT, _mat(folder / _SPLITS, "trainNdxs", "testNdxs")
    count, size = _shape(path)
    table = _table(folder) if "segmentation" in tasks else np.empty(0)
    rows = {name: [int(number) - 1 for number in numbers.flatten()] for name, numbers in splits.items()}
    for name, found in rows.items():
        if not found or min(found) < 0 or max(found) >= count:
            raise InputError(f"{folder / _SPLITS}: {name} are not numbers from 1 to {count:,}, as {_MAT} has images")
    if both := set(rows["trainNdxs"]) & set(rows["testNdxs"]):
        raise InputError(f"{folder / _SPLITS}: image {min(both) + 1} is in both splits")
    train, test = (Rooms(folder, split, rows[f"{split}Ndxs"], tasks, table, size) for split in ("train", "test"))
    return train, test


@dataclass(frozen=True)
class Rooms(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Samples of the original file, by their numbers from 0, brought to a size; ``table`` maps its labels to ours."""

    folder: Path
    split: str
    rows: Sequence[int]
    tasks: Sequence[str]
    table: np.ndarray[Any, Any]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One room; `InputError` if it cannot be read or holds something else."""
        from PIL import Image

        image = self._read("images", index)
        if image.dtype != np.uint8:
            raise InputError(f"{self._record(index)}: its images are of type {image.dtype}, expected uint8")
        resized = Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR)
        makers = {"segmentation": self._labels, "depth": self._depth, "normals": self._normals}
        targets = {task: makers[task](index) for task in self.tasks}
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255, targets

    def _labels(self, index: int) -> Tensor:
        labels = nearest(self._read("labels", index), self.size)
        if labels.max() >= len(self.table):
            where = self._record(index)
            raise InputError(f"{where}: label {labels.max()}, but {_TO_40} ends at {len(self.table) - 1}")
        return torch.from_numpy(self.table[labels])

    def _depth(self, index: int) -> Tensor:
        return depth_map(self._record(index), nearest(self._read("depths", index), self.size), _METRES)

    def _normals(self, index: int) -> Tensor:
        """From bytes; what is no unit vector, within a tenth, is none."""
        path = self.folder / _NORMALS / self.split / f"{self.rows[index] + 1:05}.png"
        pixels = nearest(np.array(open_image(path, ("RGB",))).transpose(2, 0, 1), self.size)
        found = torch.from_numpy(pixels).float() / 127.5 - 1
        lengths: Tensor = found.norm(dim=0)
        return (found / lengths).where((lengths - 1).abs() < 0.1, torch.nan)

    def _read(self, name: str, index: int) -> np.ndarray[Any, Any]:
        """``[H, W]`` or ``[H, W, 3]``: MATLAB's arrays lie the other way round."""
        import h5py

        try:
            with h5py.File(self.folder / _MAT, "r") as file:
                array: np.ndarray[Any, Any] = file[name][self.rows[index]]
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{self._record(index)}: its {name} cannot be read ({error})") from error
        return array.T

    def _record(self, index: int) -> str:
        return f"{self.folder / _MAT}, image {self.rows[index] + 1}"


def _shape(path: Path) -> tuple[int, tuple[int, int]]:
    """How many images a file has, and three fifths of their height and width: 288 and 384 of 480 and 640."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            count, _, width, height = file["images"].shape
            found = {name: file[name].shape for name in ("depths", "labels")}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged or not {_MAT} ({error}). {SOURCE}") from error
    for name, shape in found.items():
        if shape != (count, width, height):
            raise InputError(f"{path}: {name} are of shape {shape}, expected {(count, width, height)} as images")
    return count, (height * 3 // 5, width * 3 // 5)


def _table(folder: Path) -> np.ndarray[Any, Any]:
    """By label from 0 to 894, of which 0 is none, the class from 0 to 12, or -1: by way of Gupta et al.'s 40."""
    to_40 = _mat(folder / _TO_40, "mapClass")["mapClass"].flatten()
    mapping = _mat(folder / _TO_13, "classMapping13")["classMapping13"]
    try:
        to_13 = np.asarray(mapping["labels13"][0, 0]).flatten()
        table: np.ndarray[Any, Any] = np.append(0, to_13)[np.append(0, to_40).astype(np.int64)].astype(np.int64) - 1
    except (IndexError, ValueError) as error:
        raise InputError(f"{folder}: {_TO_40} and {_TO_13} are no maps to 40 and 13 classes ({error})") from error
    if table.min() < UNLABELLED or table.max() != _CLASSES - 1:
        raise InputError(f"{folder / _TO_13}: expected classes 1 to {_CLASSES}, got up to {table.max() + 1}")
    return table


def _mat(path: Path, *names: str) -> dict[str, Any]:
    """Variables of a MATLAB file of before 7.3; `InputError` if it lacks one."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(path, variable_names=names)
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise InputError(f"{path} cannot be read ({error}). {SOURCE}") from error
    if lacking := [name for name in names if name not in found]:
        raise InputError(f"{path} has no {lacking[0]}")
    return {name: found[name] for name in names}
