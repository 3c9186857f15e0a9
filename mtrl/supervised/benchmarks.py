"""Benchmarks by name."""

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from mtrl.errors import InputError
from mtrl.ranges import Within, check
from mtrl.supervised.problem import Benchmark
from mtrl.supervised.registry import Registry, refuse_unknown

benchmark: Registry[Callable[..., Benchmark]] = Registry("benchmark", "mtrl.supervised.data")
"""The decorator of a function of ``tasks`` (a selection of its own), ``dropout`` and its options."""

Dropout = Annotated[float, Within("[0, 1)")]


def make(name: str, tasks: Sequence[str] | None = None, *, dropout: float = 0.0, **options: Any) -> Benchmark:
    """Makes the benchmark of a name; ``custom`` is the function ``make_benchmark`` in a file of the user's.

    Its model is initialised with the global random generator: seed that first.

    Args:
        name: a registered one, or ``custom`` (which needs the option ``file``).
        tasks: which of its tasks; all that it has by default if None.
        dropout: the probability of dropping a unit, in [0, 1).
        **options: the benchmark's own.

    Raises:
        InputError: on an unknown name or option, or whatever the benchmark refuses.
    """
    check("dropout", dropout, Dropout)
    given = {"dropout": dropout} | ({} if tasks is None else {"tasks": tasks})
    if name == "custom":
        function = _from_file(Path(options.pop("file")))
        valid = inspect.signature(function).parameters.keys() - {"tasks", "dropout"}
    else:
        function, valid = benchmark.get(name), set(benchmark.options(name))
    refuse_unknown(name, options, valid)
    return function(**given, **options)


def _from_file(path: Path) -> Callable[..., Benchmark]:
    if not path.is_file():
        raise InputError(f"benchmark.file: there is no file '{path}'")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"benchmark.file: '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "make_benchmark", None)):
        raise InputError(f"benchmark.file: '{path}' has no function make_benchmark")
    function: Callable[..., Benchmark] = module.make_benchmark
    return function
