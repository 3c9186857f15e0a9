"""Cityscapes (Cordts et al., 2016) as Liu et al. (2019, MTAN) pre-processed it: classes and depths of streets."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from mtrl.errors import InputError
from mtrl.ranges import FractionBelowOne
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.maps import Arrays, Dense, Maps, Unit, dense_benchmark, read_depth, read_image, read_labels
from mtrl.supervised.dense import distance, segmentation
from mtrl.supervised.dense_networks import Head, Network
from mtrl.supervised.problem import Benchmark
from mtrl.supervised.tasks import check_tasks

SOURCE = (
    "The pre-processed arrays are published with https://github.com/lorenmt/mtan, for non-commercial use; "
    "nothing is downloaded here"
)
_FOLDERS = {2: ["label_2"], 7: ["label_7", "label"], 19: ["label_19"]}


@benchmark("cityscapes")
def cityscapes(
    tasks: Sequence[str] = ("segmentation", "depth"),
    dropout: float = 0.0,
    *,
    data_dir: str | None = None,
    classes: Annotated[int, Literal[2, 7, 19]] = 7,
    network: Network = "resnet50",
    head: Head = "aspp",
    encoder_weights: str | None = None,
    held_out: FractionBelowOne = 0.2,
    augment: bool = False,
) -> Benchmark:
    """Classes and depth at every pixel of 2,975 and 500 streets, as Kurin et al. (2022) train it.

    Depths are the camera's 16-bit disparities divided by 65,535. Raises `InputError` on an unknown task, or if a folder
    or file is missing. What a file holds is looked at when it is read; `mtrl.supervised.scan` reads all.

    Args:
        tasks: of ``segmentation`` and ``depth``.
        dropout: in the heads.
        data_dir: the folder with ``train`` and ``val``.
        classes: 7 (in ``label_7``, or ``label``), or all 19 (in ``label_19``), or 2 (in ``label_2``).
        network: dilated ResNets, U-Net or SegNet.
        head: of a ResNet.
        encoder_weights: a file of a ResNet's weights, as torchvision has them; None is none.
        held_out: the share of the training images, the last ones, that models are selected by; 0 selects by the test's.
        augment: zooms and flips training images.
    """
    tasks = check_tasks(tasks, ["segmentation", "depth"])
    if data_dir is None:
        raise InputError(f"benchmark=cityscapes needs data_dir=DIR with train and val. {SOURCE}")
    maps = {
        "segmentation": Maps(_FOLDERS[classes], partial(read_labels, classes)),
        "depth": Maps(["depth"], partial(read_depth, Unit("disparities divided by 65,535", 1.0))),
    }
    chosen, folder = {task: maps[task] for task in tasks}, Path(data_dir)
    train = Arrays(folder / "train", read_image, chosen, SOURCE)
    official = Arrays(folder / "val", read_image, chosen, SOURCE, train.size)
    described = {
        "segmentation": Dense(segmentation(classes), classes, "labels"),
        "depth": Dense(distance(), 1, "depth"),
    }
    return dense_benchmark(
        {task: described[task] for task in tasks},
        train,
        official,
        train.size,
        held_out=held_out,
        augment=augment,
        evaluation_batch=32,
        network=network,
        head=head,
        dropout=dropout,
        weights=encoder_weights,
    )
