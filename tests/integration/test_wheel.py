"""The wheel holds the library alone, and torch and numpy are all that it needs."""

import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

import mtrl

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)],
        check=True,
    )
    return next(folder.glob("mtrl-*.whl"))


def needed(requirement: str, found: set[str]) -> set[str]:
    """The installed distributions that a requirement brings, its own requirements included, extras left out."""
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
    if "extra ==" in requirement or name in found:
        return found
    try:
        installed = distribution(name)
    except ModuleNotFoundError:  # for another platform
        return found
    found.add(name)
    for more in installed.requires or ():
        needed(more, found)
    return found


def test_it_holds_mtrl_alone(wheel: Path) -> None:
    assert wheel.name.startswith(f"mtrl-{mtrl.__version__}-")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mtrl"}
    assert {"mtrl/py.typed", "mtrl/report/page.py", "mtrl/report/page.html.j2", "mtrl/report/page.css"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_index_would_take_it(wheel: Path) -> None:
    check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    told = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (told.returncode, "PASSED" in told.stdout) == (0, True), told.stdout


def test_it_works_in_an_environment_with_only_its_requirements(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    metadata = next(site.glob("mtrl-*.dist-info/METADATA")).read_text()
    requirements = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    assert {re.split(r"[^\w]", r, maxsplit=1)[0] for r in requirements if "extra ==" not in r} == {"torch", "numpy"}
    for name in set().union(*(needed(requirement, set()) for requirement in requirements)):
        files = distribution(name).files or ()
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    code = """
import importlib.util
for name in ("gymnasium", "metaworld", "mujoco", "hydra", "tensorboard", "rich", "scipy", "agents", "envs"):
    assert importlib.util.find_spec(name) is None, name
import torch
from mtrl import combiners, gradients
encoder, heads = torch.nn.Linear(3, 4), torch.nn.ModuleList([torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)])
z = encoder(torch.randn(5, 3))
losses = torch.stack([head(z).square().mean() for head in heads])
for name in combiners.names():
    options = {"fixed": {"weights": [1.0, 2.0]}, "modo": {"halves": False}}.get(name, {})
    combiner = combiners.make(name, num_tasks=2, seed=0, **options)
    gradients.backward(losses, combiner, shared=encoder.parameters(), specific=heads, retain_graph=True)
assert encoder.weight.grad.isfinite().all()
"""
    python = tmp_path / "venv" / "bin" / "python"
    result = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
