"""Two processes of one group, by a script that each runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.commands import ROOT


def found_by_two(script: Path, folder: Path) -> list[dict[str, Any]]:
    """What each wrote into ``RANK.json`` of the folder; a script gets its rank, a store's file and the folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(folder / "store"), str(folder)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
