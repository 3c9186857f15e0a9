"""Checkpoints that are whole or absent, with the replay buffer written once and not once per checkpoint.

A checkpoint is a manifest (``step-<n>.json``) that names its files and their SHA-256: the state, and the pieces
of the replay stream that it needs. Each checkpoint writes only the transitions added since the one before. The
manifest is written last, so a checkpoint that was interrupted does not exist. Files are plain tensors and
numbers: loading one never runs code.
"""

import hashlib
import json
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor

from mtrl.errors import RunError
from mtrl.experiment.files import write_atomically, write_json

KEPT = 2
"""Checkpoints kept: the newest, and one to fall back to."""


class Stream(Protocol):
    """An append-only stream of which the last ``capacity`` entries count: what a replay buffer is to a disk."""

    added: int
    capacity: int

    def slice(self, start: int, stop: int) -> dict[str, Tensor]:
        """The entries numbered ``start`` to ``stop``, on the CPU."""

    def restore(self, start: int, entries: dict[str, Tensor]) -> None:
        """Writes back a `slice`."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: where they are; made when the first one is saved.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.directory.glob("step-*.json"))

    def save(self, step: int, state: dict[str, Any], stream: Stream | None = None) -> None:
        """Saves a checkpoint and removes all but the last two.

        Args:
            step: the step that it is of.
            state: nested dictionaries and lists of tensors, numbers, strings and None.
            stream: written from where the checkpoint before left off.

        Raises:
            OSError: as the file system does (a full disk); earlier checkpoints stay intact.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        known = self.steps()
        pieces: list[dict[str, Any]] = []
        if stream is not None:
            oldest = stream.added - stream.capacity
            if known:
                pieces = [p for p in self._manifest(known[-1])["stream"] if p["stop"] > oldest]
            start = max(pieces[-1]["stop"] if pieces else 0, oldest)
            if stream.added > start:
                name = f"replay-{start}-{stream.added}.pt"
                digest = self._save(name, stream.slice(start, stream.added))
                pieces.append({"file": name, "sha256": digest, "start": start, "stop": stream.added})
        name = f"step-{step}.pt"
        manifest = {
            "step": step,
            "state": {"file": name, "sha256": self._save(name, state)},
            "stream": pieces,
        }
        write_json(self._path(step), manifest)
        self._remove_old()

    def load(self, stream: Stream | None = None) -> tuple[int, dict[str, Any]] | None:
        """Loads the newest intact checkpoint; None where there is none at all.

        A damaged one is passed over with a warning in favour of the one before.

        Args:
            stream: gets its entries back.

        Raises:
            RunError: if there are checkpoints, but none is intact.
        """
        reasons = []
        for step in reversed(self.steps()):
            try:
                manifest = self._manifest(step)
                state: dict[str, Any] = self._load(manifest["state"])
                if stream is not None:
                    for piece in manifest["stream"]:
                        stream.restore(piece["start"], self._load(piece))
            except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError) as error:
                reasons.append(f"step {step}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
                continue
            if reasons:
                warnings.warn(f"damaged checkpoint passed over ({'; '.join(reasons)})", stacklevel=2)
            return step, state
        if reasons:
            raise RunError(f"no intact checkpoint in {self.directory} ({'; '.join(reasons)})")
        return None

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: damaged ones, once a run has gone back before them."""
        for later in self.steps():
            if later > step:
                self._path(later).unlink()

    # ---------------------------------------------------------------------------------------------- the files

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step}.json"

    def _manifest(self, step: int) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(self._path(step).read_text())
        return manifest

    def _save(self, name: str, value: Any) -> str:
        path = self.directory / name
        write_atomically(path, lambda file: torch.save(value, file))
        return _sha256(path)

    def _load(self, entry: dict[str, Any]) -> Any:
        path = self.directory / Path(entry["file"]).name
        if _sha256(path) != entry["sha256"]:
            raise RunError(f"{path.name} does not match its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)

    def _remove_old(self) -> None:
        steps = self.steps()
        for step in steps[:-KEPT]:
            self._path(step).unlink()
        needed: set[str] = set()
        for step in steps[-KEPT:]:
            manifest = self._manifest(step)
            needed |= {manifest["state"]["file"], *(piece["file"] for piece in manifest["stream"])}
        for path in self.directory.glob("*.pt*"):
            if path.name not in needed:
                path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
