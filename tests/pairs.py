"""Two processes of one group, by a script that each runs."""

import json
from pathlib import Path
from typing import Any

from tests.commands import Started


def found_by_two(script: Path, folder: Path) -> list[dict[str, Any]]:
    """What each wrote into ``RANK.json`` of the folder; a script gets its rank, a store's file and the folder."""
    words = [(str(rank), str(folder / "store"), str(folder)) for rank in range(2)]
    started = [Started(str(script), *own, errors=folder / f"{own[0]}.err") for own in words]
    ended = [process.ended() for process in started]
    assert [code for code, _ in ended] == [0, 0], ended
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
