"""What a member of a sweep tells its sweep: entries of a JSON file that an environment variable names."""

import json
import os
from pathlib import Path
from typing import Any

from mtrl.run.files import write_json

VARIABLE = "MTRL_SWEEP_REPORT"
"""The environment variable with the file's path."""


def report(**entries: Any) -> None:
    """Adds to what is known of this process, an ``mtrl.sweep.member.Member``; nothing happens outside of a sweep."""
    if name := os.environ.get(VARIABLE):
        path = Path(name)
        write_json(path, json.loads(path.read_text()) | entries)
