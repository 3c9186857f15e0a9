"""Tasks with a target at every pixel, their metrics over all pixels of a split, and augmentation of all maps together.

A missing pixel is -1 in labels and NaN elsewhere: 0 and 250 are values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrl.errors import InputError
from mtrl.supervised.tasks import Task, WholeSplit, binary

UNLABELLED = -1


class PooledMean:
    """A mean over all values of a split, whatever its batches: ``values`` makes some of outputs and targets, ``[K]``.

    NaN where there were none.
    """

    def __init__(self, values: Callable[[Tensor, Tensor], Tensor], higher_is_better: bool = False) -> None:
        self.values, self.higher_is_better = values, higher_is_better
        self.total, self.count = 0.0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """See `mtrl.supervised.tasks.Meter`."""
        found = self.values(outputs, targets)
        self.total += float(found.sum(dtype=torch.float64))
        self.count += found.numel()

    def compute(self) -> float:
        """See `mtrl.supervised.tasks.Meter`."""
        return self.total / self.count if self.count else float("nan")


class PooledMedian:
    """The median of all values of a split; or else the mean of its batches' medians, as other code has it."""

    higher_is_better = False

    def __init__(self, values: Callable[[Tensor, Tensor], Tensor], *, by_batch: bool = False) -> None:
        self.values, self.by_batch = values, by_batch
        self.found: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """See `mtrl.supervised.tasks.Meter`."""
        found = self.values(outputs, targets).cpu()
        self.found.append(_median(found)[None] if self.by_batch else found)

    def compute(self) -> float:
        """See `mtrl.supervised.tasks.Meter`."""
        found = torch.cat(self.found)
        return float(found.mean(dtype=torch.float64) if self.by_batch else _median(found))


def _median(values: Tensor) -> Tensor:
    """The middle value, or the mean of the two in the middle, which ``torch.median`` does not take."""
    above = len(values) // 2
    upper = values.kthvalue(above + 1).values
    return upper if len(values) % 2 else (values.kthvalue(above).values + upper) / 2


def segmentation(classes: int) -> Task:
    """Cross-entropy of logits ``[N, classes, H, W]`` against labels ``[N, H, W]``, -1 where there is none.

    Judged by the mean intersection over union (``miou``) over the split's confusion matrix, without classes that are
    neither there nor predicted; and by the share of right pixels, ``pixel_accuracy``.
    """
    first = partial(torch.argmax, dim=1)
    metrics = (WholeSplit("miou", partial(_jaccard, classes), first), WholeSplit("pixel_accuracy", _accuracy, first))
    check = partial(_check_labels, classes)
    return Task(
        partial(F.cross_entropy, ignore_index=UNLABELLED),
        metrics,
        check,
        lambda labels: (labels != UNLABELLED).float().mean((1, 2)),
    )


def _jaccard(classes: int) -> Any:
    from torchmetrics.classification import MulticlassJaccardIndex

    return MulticlassJaccardIndex(classes, ignore_index=UNLABELLED, validate_args=False)


def _accuracy() -> PooledMean:
    return PooledMean(_right, higher_is_better=True)


def _right(predicted: Tensor, labels: Tensor) -> Tensor:
    there = labels != UNLABELLED
    return predicted[there] == labels[there]


def _check_labels(classes: int, outputs: Tensor, labels: Tensor) -> None:
    expected = [len(labels), *outputs.shape[2:]]
    if labels.dtype != torch.long or list(labels.shape) != expected:
        raise InputError(f"expected labels {expected} of type int64, got {list(labels.shape)} of {labels.dtype}")
    if len(outside := labels[(labels < UNLABELLED) | (labels >= classes)]):
        raise InputError(f"label {int(outside[0])} is none of 0 to {classes - 1}, or -1 where there is none")


def mask() -> Task:
    """Binary cross-entropy of logits ``[N, 1, H, W]`` against targets of 0 or 1, the mean over all pixels.

    Judged by the intersection over union of the class, over the split (``iou``) and as the mean over the images that
    have it (``image_iou``, Pascal et al.), and by ``pixel_accuracy``.
    """
    metrics = (
        WholeSplit("iou", _binary_jaccard, lambda logits: logits > 0),
        WholeSplit("image_iou", lambda: PooledMean(_image_iou, higher_is_better=True)),
        WholeSplit(
            "pixel_accuracy",
            lambda: PooledMean(lambda logits, targets: ((logits > 0) == (targets > 0.5)).flatten(), True),
        ),
    )
    return Task(F.binary_cross_entropy_with_logits, metrics, binary().check)


def _binary_jaccard() -> Any:
    from torchmetrics.classification import BinaryJaccardIndex

    return BinaryJaccardIndex(validate_args=False)


def _image_iou(logits: Tensor, targets: Tensor) -> Tensor:
    predicted, there = (logits > 0).flatten(1), (targets > 0.5).flatten(1)
    ratios = (predicted & there).sum(1) / (predicted | there).sum(1)
    return ratios[there.any(1)]


def distance(scale: float = 1.0, unit: str = "") -> Task:
    """Mean absolute error ``[N, 1, H, W]`` of depths or disparities, NaN where there is none.

    Judged by the absolute error times ``scale`` (``abs_error``, with the ``unit`` behind it), and by the error relative
    to the target, ``rel_error``, where that is not 0.
    """
    metrics = (
        WholeSplit(f"abs_error{unit}", lambda: PooledMean(lambda *given: scale * _errors(*given))),
        WholeSplit("rel_error", lambda: PooledMean(_relative)),
    )
    return Task(_mean_error, metrics, _check_map, _present)


