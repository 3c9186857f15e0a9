"""Python files of the user's own, which register methods when they are loaded."""

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from mtrl.errors import InputError


def load_file(key: str, file: str | Path) -> ModuleType:
    """The module that a Python file holds, executed at the first call alone; ``key`` says where the file was named.

    Raises:
        InputError: if there is no such file, or it fails; the message tells the line.
    """
    path = Path(file).absolute()
    name = str(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise InputError(f"{key}: there is no Python file '{file}'")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        where = f"line {lines[-1]} of '{file}'" if lines else f"'{file}'"
        raise InputError(f"{key}: {where} fails: {type(error).__name__}: {error}") from error
    return module
