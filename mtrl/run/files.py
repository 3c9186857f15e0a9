"""Files that are either whole or absent."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mtrl.run.machine import sync, sync_directory


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has an error say which file it is about: "No space left on device" does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes to a temporary name, flushes to the disk and renames, so that ``path`` is never half-written.

    On an `OSError` (a full disk), ``path`` is as it was and the temporary file is gone.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            write(file)
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)  # the new name lasts through a power failure
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def finite(value: Any) -> Any:
    """Nested dictionaries and lists with None in place of numbers that are not finite, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, indented for people."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
