"""Scripts as a user starts them, in the process of the tests: a process of its own takes seconds to load torch."""

import copy
import io
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
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


class Done(NamedTuple):
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


def run(script: str, *arguments: str, folder: Path = ROOT) -> Done:
    """Runs a file of ``scripts/`` with a command line in a folder; signals and sweeps need `subprocess`."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    with _as_before(), chdir(folder), redirect_stdout(out), redirect_stderr(err):
        sys.argv[1:] = arguments
        GlobalHydra.instance().clear()
        try:
            runpy.run_path(os.path.relpath(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Done(code, out.getvalue(), err.getvalue())


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
