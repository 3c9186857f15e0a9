"""A benchmark to copy: your data, your encoder, two heads of different kinds.

Run it as it is with ``python scripts/supervised.py benchmark=custom benchmark.file=mtrl/supervised/data/example.py``;
add ``combiner=mgda``, ``tasks=[digit]`` (single-task training) or any other key. A loss or metric of your own is a
function: ``Task(loss=my_loss, metrics=(Metric("my_metric", higher_is_better=True, per_sample=my_metric),))``.
"""

from collections.abc import Sequence

import torch
from torch import nn

from mtrl.supervised import Benchmark, MultiTaskModel, Split, classification, regression


def make_benchmark(tasks: Sequence[str] = ("digit", "ink"), *, dropout: float = 0.0) -> Benchmark:
    """Which digit is it, and how much ink was used?

    Args:
        tasks: a selection of ``digit`` and ``ink``.
        dropout: of the representation.
    """
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    source = load_digits()
    images = torch.as_tensor(source.data, dtype=torch.float32) / 16
    targets = {"digit": torch.as_tensor(source.target), "ink": images.mean(1, keepdim=True)}
    described = {"digit": classification(), "ink": regression()}
    heads = {"digit": nn.Linear(64, 10), "ink": nn.Linear(64, 1)}
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, validation, test = (
        Split(images[part], {task: targets[task][part] for task in tasks})
        for part in shuffled.tensor_split([1078, 1437])
    )
    encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(dropout))
    return Benchmark(
        tasks={task: described[task] for task in tasks},
        model=MultiTaskModel(encoder, {task: heads[task] for task in tasks}),
        train=train,
        validation=validation,
        test=test,
    )
