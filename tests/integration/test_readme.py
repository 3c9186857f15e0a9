"""What the README shows works as written."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from agents.networks import Actor
from mtrl import combiners
from mtrl.run.directory import read_config
from scripts.build import make_combiners, task_names
from tests.configured import configured

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OWN = README[README.index("### Your own") :]
TRAINING = re.findall(r"^python scripts/train.py (?!.*plugins=)(.*)$", README, re.MULTILINE)


def example(word: str) -> str:
    """The README's Python code with a word in it."""
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in code]
    return str(code)


def test_the_library_example_fills_gradients() -> None:
    names: dict[str, object] = {}
    exec(example("combiners.make("), names)
    encoder = names["encoder"]
    assert isinstance(encoder, torch.nn.Module)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_an_exported_policy_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network: dict[str, Any] = {"observation_size": 39, "action_size": 4, "hidden_sizes": [8], "num_tasks": 2}
    weights = Actor(**network).state_dict()
    torch.save({"network": network, "weights": weights, "tasks": ["a", "b"]}, tmp_path / "policy.pt")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example("policy.pt"), names)
    assert names["act"](np.ones((2, 39), np.float32)).shape == (2, 4)


@pytest.mark.parametrize("line", TRAINING)
def test_training_commands_are_valid(line: str) -> None:
    overrides = OverridesParser.create().parse_overrides([part for part in shlex.split(line) if part != "-m"])
    first = [
        f"{one.key_or_group}={next(one.sweep_string_iterator())}" if one.is_sweep_override() else str(one.input_line)
        for one in overrides
    ]
    config = configured(*first)
    make_combiners(config, len(task_names(config)))


@pytest.mark.parametrize(("benchmark", "key", "value"), [("quickstart", "steps", 20_000), ("mt50", "batch_size", 26)])
def test_a_benchmark_sets_its_own_defaults(benchmark: str, key: str, value: int) -> None:
    assert getattr(configured(f"benchmark={benchmark}"), key) == value
    assert getattr(configured(f"benchmark={benchmark}", f"{key}=7"), key) == 7


def test_the_table_of_methods_is_the_registry() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (\w+) \|", README, re.MULTILINE)
    assert sorted(name for name, _ in rows) == combiners.names()
    assert {name: needs.lower() for name, needs in rows} == {n: combiners.get(n).needs for n in combiners.names()}


def test_the_methods_that_need_positive_losses_are_named() -> None:
    named = re.search(r"^Methods that need positive losses \(([^)]*)\)", README, re.MULTILINE)
    assert named is not None
    positive = [name for name in combiners.names() if combiners.get(name).positive_losses]
    assert re.findall(r"`(\w+)`", named[1]) == positive


def test_every_file_it_names_exists() -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"(?<![\w/])mtrl/[\w/.]+", README):
        assert (ROOT / path).exists(), path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with the README's method of one's own."""
    code = re.search(r"```python\n(.*?)```", OWN, re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) < 30
    (tmp_path / "mine.py").write_text(code[1])
    return tmp_path


def run(folder: Path, *words: str, **environment: str) -> str:
    """Runs Python in a folder; what it prints."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def line_of_own(program: str) -> list[str]:
    """The arguments of the line below "Your own" that runs a program, its path made absolute."""
    line = re.search(rf"^(\w+=\S+ )?python (-m )?{program} .*$", OWN, re.MULTILINE)
    assert line is not None
    words = shlex.split(line[0])
    words = words[words.index("python") + 1 :]
    return [str(ROOT / word) if (ROOT / word).exists() else word for word in words]


def test_a_method_of_ones_own_trains_and_is_evaluated(own: Path) -> None:
    small = ("tasks=[reach-v3]", "benchmark.horizon=10", "agent.hidden_sizes=[8,8]", "batch_size=4", "steps=30")
    quick = ("warmup_steps=10", "eval.episodes=1", "device=cpu", "threads=1", "num_workers=1", "run_dir=run")
    run(own, *line_of_own("scripts/train.py"), *small, *quick)
    config = read_config(own / "run")
    assert config["combiner"] == {"name": "softmax", "temperature": 2}
    assert config["plugins"] == [str(own / "mine.py")]
    evaluate = str(ROOT / "scripts" / "evaluate.py")
    run(own.parent, evaluate, f"run={own / 'run'}", "episodes=1", "device=cpu", "num_workers=1")


def test_a_method_of_ones_own_is_measured(own: Path) -> None:
    run(own, *line_of_own("scripts/benchmark.py"), "--cases", "2x4", "--hidden-sizes", "8", "--repeats", "1")
    rows = json.loads((own / "runs" / "benchmark" / "overhead.json").read_text())["rows"]
    assert "softmax" in {row["method"] for row in rows}


def test_a_method_of_ones_own_has_every_property(own: Path) -> None:
    printed = run(own, *line_of_own("pytest"), "-p", "no:cacheprovider", MTRL_PLUGINS="mine.py")
    passed = re.search(r"^(\d+) passed", printed, re.MULTILINE)
    assert passed is not None, printed
    assert int(passed[1]) > 50
