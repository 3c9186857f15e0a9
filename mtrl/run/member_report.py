"""What a member of a sweep tells its sweep: a file that an environment variable names."""

import json
import os
from pathlib import Path
from typing import Any

from mtrl.run.files import write_json

VARIABLE = "MTRL_SWEEP_REPORT"
"""The environment variable with the file's path."""


def report(**entries: Any) -> None:
    """Adds to what this process told the sweep that it is a member of; nothing happens outside of a sweep."""
    if name := os.environ.get(VARIABLE):
        path = Path(name)
        write_json(path, read_report(path) | entries)


def read_report(path: Path) -> dict[str, Any]:
    """What a member told; nothing where it has not told anything yet."""
    if not path.exists():
        return {}
    told: dict[str, Any] = json.loads(path.read_text())
    return told
