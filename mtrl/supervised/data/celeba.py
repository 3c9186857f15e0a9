"""CelebA (Liu, Luo, Wang & Tang, 2015): forty attributes of faces, from its own files, which are never downloaded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mtrl.errors import InputError
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.networks import Pixels, nine_layers, resnet18
from mtrl.supervised.problem import Benchmark, MultiTaskModel
from mtrl.supervised.tasks import Measure, Metric, Task, WholeSplit, binary, check_tasks, classification
from mtrl.text import counted

SOURCE = (
    "CelebA is published at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html for non-commercial research; "
    "nothing is downloaded here"
)
_SIZE = 64
_ATTRIBUTES, _PARTS, _FACES = "list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"
_CITYSCAPES_MEAN = (73.15835921, 82.90891754, 72.39239876)  # of Cityscapes: what the papers' code subtracts here too


@benchmark("celeba")
def celeba(
    tasks: Sequence[str] | None = None,
    dropout: float = 0.0,
    *,
    data_dir: str | None = None,
    network: Annotated[str, Literal["resnet18", "nine_layers"]] = "resnet18",
    pixels: Annotated[str, Literal["kurin", "famo"]] = "kurin",
    head: Annotated[str, Literal["softmax", "logit"]] = "softmax",
    judged_by: Annotated[str, Literal["accuracy", "error", "f1"]] = "accuracy",
) -> Benchmark:
    """Forty binary attributes of 202,599 faces, at 64x64 pixels, in the published split.

    Raises `InputError` on an unknown task, or if a file is missing or is not CelebA's. A damaged image is one when it
    is read; `mtrl.supervised.scan` reads all.

    Args:
        tasks: a selection of the attributes that the data set's own file names; None is all.
        dropout: of the network.
        data_dir: torchvision's folder, above ``celeba`` or that itself, the authors', with ``Anno``, ``Eval`` and
            ``Img`` (images as JPEG, or as PNG in ``img_align_celeba_png``), or Kaggle's, whose lists are CSV files.
        network: ``resnet18`` (Sener & Koltun, 2018; Kurin et al., 2022) or ``nine_layers`` (Pascal et al.; FAMO).
        pixels: ``kurin`` resizes by nearest neighbours and subtracts Cityscapes' mean from BGR, as Sener & Koltun did;
            ``famo`` resizes bilinearly and takes RGB as it is, as Pascal et al. did.
        head: a ``softmax`` of two (Sener & Koltun; Kurin et al.), or one ``logit`` (Pascal et al.; FAMO).
        judged_by: what models are selected by; the two others are reported too.
    """
    if data_dir is None:
        raise InputError(f"benchmark=celeba needs data_dir=DIR with {_ATTRIBUTES}. {SOURCE}")
    folder = Path(data_dir)
    names, attributes = read_attributes(_find(folder, _ATTRIBUTES, "Anno"))
    chosen = check_tasks(names if tasks is None else tasks, names)
    partition = read_partition(_find(folder, _PARTS, "Eval"), attributes)
    images = _images(folder)
    columns = [names.index(task) for task in chosen]
    there = {entry.name for entry in os.scandir(images)}
    splits = []
    for files in partition:
        paths = [name if name in there else f"{Path(name).stem}.png" for name in files]
        if lacking := [file for file, path in zip(files, paths, strict=True) if path not in there]:
            raise InputError(
                f"{images} lacks {counted(len(lacking), 'image')} of {_PARTS}, the first is {lacking[0]}. {SOURCE}"
            )
        labels = np.stack([attributes[file] for file in files])[:, columns]
        splits.append(Faces(images, paths, chosen, torch.from_numpy(labels), pixels == "kurin", head == "logit"))
    made = resnet18(dropout) if network == "resnet18" else nine_layers(dropout)
    features = 2048 if network == "resnet18" else 512
    seen = Pixels(_CITYSCAPES_MEAN, bgr=True) if pixels == "kurin" else Pixels()
    heads: dict[str, nn.Module] = {
        task: nn.Linear(features, 2) if head == "softmax" else nn.Sequential(nn.Linear(features, 1), nn.Flatten(0))
        for task in chosen
    }
    task = _task(head == "logit", judged_by)
    return Benchmark(dict.fromkeys(chosen, task), MultiTaskModel(nn.Sequential(seen, made), heads), *splits)


@dataclass(frozen=True)
class Faces(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images ``[3, 64, 64]`` of type uint8, RGB, and a label, 0 or 1, by attribute: int64, or float for logits."""

    folder: Path
    files: Sequence[str]
    names: Sequence[str]
    labels: Tensor
    nearest: bool
    logits: bool

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One face; `InputError` if its file is damaged."""
        labels = self.labels[index].float() if self.logits else self.labels[index].long()
        return read_image(self.folder / self.files[index], self.nearest), dict(zip(self.names, labels, strict=True))


def read_image(path: Path, nearest: bool) -> Tensor:
    """An image in RGB, resized to 64x64 whatever its shape: ``[3, 64, 64]`` of bytes.

    Neighbours are the ``nearest``, or else bilinear with antialiasing. Raises `InputError` if it cannot be decoded.
    """
    from PIL import Image

    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB").resize((_SIZE, _SIZE), how))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} is damaged or only partly copied ({' '.join(str(error).split())})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_attributes(path: Path) -> tuple[list[str], dict[str, np.ndarray[Any, Any]]]:
    """The attributes' names, and by image 0 or 1 for each; `InputError` (record named) if the file is not CelebA's."""
    lines = _lines(path)
    table = path.suffix == ".csv"
    if len(lines) < 3 or not (lines[0].startswith("image_id,") if table else lines[0].isdigit()):
        expected = "header that begins with image_id," if table else "count, a line of names"
        raise InputError(f"{path}: expected a {expected} and a line for each image")
    names = lines[0].split(",")[1:] if table else lines[1].split()
    found: dict[str, np.ndarray[Any, Any]] = {}
    for number, line in enumerate(islice(lines, 1 if table else 2, None), start=2 if table else 3):
        file, *values = line.replace(",", " ").split() or [""]
        if len(values) != len(names) or not set(values) <= {"-1", "1"}:
            raise InputError(f"{path}, line {number}: expected a file's name and {len(names)} times -1 or 1")
        if file in found:
            raise InputError(f"{path}, line {number}: {file} comes a second time")
        found[file] = np.array(values) == "1"
    if not table and len(found) != int(lines[0]):
        raise InputError(f"{path} announces {int(lines[0]):,} images, but has {len(found):,}: only partly copied?")
    return names, found


def read_partition(path: Path, attributes: dict[str, np.ndarray[Any, Any]]) -> tuple[list[str], list[str], list[str]]:
    """The images of the training, validation and test split; `InputError` if they are not those with attributes."""
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for number, line in enumerate(_lines(path), start=1):
        if number == 1 and line.startswith("image_id,"):  # Kaggle's
            continue
        match line.replace(",", " ").split():
            case [file, ("0" | "1" | "2") as part] if file in attributes:
                parts[int(part)].append(file)
            case [file, "0" | "1" | "2"]:
                raise InputError(f"{path}, line {number}: {file} has no line in {_ATTRIBUTES}")
            case _:
                raise InputError(f"{path}, line {number}: expected a file's name and 0, 1 or 2, got '{line}'")
    if (count := sum(map(len, parts))) != len(attributes):
        raise InputError(f"{path} has {count:,} images, but {_ATTRIBUTES} has {len(attributes):,}: only partly copied?")
    if not all(parts):
        raise InputError(f"{path}: a split has no images")
    return parts


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error})") from error


def _find(folder: Path, name: str, own: str) -> Path:
    places = [folder / "celeba" / name, folder / name, folder / own / name, (folder / name).with_suffix(".csv")]
    for place in places:
        if place.is_file():
            return place
    raise InputError(f"there is none of {', '.join(map(str, places))}. {SOURCE}")


def _images(folder: Path) -> Path:
    names = ("celeba/img_align_celeba", *(f"{_FACES}/{_FACES}", _FACES, f"Img/{_FACES}", f"Img/{_FACES}_png"))
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise InputError(f"{folder} has none of the folders {', '.join(names)}. {SOURCE}")


def _task(logits: bool, judged_by: str) -> Task:
    plain = binary() if logits else classification()
    (accuracy,) = plain.metrics
    assert isinstance(accuracy, Metric)
    right = accuracy.per_sample
    metrics: dict[str, Measure] = {
        "accuracy": accuracy,
        "error": Metric("error", False, lambda outputs, labels: 1 - right(outputs, labels)),
        "f1": WholeSplit("f1", _f1, (lambda outputs: outputs > 0) if logits else (lambda outputs: outputs.argmax(1))),
    }
    first = metrics.pop(judged_by)
    return Task(plain.loss, (first, *metrics.values()), plain.check, plain.present)


def _f1() -> Any:
    from torchmetrics.classification import BinaryF1Score

    return BinaryF1Score(validate_args=False)
