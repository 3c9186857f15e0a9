"""Methods, one a file: what a batch does to a model. What a combiner makes of the gradients is the one ``combined``."""

import inspect
from typing import Any

import torch

from mtrl.combiners import Combiner
from mtrl.errors import InputError
from mtrl.supervised.problem import Benchmark
from mtrl.supervised.registry import Registry, call
from mtrl.supervised.updates import OptimizerOptions, Update, Wrt

method: Registry[Update] = Registry("method", __name__)
"""The decorator of what makes an `Update` of what it needs of ``model tasks combiner optimizer wrt seed inputs``."""


def make(
    name: str,
    benchmark: Benchmark,
    combiner: Combiner,
    optimizer: OptimizerOptions,
    *,
    wrt: Wrt | None = None,
    seed: int = 0,
    **options: Any,
) -> Update:
    """Makes the method of a name for a benchmark; the model that it trains is ``update.model``.

    Args:
        name: a registered one.
        benchmark: its model is on the device of training.
        combiner: made for its tasks.
        optimizer: makes the model's optimizer.
        wrt: by what per-task gradients are taken; None is what the method takes them by.
        seed: of what the method draws.
        **options: the method's own.

    Raises:
        InputError: on an unknown name or option, a combiner for a method without, or whatever the method refuses.
    """
    maker = method.get(name)
    needed = inspect.signature(maker).parameters
    if "combiner" not in needed and combiner.name != "unitary":
        raise InputError(f"method={name} does without a combiner: leave out combiner={combiner.name}")
    offered = {
        "model": benchmark.model,
        "tasks": benchmark.tasks,
        "combiner": combiner,
        "optimizer": optimizer,
        "wrt": wrt,
        "seed": seed,
        "inputs": None,
    }
    if "inputs" in needed:
        device = next(benchmark.model.parameters()).device
        offered["inputs"], _ = benchmark.train.batch(torch.arange(2), device)
    return call(name, maker, offered, options)
