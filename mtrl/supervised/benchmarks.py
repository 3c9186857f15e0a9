"""Benchmarks by name."""

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtrl.errors import InputError, unknown_name
from mtrl.supervised.data.multi_digits import multi_digits
from mtrl.supervised.data.multi_mnist import multi_mnist
from mtrl.supervised.problem import Benchmark

_REGISTRY: dict[str, Callable[..., Benchmark]] = {"multi_digits": multi_digits, "multi_mnist": multi_mnist}


def make(name: str, tasks: Sequence[str] | None = None, *, dropout: float = 0.0, **options: Any) -> Benchmark:
    """Makes the benchmark of a name; ``custom`` is the function ``make_benchmark`` in a file of the user's.

    Its model is initialised with the global random generator: seed that first.

    Args:
        name: ``multi_digits``, ``multi_mnist`` or ``custom`` (which needs the option ``file``).
        tasks: which of its tasks; all that it has by default if None.
        dropout: the probability of dropping a unit, in [0, 1).
        **options: the benchmark's own.

    Raises:
        InputError: on an unknown name or option, or whatever the benchmark refuses.
    """
    if not 0 <= dropout < 1:
        raise InputError(f"dropout: expected a number in [0, 1), got {dropout}")
    if name == "custom":
        function = _from_file(Path(options.pop("file")))
    elif name in _REGISTRY:
        function = _REGISTRY[name]
    else:
        raise unknown_name("benchmark", name, [*_REGISTRY, "custom"])
    valid = inspect.signature(function).parameters
    for option in options:
        if option not in valid:
            raise unknown_name(f"option of {name}", option, set(valid) - {"tasks", "dropout"})
    if tasks is not None:
        options["tasks"] = tasks
    return function(dropout=dropout, **options)


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
