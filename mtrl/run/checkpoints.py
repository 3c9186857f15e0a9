"""Checkpoints that are whole or absent, with the replay buffer written once and not once per checkpoint.

A checkpoint is a manifest (``step-<n>.json``) that names its files and their SHA-256: the state, and the pieces
of the replay stream that it needs. Each piece is written once, most of them in the background between checkpoints,
so that training hardly waits. The best policy so far is a small file of its own, which the manifest names too, so that
it goes back with the rest where a run goes back. The manifest holds its own checksum and is written last, so a
checkpoint that was interrupted does not exist. Files are plain tensors and numbers: loading one never runs code.
"""

import hashlib
import io
import json
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mtrl.errors import RunError
from mtrl.run.files import write_atomically, write_json
from mtrl.run.state import Stream

KEPT = 2
"""Checkpoints kept by default: the newest, and one to fall back to."""


class Checkpoints:
    """The checkpoints of one run, in a directory that is made when the first one is saved.

    A full disk is an `OSError`, also where a part was written in the background; earlier checkpoints stay intact.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keep = KEPT
        """How many of the newest are kept, at least 1."""
        self.passed_over = 0
        """How many damaged checkpoints `load` has passed over."""
        self.policies: list[dict[str, Any]] = []
        """Policies on the disk, each better than the one before it: ``step``, ``score``, ``file`` and ``sha256``."""
        self.stream_dropped = False
        """Whether what `load` has restored has no stream any more."""
        self._pieces: list[dict[str, Any]] = []  # of the stream, on the disk
        self._writing: Future[dict[str, Any]] | None = None
        self._writer = ThreadPoolExecutor(1)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        names = (path.stem.removeprefix("step-") for path in self.directory.glob("step-*.json"))
        return sorted(int(name) for name in names if name.isdecimal())

    def write_ahead(self, stream: Stream) -> None:
        """Writes what the stream has gained in the background, unless an earlier part is still being written."""
        if self._writing is None or self._writing.done():
            self._start_piece(stream)

    def save(self, step: int, state: dict[str, Any], stream: Stream | None = None) -> None:
        """Saves a checkpoint and removes all but the newest, and all policies but the last that they need.

        The state is as of `Resumable.state_dict`; the stream is written from where the checkpoint before, or
        `write_ahead`, left off.
        """
        if stream is not None:
            self._start_piece(stream)
            self._finish_piece()
            self._pieces = [p for p in self._pieces if p["stop"] > stream.added - stream.capacity]
        name = f"step-{step}.pt"
        if name in self._files(step):  # the checkpoint of this very step still needs it
            name = f"step-{step}-again.pt"
        self.policies = self.policies[-1:]
        stream_pieces = [] if stream is None else self._pieces
        self._write(
            {"step": step, "state": self._save(name, state), "stream": stream_pieces, "policies": self.policies}
        )
        self._remove_old()

    def add_policy(self, step: int, score: float, policy: dict[str, Any]) -> None:
        """Writes the weights of a policy that is better than the last one; `save`, or `amend`, makes it count."""
        self.policies = [*self.policies, self._save(f"policy-{step}.pt", policy, step=step) | {"score": score}]

    def amend(self) -> None:
        """Has the newest checkpoint name the policies that were added since it was saved, beside its own."""
        self._write(self._manifest(self.steps()[-1]) | {"policies": self.policies})

    def drop_stream(self) -> None:
        """Removes the stream from the disk; states and policies stay, and a run can go on from them without it."""
        for step in self.steps():
            with suppress(Exception):  # a damaged one needs nothing
                self._write(self._manifest(step) | {"stream": None})
        self._pieces = []
        self._remove_old()

    def load(self, stream: Stream | None = None) -> tuple[int, dict[str, Any]] | None:
        """The newest intact checkpoint's step and state; None where there is none at all. The stream is restored.

        A damaged one is passed over with a warning in favour of the one before; `RunError` if none is intact.
        """
        reasons = []
        for step in reversed(self.steps()):
            try:
                manifest = self._manifest(step)
                self.policies = manifest["policies"]
                state: dict[str, Any] = self._load(manifest["state"])
                if stream is not None:
                    for piece in manifest["stream"] or ():
                        stream.restore(piece["start"], self._load(piece))
            except Exception as error:  # a damaged file can fail in any way
                reasons.append(f"step {step}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
                continue
            self.stream_dropped, self._pieces = manifest["stream"] is None, manifest["stream"] or []
            self.passed_over += len(reasons)
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

    def state_of(self, step: int) -> dict[str, Any]:
        """The state of one checkpoint, without the stream; `RunError` or `OSError` if it is damaged or absent."""
        state: dict[str, Any] = self._load(self._manifest(step)["state"])
        return state

    def newest_policies(self) -> dict[int, dict[str, Any]]:
        """What the newest intact checkpoint knows of policies, by step; the best is last."""
        for step in reversed(self.steps()):
            with suppress(Exception):
                return {entry["step"]: entry for entry in self._manifest(step)["policies"]}
        return {}

    def policy_of(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The weights of one of `newest_policies`; `RunError` or `OSError` if they are damaged or absent."""
        weights: dict[str, Any] = self._load(entry)
        return weights

    def close(self) -> None:
        """Waits until nothing is being written any more."""
        self._writer.shutdown()

    # ---------------------------------------------------------------------------------------------- the files

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step}.json"

    def _manifest(self, step: int) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(self._path(step).read_bytes())
        if manifest.pop("sha256") != _digest_of(manifest):
            raise RunError(f"{self._path(step).name} does not match its checksum")
        return manifest

    def _files(self, step: int) -> set[str]:
        """What the checkpoint of a step needs besides its manifest; nothing, where there is none or it is damaged."""
        try:
            manifest = self._manifest(step)
            parts = manifest["state"], *(manifest["stream"] or ()), *manifest["policies"]
            return {entry["file"] for entry in parts}
        except Exception:
            return set()

    def _write(self, manifest: dict[str, Any]) -> None:
        write_json(self._path(manifest["step"]), manifest | {"sha256": _digest_of(manifest)})

    def _start_piece(self, stream: Stream) -> None:
        self._finish_piece()
        written = self._pieces[-1]["stop"] if self._pieces else 0
        start, stop = max(written, stream.added - stream.capacity), stream.added
        if start < stop:
            entries = stream.slice(start, stop)
            name = f"replay-{start}-{stop}.pt"
            self._writing = self._writer.submit(self._save, name, entries, start=start, stop=stop)

    def _finish_piece(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._pieces.append(writing.result())

    def _save(self, name: str, value: Any, **about: int) -> dict[str, Any]:
        """Writes a file; returns its entry in a manifest."""
        # Through memory: torch hides why it cannot write to a file, and the checksum is of what was meant.
        buffer = io.BytesIO()
        torch.save(value, buffer)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomically(self.directory / name, lambda file: file.write(buffer.getbuffer()))
        return {"file": name, "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(), **about}

    def _load(self, entry: dict[str, Any]) -> Any:
        path = self.directory / Path(entry["file"]).name  # whatever the manifest says, inside this directory
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise RunError(f"{path.name} does not match its checksum")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def _remove_old(self) -> None:
        steps = self.steps()
        for step in steps[: -self.keep]:
            self._path(step).unlink()
        needed = set[str]().union(*map(self._files, steps[-self.keep :]))
        for path in self.directory.glob("*"):  # nothing of a run that came without its checkpoints
            if path.suffix in (".pt", ".tmp") and path.name not in needed:
                path.unlink()


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
