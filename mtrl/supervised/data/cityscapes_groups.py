"""Cityscapes (Cordts et al., 2016) as seven binary tasks, one for each group of classes (Pascal et al.)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mtrl.errors import InputError
from mtrl.ranges import FractionBelowOne
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.cityscapes_raw import (
    GROUPS,
    SOURCE,
    Frame,
    frames,
    label_table,
    labels_of,
    read_map,
    read_street,
)
from mtrl.supervised.data.maps import Dense, dense_benchmark, nearest
from mtrl.supervised.dense import mask
from mtrl.supervised.dense_networks import Head, Network
from mtrl.supervised.networks import Pixels
from mtrl.supervised.problem import Benchmark
from mtrl.supervised.tasks import check_tasks

_SIZE = (128, 256)


@benchmark("cityscapes_groups")
def cityscapes_groups(
    tasks: Sequence[str] = tuple(GROUPS),
    dropout: float = 0.0,
    *,
    data_dir: str | None = None,
    network: Network = "unet",
    head: Head = "aspp",
    encoder_weights: str | None = None,
    held_out: FractionBelowOne = 0.0,
    augment: bool = False,
) -> Benchmark:
    """Is it flat, construction, object, nature, sky, human, vehicle? At every pixel of streets of 128x256 pixels.

    What is void is none of them. Raises `InputError` on an unknown task, or if a file is missing. What a file holds is
    looked at when it is read; `mtrl.supervised.scan` reads all.

    Args:
        tasks: of the seven groups.
        dropout: of the representation, or in a ResNet's heads.
        data_dir: the folder with ``leftImg8bit`` and ``gtFine``.
        network: U-Net (Pascal et al.), dilated ResNets or SegNet.
        head: of a ResNet.
        encoder_weights: a file of a ResNet's weights, as torchvision has them; None is none.
        held_out: the share of the training images, the last ones, that models are selected by; 0 selects by the
            published validation split and reports on it, as Pascal et al. do.
        augment: zooms and flips training images.
    """
    tasks = check_tasks(tasks, list(GROUPS))
    if data_dir is None:
        raise InputError(f"benchmark=cityscapes_groups needs data_dir=DIR with leftImg8bit and gtFine. {SOURCE}")
    train, official = (Groups(frames(Path(data_dir), split, ["segmentation"]), tasks) for split in ("train", "val"))
    return dense_benchmark(
        dict.fromkeys(tasks, Dense(mask(), 1, "mask")),
        train,
        official,
        _SIZE,
        held_out=held_out,
        augment=augment,
        evaluation_batch=24,
        network=network,
        head=head,
        dropout=dropout,
        weights=encoder_weights,
        pixels=Pixels(),
    )


@dataclass(frozen=True)
class Groups(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images ``[3, 128, 256]`` of bytes, RGB, and by group a float mask ``[1, 128, 256]`` of 0 and 1."""

    frames: Sequence[Frame]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One street; `InputError` if one of its files is damaged or holds something else."""
        frame = self.frames[index]
        image, original = read_street(frame.image, _SIZE)
        path = frame.targets["segmentation"]
        ids = nearest(read_map(path, original, ("L",)), _SIZE)
        labels = torch.from_numpy(labels_of(path, ids, label_table([*GROUPS.values()])))
        return image, {name: (labels == list(GROUPS).index(name)).float()[None] for name in self.names}
