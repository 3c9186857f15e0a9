"""Scripts as a user starts them, but with torch loaded, which takes seconds: in this process, or in others like it."""

import copy
import io
import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import scripts.supervised
import scripts.train  # noqa: F401  # they register configurations and methods, once in a process
from mtrl import combiners
from mtrl.supervised import benchmarks, methods

ROOT = Path(__file__).parents[1]

multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["tests.commands", "torch._dynamo", "metaworld.env_dict"]
)


class Done(NamedTuple):
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


def run(script: str, *arguments: str, folder: Path = ROOT) -> Done:
    """Runs a file of ``scripts/`` with a command line in a folder; for signals there is `Started`."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    with _as_before(), chdir(folder), redirect_stdout(out), redirect_stderr(err):
        sys.argv[1:] = arguments
        GlobalHydra.instance().clear()
        try:
            runpy.run_path(os.path.relpath(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Done(code, out.getvalue(), err.getvalue())


class Started(ForkServerProcess):
    """A script in a process of its own, which begins with everything loaded; what it says on standard error is kept.

    Args:
        script: a file of ``scripts/``, or the path of another.
        arguments: its command line.
        errors: the file for its standard error, to which it appends.
    """

    def __init__(self, script: str, *arguments: str, errors: Path) -> None:
        path = str(ROOT / "scripts" / script)
        super().__init__(target=_alone, args=(path, arguments, str(errors)))
        self.errors = errors
        self.start()

    def ended(self, seconds: float = 600) -> tuple[int | None, str]:
        """Waits for its end, and makes one after so many seconds: the exit code, and what it said on standard error."""
        self.join(seconds)
        self.kill()
        self.join()
        return self.exitcode, self.errors.read_text()


def _alone(path: str, arguments: tuple[str, ...], errors: str) -> None:
    os.chdir(ROOT)
    for descriptor, file in ((1, os.devnull), (2, errors)):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    torch.set_num_threads(1)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


@contextmanager
def _as_before() -> Iterator[None]:
    """Puts back what a script sets for the rest of its process."""
    threads, configurations = torch.get_num_threads(), ConfigStore.instance().repo
    groups = {key: copy.copy(value) for key, value in configurations.items() if key != "hydra"}  # but for its plugins
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*sys.argv])
        for registry in (combiners.register, benchmarks.benchmark, methods.method):
            patch.setattr(registry, "_entries", dict(registry._entries))
        yield
    configurations.update(groups)
    torch.set_num_threads(threads)
