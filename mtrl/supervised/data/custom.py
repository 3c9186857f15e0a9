"""A benchmark in a file of the user's; `mtrl.supervised.data.example` is one to copy."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtrl.errors import InputError
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.problem import Benchmark
from mtrl.supervised.registry import call


@benchmark("custom")
def custom(tasks: Sequence[str] | None = None, dropout: float = 0.0, *, file: str, **options: Any) -> Benchmark:
    """The function ``make_benchmark`` in a file of the user's.

    Raises:
        InputError: if there is no such file or function, or it has no such option.
    """
    return call("custom", _from_file(Path(file)), {"tasks": tasks, "dropout": dropout}, options)


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
