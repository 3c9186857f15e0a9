"""Names of files as odd as they come: what is typed, printed or kept means the same path again."""

import io
import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from rich.console import Console

from mtrl.errors import InputError
from mtrl.report import learning_curve
from mtrl.run.directory import RunDirectory, directory_of, read_config
from mtrl.text import argument, quoted, unquoted
from scripts.entry import as_typed
from tests.reliability.runs import fuzzed, refused

ODD = (
    *(
        "lr=0.1",
        "ü",
        "a,b",
        "[red]",
        "[/final]",
        "[/]",
        ":smile:",
        "it's",
        '"q"',
        "a b",
        " a",
        "a ",
        "\\",
        "a\\",
        "\\'",
    ),
    *("${seed}", "\\${seed}", "\\\\${x", "$(ls)", "`ls`", "{name}", "{a:1}", "[1,2", "(x)", "~", "~x", "-m", "--help"),
    *("null", "None", "true", "nan", "-inf", "007", "1_000", "1e3", "0x10", "???", "*", "?", "a;b", "a&b", "#", "%s"),
    *(
        "new\nline",
        "\\\n",
        "tab\t",
        "\r",
        "\x07",
        "\x1b[31m",
        "\u2028",
        "é́",
        "💥",
        "e\u0301",
        "=",
        "a==b",
        "@",
        "!",
        "a:b",
        "mgda+unitary",
        "1e+5",
        "<>",
    ),
)
PIECES = st.sampled_from(ODD) | st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=8)
NAMES = (
    st.lists(PIECES, min_size=1, max_size=4)
    .map("".join)
    .filter(lambda name: name not in ("", ".", "..") and len(name.encode()) <= 255)
)


def read(words: list[str]) -> Any:
    """What a script is given by its only argument."""
    (override,) = OverridesParser.create().parse_overrides(as_typed(words))
    assert not override.is_sweep_override()
    value = override.value()
    return OmegaConf.create({"key": value.text if isinstance(value, QuotedString) else value}).key


def odd(test: Any) -> Any:
    for name in ODD:
        test = example(name)(test)
    return fuzzed(given(NAMES)(test))


@odd
def test_a_printed_argument_is_read_as_the_path_that_it_is_of(name: str) -> None:
    for path in (Path(name), Path("runs") / name, Path("/x") / name / name):
        (word,) = shlex.split(argument("run", path))
        assert Path(read([word])) == path


@odd
def test_a_path_is_read_as_it_was_typed(name: str) -> None:
    path = f"runs/{name}"
    if "${" not in name and "\\" not in name and not name[-1].isspace():  # Hydra's own way to quote
        assert read([f"run_dir={path}"]) == path
    assert unquoted(quoted(path)) == path


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning_curve, "_draw", lambda run, file: None)
        yield


CONFIG = {
    "seed": 1,
    "run_dir": None,
    "tasks": ["a"],
    "agent": {},
    "benchmark": {"name": "x"},
    "combiner": {"name": "y"},
}
SUMMARY = {
    "final": {"success_mean": 0.5, "success": {"a": 0.5}},
    "best": {"step": 1, "success_mean": 0.5, "of_evaluations": 1},
    "episodes_per_evaluation": 2,
}


@odd
def test_a_run_there_goes_on_and_says_where_it_is(folder: Path, name: str) -> None:
    path = directory_of(str(folder / name), "default")
    shutil.rmtree(path, ignore_errors=True)
    for _ in range(2):
        RunDirectory(path, CONFIG).close()
    assert read_config(path)["run_dir"] == str(path)
    (path / "summary.json").write_text(json.dumps(SUMMARY))
    console = Console(file=io.StringIO(), width=80)
    learning_curve.print_outcome(path, console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert f"run directory    {path}\n" in printed
    command = printed.partition("try next         ")[2].rpartition("\n                 python")[0]
    program, script, word = shlex.split(command)
    assert (program, script) == ("python", "scripts/evaluate.py")
    assert Path(read([word])).samefile(path)


@fuzzed
@given(st.text(st.characters(exclude_characters="/\0"), min_size=200, max_size=400))
@example("x" * 255)
@example("x" * 256)
@example("\udcff")
def test_long_names_are_cut_the_same_each_time_and_stay_apart(name: str) -> None:
    try:
        path, other = (directory_of(f"runs/{text}/{{name}}", "y") for text in (name, name + "z"))
    except InputError as error:
        refused(error)
        return
    assert max(len(part.encode()) for part in path.parts) <= 255
    assert path == directory_of(f"runs/{name}/{{name}}", "y") != other
    if len(name.encode()) <= 255:
        assert path == Path("runs") / name / "y"
