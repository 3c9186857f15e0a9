"""Benchmarks by name."""

from collections.abc import Callable, Sequence
from typing import Any

from mtrl.errors import InputError
from mtrl.plugins import load_file
from mtrl.ranges import FractionBelowOne, check, checked, refuse_unknown
from mtrl.registry import Registry
from mtrl.supervised.problem import Benchmark

benchmark: Registry[Callable[..., Benchmark]] = Registry("benchmark", "mtrl.supervised.data", checked("benchmark"))
"""The decorator of a function of ``tasks`` (a selection of its own), ``dropout`` and its options."""


def make(name: str, tasks: Sequence[str] | None = None, *, dropout: float = 0.0, **options: Any) -> Benchmark:
    """Makes the benchmark of a name; ``custom`` is the function ``make_benchmark`` in a file of the user's.

    It needs the option ``file``. The model is initialised with the global random generator: seed that first. Without
    ``tasks`` it has those that it has by default; ``dropout`` is the probability of dropping a unit, in [0, 1). Raises
    `InputError` on an unknown name or option, or whatever the benchmark refuses.
    """
    check("dropout", dropout, FractionBelowOne)
    if name == "custom":
        file = options.pop("file")
        function = getattr(load_file("benchmark.file", file), "make_benchmark", None)
        if not callable(function):
            raise InputError(f"benchmark.file: '{file}' has no function make_benchmark")
        refuse_unknown(name, options, function)
    else:
        function = benchmark.get(name)
    given = {} if tasks is None else {"tasks": tasks}
    made: Benchmark = function(dropout=dropout, **given, **options)
    return made
