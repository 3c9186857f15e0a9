"""Two overlaid digits per image: the tasks, the images and the network of Multi-MNIST (Sabour et al., 2017)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mtrl.errors import InputError
from mtrl.supervised.problem import Benchmark, MultiTaskModel, Split
from mtrl.supervised.tasks import check_tasks, classification, regression

TASKS = ("CL", "CR", "RL", "RR")
"""Classify (C) or reconstruct (R) the left (L) or right (R) digit (Gama & Grassi, 2025, section 3.1)."""
FEATURES = 50
"""Length of the representation."""


def overlay(left: Tensor, right: Tensor, *, offset: int, canvas: int, size: int) -> Tensor:
    """Puts one digit into the top-left corner of a canvas, and another one further down and to the right.

    Where they overlap the brighter pixel counts (Sener & Koltun, 2018). A canvas of another size than the
    image is resampled by nearest neighbours.

    Digits are ``[N, H, H]``, images ``[N, size, size]``. All measures are in pixels: ``offset``, of the right digit's
    corner from the left one's, down and to the right, and the sides of canvas and image.
    """
    side = left.shape[-1]
    image = left.new_zeros(len(left), canvas, canvas)
    image[:, :side, :side] = left
    corner = image[:, offset : offset + side, offset : offset + side]
    torch.maximum(corner, right, out=corner)
    nearest = ((torch.arange(size) + 0.5) * canvas / size).long()
    return image[:, nearest][:, :, nearest]


def encoder(size: int, kernels: tuple[int, int], padding: int, dropout: float) -> nn.Module:
    """LeNet's layers up to the shared representation: two convolutions with pooling, one linear layer.

    With kernels of 5 and no padding it is the Multi-MNIST encoder of Sener & Koltun (2018), with dropout on the second
    convolution's channels as in Kurin et al. (2022, section 4.1.1); with 9 and 5, that of Lin et al. (2019).
    """
    for kernel in kernels:
        size = (size + 2 * padding - kernel + 1) // 2
    return nn.Sequential(
        nn.Conv2d(1, 10, kernels[0], padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, kernels[1], padding=padding),
        nn.Dropout2d(dropout),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * size**2, FEATURES),
        nn.ReLU(),
    )


def _classifier(hidden: bool, dropout: float) -> nn.Module:
    if not hidden:
        return nn.Linear(FEATURES, 10)
    return nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Dropout(dropout), nn.Linear(FEATURES, 10))


def _decoder(side: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 4 * FEATURES),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(4 * FEATURES, side**2),
        nn.Sigmoid(),
        nn.Unflatten(1, (side, side)),
    )


def make_benchmark(
    tasks: Sequence[str],
    sources: Sequence[tuple[Tensor, Tensor]],
    dropout: float,
    pairs_per_digit: int,
    data_seed: int,
    *,
    put: Callable[[Tensor, Tensor], Tensor],
    kernels: tuple[int, int] = (5, 5),
    padding: int = 0,
    hidden: bool = True,
    mean: float = 0.0,
    deviation: float = 1.0,
    distinct: bool = False,
    right_sources: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> Benchmark:
    """A benchmark of overlaid digits.

    Args:
        tasks: a selection of `TASKS`; `InputError` on others.
        sources: digits ``[N, H, H]`` in [0, 1] and labels ``[N]`` of the training, validation and test split.
        dropout: of encoder and heads.
        pairs_per_digit: how often each digit of a split is the left one; the right one is drawn uniformly.
        data_seed: draws it.
        put: of left and right digits, their images ``[N, size, size]``: an `overlay`.
        kernels: sides of the encoder's convolutions.
        padding: of these.
        hidden: whether a classifying head has a hidden layer.
        mean: what is subtracted from pixels.
        deviation: what they are divided by then.
        distinct: whether the right one always has another label than the left one; `InputError` if there is no other.
        right_sources: what the right one is drawn from, split by split; None is ``sources``.
    """
    tasks = check_tasks(tasks, TASKS)
    generator = torch.Generator().manual_seed(data_seed)
    splits = []
    for (digits, labels), (others, their_labels) in zip(sources, right_sources or sources, strict=True):
        left = torch.arange(len(digits)).repeat(pairs_per_digit)
        right = torch.randint(len(others), (len(left),), generator=generator)
        if distinct:
            right = _of_other_labels(right, labels[left], their_labels, generator)
        targets = {"CL": labels[left], "CR": their_labels[right], "RL": digits[left], "RR": others[right]}
        images = put(digits[left], others[right]).unsqueeze(1)
        splits.append(Split((images - mean) / deviation, {task: targets[task] for task in tasks}))
    side = sources[0][0].shape[-1]
    shared = encoder(images.shape[-1], kernels, padding, dropout)
    heads = {task: _classifier(hidden, dropout) if task[0] == "C" else _decoder(side, dropout) for task in tasks}
    kinds = {task: classification() if task[0] == "C" else regression() for task in tasks}
    return Benchmark(kinds, MultiTaskModel(shared, heads), *splits, capturable=True)


def _of_other_labels(right: Tensor, labels: Tensor, theirs: Tensor, generator: torch.Generator) -> Tensor:
    """The right digits, drawn anew where they have the label of the left one."""
    if bool((theirs == theirs[0]).all()):
        raise InputError(f"all {len(theirs)} images of a split have label {int(theirs[0])}: there is no other to pair")
    while bool((same := theirs[right] == labels).any()):
        right[same] = torch.randint(len(theirs), (int(same.sum()),), generator=generator)
    return right
