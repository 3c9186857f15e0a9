"""Imports go down the rooms of the house, never up and never in a circle."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "scripts": {"agents", "envs", "mtrl"},
    "agents": {"mtrl"},
    "envs": {"mtrl"},
    "mtrl": set(),
}
"""What each package may import of the others."""
LIBRARY = {
    "combiners": set(),
    "gradients": {"combiners"},
    "run": set(),
    "rl": {"run", "gradients", "combiners"},
    "supervised": {"run", "gradients", "combiners"},
    "linear": {"run", "gradients", "combiners"},
    "sweep": {"run"},
    "report": {"run", "combiners"},
}
"""What each room of `mtrl` may import of the others; the files that lie in none (errors, ranges) serve all."""
ENVIRONMENTS = {"gymnasium", "metaworld", "mujoco"}
"""What only environments know."""


def modules() -> dict[str, Path]:
    """Every module of the house, by its name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ROOMS
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """What a module imports anywhere, also in a function or for the type checker alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """What each module imports, by name."""
    known = modules()
    return {name: set(imported(path, known)) for name, path in known.items()}


def room(name: str) -> tuple[str, str]:
    """The package of a module, and the folder of `mtrl` that it is in, if it is in one."""
    package, _, rest = name.partition(".")
    folder = rest.partition(".")[0]
    return package, folder if package == "mtrl" and (ROOT / package / folder).is_dir() else ""


def foreign(graph: dict[str, set[str]], refused: Callable[[str, str], bool]) -> list[str]:
    """The imports to be refused, of a module and a package."""
    return [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if refused(name, other.partition(".")[0])
    ]


def test_there_is_no_circle(graph: dict[str, set[str]]) -> None:
    ours = {name: {other for other in others if other in graph} - {name} for name, others in graph.items()}
    try:
        TopologicalSorter(ours).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_no_import_goes_up(graph: dict[str, set[str]]) -> None:
    wrong = []
    for name, others in graph.items():
        package, folder = room(name)
        for other in others & graph.keys():
            its_package, its_folder = room(other)
            if package != its_package:
                allowed = its_package in ROOMS[package]
            else:
                allowed = its_folder in ("", folder) or its_folder in LIBRARY.get(folder, ())
            if not allowed:
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_the_library_knows_no_environment(graph: dict[str, set[str]]) -> None:
    assert not foreign(graph, lambda name, other: room(name)[0] == "mtrl" and other in ENVIRONMENTS)


def test_combiners_and_gradients_need_torch_and_numpy_alone(graph: dict[str, set[str]]) -> None:
    needed = {*sys.stdlib_module_names, "mtrl", "torch", "numpy"}
    core = ("mtrl", ""), ("mtrl", "combiners"), ("mtrl", "gradients")
    assert not foreign(graph, lambda name, other: room(name) in core and other not in needed)


@pytest.mark.parametrize(
    ("wanted", "unwanted"),
    [
        (
            "mtrl.combiners, mtrl.gradients",
            {*ENVIRONMENTS, "hydra", "omegaconf", "rich", "scipy", "tensorboard", "yaml"},
        ),
        ("mtrl.run.directory", {*ENVIRONMENTS, "hydra", "ray", "wandb"}),
        ("scripts.train", {"ray", "wandb", "torchjd", "joblib", "submitit"}),
        ("envs.worker, envs.gymnasium, envs.metaworld.task", {"torch", "hydra", "PIL"}),
    ],
)
def test_what_is_not_asked_for_is_not_imported(wanted: str, unwanted: set[str]) -> None:
    code = f"import sys, {wanted}; print(*sorted({unwanted!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
