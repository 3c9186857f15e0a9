"""Data that an installed package ships."""

import importlib.util
from pathlib import Path

from mtrl.errors import InputError


def data_of(package: str, data_dir: str | None, needed: str) -> Path:
    """The folder that is named, or where none is, ``data`` in a package; `InputError`, ``needed``, without either."""
    if data_dir is not None:
        return Path(data_dir)
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise InputError(needed)
    return Path(found.submodule_search_locations[0]) / "data"