def offsets() -> Task:
    """Mean absolute error of vectors ``[N, 2, H, W]``, NaN where there is none; judged by it, ``offset_error``."""
    return Task(_mean_error, (WholeSplit("offset_error", lambda: PooledMean(_errors)),), _check_map, _present)


def normals() -> Task:
    """One less the cosine between outputs ``[N, 3, H, W]``, which are normalised, and unit vectors, NaN where none is.

    Judged over all pixels by the ``angle_mean`` and ``angle_median`` in degrees, and the shares ``within_11_25``,
    ``within_22_5`` and ``within_30``; ``angle_batch_median`` is the mean of the evaluated batches' medians (Navon et
    al., 2022, and their successors).
    """
    within = {"within_11_25": 11.25, "within_22_5": 22.5, "within_30": 30.0}
    metrics = (
        WholeSplit("angle_mean", lambda: PooledMean(_angles)),
        WholeSplit("angle_median", lambda: PooledMedian(_angles)),
        WholeSplit("angle_batch_median", lambda: PooledMedian(_angles, by_batch=True)),
        *(WholeSplit(name, partial(_within, limit)) for name, limit in within.items()),
    )
    return Task(lambda *given: 1 - _cosines(*given).mean(), metrics, _check_map, _present)


def _within(limit: float) -> PooledMean:
    return PooledMean(lambda *given: _angles(*given) < limit, higher_is_better=True)


def _angles(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.rad2deg(_cosines(outputs, targets).clamp(-1, 1).acos())


def _cosines(outputs: Tensor, targets: Tensor) -> Tensor:
    """Where there is a target, ``[K]``; all its components may add up to 0, as those of (1, -1, 0) do."""
    there = ~targets.isnan().any(1)
    given, wanted = (vectors.movedim(1, -1)[there] for vectors in (outputs, targets))
    return F.cosine_similarity(given, wanted)


def _errors(outputs: Tensor, targets: Tensor) -> Tensor:
    there = ~targets.isnan()
    return (outputs[there] - targets[there]).abs()


def _relative(outputs: Tensor, targets: Tensor) -> Tensor:
    there = targets > 0
    return (outputs[there] - targets[there]).abs() / targets[there]


def _mean_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return _errors(outputs, targets).mean()


def _check_map(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape[1:] != targets.shape[1:]:
        raise InputError(f"the head gives {list(outputs.shape[1:])}, but a target is {list(targets.shape[1:])}")


def _present(targets: Tensor) -> Tensor:
    return (~targets.isnan()).flatten(1).float().mean(1)


Kind = Literal["labels", "mask", "depth", "disparity", "offsets", "normals"]


@dataclass(frozen=True)
class ScaleAndFlip:
    """Zooms by 1, 1.2 or 1.5 into a part that it draws, and flips every other sample; all maps alike.

    What is ``s`` times as large is ``s`` times as near: depths are divided, disparities and offsets multiplied.
    Flipped, x points the other way, in normals and in offsets (y, x). Normals are unit vectors afterwards; where a
    missing one has a part in it, a normal is missing.

    Attributes:
        kinds: by target ``[H, W]`` or ``[C, H, W]``, all of the image's height and width, what it is.
    """

    kinds: Mapping[str, Kind]

    def __call__(self, image: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """An image ``[3, H, W]``, of bytes or float, and its targets."""
        scale = (1.0, 1.2, 1.5)[int(torch.randint(3, ()))]
        height, width = (int(side / scale) for side in image.shape[-2:])
        top = int(torch.randint(image.shape[-2] - height + 1, ()))
        left = int(torch.randint(image.shape[-1] - width + 1, ()))
        flip = bool(torch.rand(()) < 0.5)

        def change(values: Tensor, kind: Kind | Literal["image"]) -> Tensor:
            part = values[..., top : top + height, left : left + width]
            zoomed = part if scale == 1 else _zoomed(part, kind, values.shape[-2:], scale)
            return _flipped(zoomed, kind) if flip else zoomed

        return change(image, "image"), {task: change(values, self.kinds[task]) for task, values in targets.items()}


def _zoomed(part: Tensor, kind: str, size: tuple[int, ...], scale: float) -> Tensor:
    smooth = kind in ("image", "normals")
    options: dict[str, Any] = {"mode": "bilinear", "align_corners": True} if smooth else {"mode": "nearest"}
    channels = part if part.ndim == 3 else part[None]
    found = F.interpolate(channels[None].float(), size=size, **options)[0].reshape(*part.shape[:-2], *size)
    if kind == "normals":
        return F.normalize(found, dim=0)
    if kind == "depth":
        return found / scale
    if kind in ("disparity", "offsets"):
        return found * scale
    return found.to(part.dtype) if part.is_floating_point() else found.round().to(part.dtype)


def _flipped(values: Tensor, kind: str) -> Tensor:
    flipped = values.flip(-1)
    x = {"normals": 0, "offsets": 1}.get(kind)
    if x is not None:
        flipped[x] = -flipped[x]
    return flipped
