"""Cityscapes (Cordts et al., 2016) as it is published: classes, disparities and centres of instances."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mtrl.errors import InputError
from mtrl.ranges import FractionBelowOne
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.maps import Dense, dense_benchmark, nearest, open_image
from mtrl.supervised.dense import UNLABELLED, distance, offsets, segmentation
from mtrl.supervised.dense_networks import Head, Network
from mtrl.supervised.networks import Pixels
from mtrl.supervised.problem import Benchmark
from mtrl.supervised.tasks import check_tasks
from mtrl.text import counted

SOURCE = (
    "Cityscapes is published at https://www.cityscapes-dataset.com, for non-commercial use; nothing is downloaded here"
)
CLASSES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The ids of the 19 classes, in their order; the others from 0 to 33 are void."""
GROUPS = {
    "flat": (7, 8),
    "construction": (11, 12, 13),
    "object": (17, 19, 20),
    "nature": (21, 22),
    "sky": (23,),
    "human": (24, 25),
    "vehicle": (26, 27, 28, 31, 32, 33),
}
"""The seven groups, in their order, and their ids."""
_PLACES = {
    "segmentation": ("gtFine", "gtFine_labelIds"),
    "disparity": ("disparity", "disparity"),
    "instances": ("gtFine", "gtFine_instanceIds"),
}
_THINGS = CLASSES[11:]  # of which there are instances
_STRANGE = -2
_PLATE = 255  # -1, a licence plate, in eight bits
_DEVIATION = 2729.0680031169923 / 256  # of disparities in pixels, as Sener & Koltun normalise them
_MEAN = (123.675, 116.28, 103.53)  # ImageNet's in RGB, which Sener & Koltun's code subtracts from BGR


class Frame(NamedTuple):
    """The files of one image: itself, ``segmentation``, ``disparity`` and ``instances``."""

    image: Path
    targets: Mapping[str, Path]


