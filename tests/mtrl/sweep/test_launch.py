"""What a sweep makes of its command line."""

import re
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mtrl.sweep.launch import run_dir_of, size_of
from mtrl.sweep.supervision import at_one_time, requested, sweep_directory
from mtrl.text import quoted


def test_run_directories_tell_what_a_sweep_varies_beyond_their_default_names() -> None:
    overrides = ["seed=1", "agent.hidden_sizes=[64,64]", "+combiner.c=0.5", "agent.discount=0.9"]
    varied = {"agent.hidden_sizes", "combiner.c"}
    assert run_dir_of("x", overrides, varied) == "x/{name}-agent.hidden_sizes_64_64-combiner.c_0.5"
    assert run_dir_of("x", overrides, ()) == "x/{name}"


@pytest.mark.parametrize(
    ("swept", "size"),
    [
        ([], 1),
        (["seed=1,2,3"], 3),
        (["seed=range(10)", "combiner=unitary,pcgrad", "weights=[1,2],[3,4]"], 40),
        (["combiner=glob(*)"], None),
        (["agent.learning_rate=interval(0,1)", "seed=1,2"], None),
    ],
)
def test_the_number_of_members_is_known_unless_hydra_alone_knows_it(swept: list[str], size: int | None) -> None:
    assert size_of(OverridesParser.create().parse_overrides(swept)) == size


@pytest.mark.parametrize("value", ["plain", "with space, comma", "it's", "a=b", "${seed}/{name}"])
def test_a_quoted_value_is_read_as_it_is(value: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"run_dir={quoted(value)}"])
    assert not override.is_sweep_override()
    read = override.value()
    assert getattr(read, "text", read) == value


def test_what_a_command_line_says_about_a_sweep() -> None:
    assert requested(["train.py", "-m", "seed=1,2"])
    assert requested(["train.py", "seed=1,2", "hydra.mode=MULTIRUN"])
    assert not requested(["train.py", "seed=1"])
    assert sweep_directory(["train.py", "-m"]) == Path("runs")
    assert sweep_directory(["hydra.sweep.dir=a", "hydra.sweep.dir='b c'"]) == Path("b c")


def test_values_that_are_equal_once_cleaned_have_names_of_their_own_that_never_change() -> None:
    values = ["[[1,2],[3]]", "[[1],[2,3]]", "{a:[1],b:[2]}", "{a:[1,b],2:[]}", "'x y'", "'x/y'", "[1,2]", "-0.5", "0.5"]
    names = [run_dir_of("x", [f"key={value}"], {"key"}) for value in values]
    assert len(set(names)) == len(names)
    assert names == [run_dir_of("x", [f"key={value}"], {"key"}) for value in values]
    assert names[-3:] == ["x/{name}-key_1_2", "x/{name}-key_-0.5", "x/{name}-key_0.5"]
    assert all(re.fullmatch(r"x/\{name\}-[a-zA-Z0-9_.-]+", name) for name in names)


def test_a_sweep_has_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", lambda: time.struct_time((2026, 1, 2, 3, 4, 5, 4, 2, 0)))
    given = ["train.py", "-m", "hydra.sweep.dir='runs/${now:%Y-%m-%d}/${now:%H-%M-%S} ${combiner.name}'", "seed=1,2"]
    fixed = ["train.py", "-m", "hydra.sweep.dir='runs/2026-01-02/03-04-05 ${combiner.name}'", "seed=1,2"]
    assert at_one_time(given) == at_one_time(fixed) == fixed
