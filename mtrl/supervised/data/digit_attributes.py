"""Attributes of handwritten digits, as a small CelebA that needs no download: several labels for each image."""

from collections.abc import Sequence

import torch
from torch import nn

from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.data.multi_digits import read_digits
from mtrl.supervised.data.overlay import FEATURES, encoder
from mtrl.supervised.problem import Benchmark, MultiTaskModel, Split
from mtrl.supervised.tasks import binary, check_tasks

ATTRIBUTES = {
    "even": (0, 2, 4, 6, 8),
    "large": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "square": (0, 1, 4, 9),
    "loop": (0, 6, 8, 9),
    "straight": (1, 4, 7),
}
"""Which digits have each: of numbers, and of how they are written (with a closed loop; without a curve)."""


@benchmark("digit_attributes")
def digit_attributes(
    tasks: Sequence[str] = tuple(ATTRIBUTES), dropout: float = 0.0, *, data_seed: int = 0
) -> Benchmark:
    """Six binary attributes of scikit-learn's 1,797 digits of 8x8 pixels (UCI, Alpaydin & Kaynak, 1998).

    It has the form of CelebA, many binary tasks on one image, and nothing else of it: each attribute follows from which
    digit it is. The digits are split as those of `multi_digits`. Raises `InputError` on an unknown task, or if
    scikit-learn is missing.

    Args:
        tasks: a selection of `ATTRIBUTES`.
        dropout: of the encoder.
        data_seed: draws the splits.
    """
    tasks = check_tasks(tasks, list(ATTRIBUTES))
    splits = [
        Split(
            digits.unsqueeze(1),
            {task: torch.isin(labels, torch.tensor(ATTRIBUTES[task])).float() for task in tasks},
        )
        for digits, labels in read_digits("digit_attributes", data_seed)
    ]
    heads = {task: nn.Sequential(nn.Linear(FEATURES, 1), nn.Flatten(0)) for task in tasks}
    model = MultiTaskModel(encoder(8, (3, 3), 1, dropout), heads)
    return Benchmark({task: binary() for task in tasks}, model, *splits, capturable=True)