@benchmark("cityscapes_raw")
def cityscapes_raw(
    tasks: Sequence[str] = ("segmentation", "disparity", "instances"),
    dropout: float = 0.0,
    *,
    data_dir: str | None = None,
    classes: Annotated[int, Literal[7, 19]] = 19,
    height: Annotated[int, Literal[128, 256]] = 256,
    target_stride: Annotated[int, Literal[1, 8]] = 1,
    network: Network = "resnet18",
    head: Head = "aspp",
    encoder_weights: str | None = None,
    pixels: Annotated[str, Literal["rgb", "sener"]] = "rgb",
    held_out: FractionBelowOne = 0.2,
    augment: bool = False,
) -> Benchmark:
    """Three tasks at every pixel of 2,975 and 500 streets, as Sener & Koltun (2018) and Gama & Grassi (2025) have them.

    Disparities and the offsets (y, x) of pixels from their instance's centre of mass are in pixels of the original
    image; what is learnt is disparities divided by 10.66, their deviation. Raises `InputError` on an unknown task, or
    if a file is missing. What a file holds is looked at when it is read; `mtrl.supervised.scan` reads all.

    Args:
        tasks: of ``segmentation``, ``disparity`` and ``instances``.
        dropout: in the heads.
        data_dir: the folder with ``leftImg8bit``, ``gtFine`` and ``disparity``.
        classes: 19, or the 7 groups.
        height: of the images, which are twice as wide.
        target_stride: 8 has targets and answers at an eighth of the images' size, as Sener & Koltun's code.
        network: dilated ResNets, U-Net or SegNet.
        head: of a ResNet.
        encoder_weights: a file of a ResNet's weights, as torchvision has them; None is none.
        pixels: ``rgb`` from 0 to 1; ``sener`` turns them to BGR and subtracts ImageNet's mean first.
        held_out: the share of the training images, the last ones, that models are selected by; 0 selects by the test's.
        augment: zooms and flips training images, with a ``target_stride`` of 1.
    """
    tasks = check_tasks(tasks, ["segmentation", "disparity", "instances"])
    if data_dir is None:
        raise InputError(f"benchmark=cityscapes_raw needs data_dir=DIR with leftImg8bit and gtFine. {SOURCE}")
    if augment and target_stride != 1:
        raise InputError("benchmark.augment needs benchmark.target_stride=1")
    size, kept = (height, 2 * height), (height // target_stride, 2 * height // target_stride)
    table = label_table([[number] for number in CLASSES] if classes == 19 else [*GROUPS.values()])
    train, official = (Streets(frames(Path(data_dir), split, tasks), size, kept, table) for split in ("train", "val"))
    described = {
        "segmentation": Dense(segmentation(classes), classes, "labels"),
        "disparity": Dense(distance(_DEVIATION, "_px"), 1, "disparity"),
        "instances": Dense(offsets(), 2, "offsets"),
    }
    return dense_benchmark(
        {task: described[task] for task in tasks},
        train,
        official,
        kept,
        held_out=held_out,
        augment=augment,
        evaluation_batch=16,
        network=network,
        head=head,
        dropout=dropout,
        weights=encoder_weights,
        pixels=Pixels(_MEAN, bgr=True) if pixels == "sener" else Pixels(),
    )


@dataclass(frozen=True)
class Streets(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images ``[3, *size]`` of bytes, RGB, and targets ``[*kept]`` or ``[C, *kept]``; ``table`` maps ids to labels."""

    frames: Sequence[Frame]
    size: tuple[int, int]
    kept: tuple[int, int]
    table: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One street; `InputError` if one of its files is damaged or holds something else."""
        frame = self.frames[index]
        image, original = read_street(frame.image, self.size)
        targets = {}
        for task, path in frame.targets.items():
            array = read_map(path, original, ("L",) if task == "segmentation" else ("I;16", "I"))
            if task == "segmentation":
                targets[task] = torch.from_numpy(labels_of(path, nearest(array, self.kept), self.table))
            elif task == "disparity":
                targets[task] = torch.from_numpy(disparity(nearest(array, self.kept)))[None] / _DEVIATION
            else:
                targets[task] = torch.from_numpy(nearest(centre_offsets(path, array), self.kept))
        return image, targets


def frames(folder: Path, split: str, tasks: Sequence[str]) -> list[Frame]:
    """The files of a split's images, by city and name; `InputError` if one is missing."""
    root = folder / "leftImg8bit" / split
    images = _stems(root, "leftImg8bit")
    for task in tasks:
        place, kind = _PLACES[task]
        there = _stems(folder / place / split, kind)
        if lacking := sorted(images - there):
            first = folder / place / split / f"{lacking[0]}_{kind}.png"
            found = counted(len(lacking), "image")
            raise InputError(f"{root} has {found} without such a file, the first is {first}. {SOURCE}")
        if strange := sorted(there - images):
            first = root / f"{strange[0]}_leftImg8bit.png"
            raise InputError(
                f"{first.parents[1]} lacks {counted(len(strange), 'image')}, the first is {first}. {SOURCE}"
            )
    return [
        Frame(
            root / f"{stem}_leftImg8bit.png",
            {task: folder / _PLACES[task][0] / split / f"{stem}_{_PLACES[task][1]}.png" for task in tasks},
        )
        for stem in sorted(images)
    ]


def _stems(folder: Path, kind: str) -> set[str]:
    """``CITY/CITY_SSSSSS_FFFFFF`` of all files of a kind; `InputError` if there is none."""
    cities = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    ending = f"_{kind}.png"
    found = {
        f"{city.name}/{name.removesuffix(ending)}"
        for city in cities
        for name in os.listdir(city)
        if name.endswith(ending)
    }
    if not found:
        raise InputError(f"{folder} has no files CITY/*{ending}. {SOURCE}")
    return found


def label_table(groups: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
    """By id from 0 to 255 the number of its group, -1 for void and licence plates, -2 for what is no id."""
    table = np.full(256, _STRANGE)
    table[:34] = table[_PLATE] = UNLABELLED
    for label, numbers in enumerate(groups):
        table[list(numbers)] = label
    return table


def labels_of(path: Path, ids: np.ndarray[Any, Any], table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Ids as labels of type int64; `InputError` if one is none of Cityscapes'."""
    labels: np.ndarray[Any, Any] = table[ids]
    if (labels == _STRANGE).any():
        raise InputError(f"{path}: {ids[labels == _STRANGE][0]} is no label id of Cityscapes, which are 0 to 33")
    return labels


def disparity(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of 16-bit values, pixels: 256 a pixel, from 1 on; NaN where there is 0."""
    return np.where(values > 0, (values.astype(np.float32) - 1) / 256, np.float32(np.nan))


def centre_offsets(path: Path, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How far a pixel lies below (first) and to the right of its instance's centre of mass: ``[2, H, W]`` of float32.

    NaN where there is no instance: an id below 1000 is a class, or a group of its members that nobody told apart.
    """
    classes = ids // 1000
    if (ids // 1000 > 33).any():
        raise InputError(f"{path}: {ids[classes > 33][0]} is no instance id of Cityscapes: its class would be above 33")
    found = np.full((2, *ids.shape), np.nan, np.float32)
    there = np.isin(classes, _THINGS)
    _, instance, count = np.unique(ids[there], return_inverse=True, return_counts=True)
    for axis, places in enumerate(np.nonzero(there)):
        centres = np.bincount(instance, places) / count
        found[axis][there] = places - centres[instance]
    return found


def read_street(path: Path, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """An image in RGB, bilinearly resized, ``[3, *size]`` of bytes, and its own size; else an `InputError`."""
    from PIL import Image

    image = open_image(path, ("RGB",))
    pixels = np.array(image.resize(size[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), (image.height, image.width)


def read_map(path: Path, size: tuple[int, int], modes: Sequence[str]) -> np.ndarray[Any, Any]:
    """The whole numbers of a grey PNG of a size; `InputError` if it has other pixels or another size."""
    image = open_image(path, modes)
    if (image.height, image.width) != size:
        expected = f"{size[0]}x{size[1]} as its image"
        raise InputError(f"{path} is of {image.height}x{image.width} pixels, expected {expected}")
    return np.array(image).astype(np.int64)
