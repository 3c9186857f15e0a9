"""What the README shows works as written."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from mtrl import combiners
from scripts.build import make_combiners, task_names
from tests.configured import configured

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_library_example_fills_gradients() -> None:
    code = re.search(r"```python\n(import torch.*?)```", README, re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1], names)
    encoder = names["encoder"]
    assert isinstance(encoder, torch.nn.Module)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("line", re.findall(r"^python scripts/train.py (.*)$", README, re.MULTILINE))
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


def test_every_method_has_a_row_and_every_file_it_names_exists() -> None:
    for name in combiners.names():
        assert f"| `{name}` |" in README
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / path).exists(), path
