"""What a member of a sweep tells the sweep about itself."""

import json
import os
from pathlib import Path
from typing import Any

from mtrl.run.files import write_json

MEMBER_REPORT = "MTRL_SWEEP_REPORT"
"""The environment variable that names the file to tell it in."""


def report(**entries: Any) -> None:
    """Tells the sweep that this process is a member of; nothing happens outside of a sweep."""
    if name := os.environ.get(MEMBER_REPORT):
        path = Path(name)
        told = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, told | entries)
