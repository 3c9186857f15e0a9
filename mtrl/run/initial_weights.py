"""The weights of another run, for ``init_from=RUN``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mtrl.errors import InputError
from mtrl.run.directory import read_config, stored_checkpoints


def state_of_run(directory: Path, kind: str) -> dict[str, Any]:
    """The state in the newest intact checkpoint of a run, finished or not.

    ``kind`` is ``agent`` or ``model``, what the state has to hold; `InputError` if it is not such a run's directory or
    has no checkpoint, `RunError` if none is intact.
    """
    read_config(directory)
    loaded = stored_checkpoints(directory).load()
    assert loaded is not None
    if not isinstance(loaded[1].get(kind), dict):
        other = "reinforcement learning" if kind == "agent" else "supervised learning"
        raise InputError(f"init_from: the run in '{directory}' is not one of {other}")
    return loaded[1]


def check_weights(own: Mapping[str, Tensor], theirs: Mapping[str, Any], where: str) -> None:
    """Raises `InputError`, which names the first, unless all of one's own tensors are there in the same shape."""
    for name, tensor in own.items():
        found = theirs.get(name)
        if not isinstance(found, Tensor) or found.shape != tensor.shape:
            there = f"of shape {list(found.shape)}" if isinstance(found, Tensor) else "missing"
            raise InputError(
                f"init_from: {where} '{name}' has shape {list(tensor.shape)} here, but there it is {there}: "
                "tasks and networks have to be those of that run"
            )
    for name in theirs:
        if name not in own:
            raise InputError(f"init_from: that run's {where} has '{name}', which there is not here")
