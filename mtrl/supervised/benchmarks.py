"""Benchmarks by name."""

from collections.abc import Sequence
from typing import Annotated, Any

from mtrl.ranges import Within, check
from mtrl.supervised.problem import Benchmark
from mtrl.supervised.registry import Registry, call

benchmark: Registry[Benchmark] = Registry("benchmark", "mtrl.supervised.data")
"""The decorator of a function of ``tasks`` (a selection of its own), ``dropout`` and its options."""

Dropout = Annotated[float, Within("[0, 1)")]


def make(name: str, tasks: Sequence[str] | None = None, *, dropout: float = 0.0, **options: Any) -> Benchmark:
    """Makes the benchmark of a name.

    Its model is initialised with the global random generator: seed that first.

    Args:
        name: a registered one.
        tasks: which of its tasks; all that it has by default if None.
        dropout: the probability of dropping a unit, in [0, 1).
        **options: the benchmark's own.

    Raises:
        InputError: on an unknown name or option, or whatever the benchmark refuses.
    """
    check("dropout", dropout, Dropout)
    return call(name, benchmark.get(name), {"tasks": tasks, "dropout": dropout}, options)
