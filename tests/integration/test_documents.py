"""What README and documentation show works as written."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import mtrl
from agents.networks import Actor
from mtrl import combiners
from mtrl.ranges import check_fields
from mtrl.run.directory import read_config
from mtrl.supervised import benchmarks, methods
from scripts import compare, documentation, export, grid, linear_mtl, supervised  # noqa: F401  # their configurations' schemas
from scripts import evaluate as evaluation
from scripts.build import make_combiners, make_family
from scripts.configuration import TrainConfig
from scripts.entry import CONFIGS, SUPERVISED_CONFIGS, as_typed
from tests import commands
from tests.configured import configured

ROOT = Path(__file__).parents[2]
DOCUMENTS = {path.relative_to(ROOT): path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]}
METHODS, OWN = DOCUMENTS[Path("docs/methods.md")], DOCUMENTS[Path("docs/own_method.md")]
BLOCKS = {path: re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) for path, text in DOCUMENTS.items()}
EXAMPLES = [(str(path), code) for path, blocks in BLOCKS.items() for language, code in blocks if language == "python"]
COMMANDS = sorted(
    {
        line
        for blocks in BLOCKS.values()
        for language, block in blocks
        for line in re.findall(r"^(?:python|torchrun \S+) scripts/(.*)$", block.replace("\\\n", " "), re.MULTILINE)
        if not language and "..." not in line and not line.startswith("benchmark.py")
    }
)
CONFIGURATIONS = {
    "train.py": (CONFIGS, "train"),
    "evaluate.py": (CONFIGS, "evaluate"),
    "export.py": (CONFIGS, "export"),
    "compare.py": (CONFIGS, "compare"),
    "linear_mtl.py": (CONFIGS, "linear_mtl"),
    "supervised.py": (SUPERVISED_CONFIGS, "supervised"),
    "grid.py": (SUPERVISED_CONFIGS, "supervised"),
}


@pytest.mark.parametrize(
    ("script", "schema"),
    [
        ("evaluate.py", evaluation.EvaluateConfig),
        ("export.py", export.ExportConfig),
        ("compare.py", compare.CompareConfig),
        ("linear_mtl.py", linear_mtl.LinearConfig),
        ("grid.py", grid.GridConfig),
    ],
)
def test_help_tells_every_key_and_how_to_begin(script: str, schema: type) -> None:
    done = commands.run(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"`python scripts/{script} " in done.stdout
    keys = re.findall(r"^(\w+): ", done.stdout, re.MULTILINE)
    assert {field.name for field in fields(schema)} - set(keys) <= {"debug", "grid"}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of Lightning's own use of torch
@pytest.mark.parametrize(("document", "code"), EXAMPLES)
def test_code_runs(
    document: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network: dict[str, Any] = {"observation_size": 39, "action_size": 4, "hidden_sizes": [8], "num_tasks": 2}
    saved = {"network": network, "weights": Actor(**network).state_dict(), "tasks": ["a", "b"]}
    torch.save(saved, tmp_path / "policy.pt")
    quoted = re.findall("^> (.*)$", DOCUMENTS[Path(document)], re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    for registry in (combiners.register, benchmarks.benchmark, methods.method):  # what a page adds stays in this test
        monkeypatch.setattr(registry, "_entries", {name: registry.get(name) for name in registry.names()})
    names: dict[str, Any] = {}
    exec(compile(code, document, "exec"), names)
    for trained in (names[name] for name in ("encoder", "network", "model") if "backward" in code and name in names):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())
    if "verdict_sentences" in code:
        assert capsys.readouterr().out.splitlines() == quoted
    if "act" in names:
        assert names["act"](np.ones((2, 39), np.float32)).shape == (2, 4)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_valid(line: str) -> None:
    script, *words = shlex.split(line, comments=True)
    words = [word for word in words if word != "-m" and not word.startswith("plugins=")]
    if any(word == "combiner=softmax" for word in words):  # that of the page
        words = [word for word in words if not word.startswith("combiner")]
    overrides = OverridesParser.create().parse_overrides(as_typed(words, sweeping=True))
    first = [
        f"{one.key_or_group}={next(one.sweep_string_iterator())}" if one.is_sweep_override() else str(one.input_line)
        for one in overrides
    ]
    folder, name = CONFIGURATIONS[script]
    GlobalHydra.instance().clear()
    with initialize_config_dir(folder, version_base="1.3"):
        if script == "grid.py":
            first = grid.configured(first)[1]
        config = OmegaConf.to_object(compose(name, first))
    check_fields(config)
    if isinstance(config, TrainConfig) and not config.weights_from:
        own = Path(config.benchmark.file or "").name == "mine.py"  # that of a page
        make_combiners(config, 2 if own else len(make_family(config).tasks))


@pytest.mark.parametrize(("benchmark", "key", "value"), [("quickstart", "steps", 20_000), ("mt50", "batch_size", 26)])
def test_a_benchmark_sets_its_own_defaults(benchmark: str, key: str, value: int) -> None:
    assert getattr(configured(f"benchmark={benchmark}"), key) == value
    assert getattr(configured(f"benchmark={benchmark}", f"{key}=7"), key) == 7


def test_the_table_of_methods_is_the_registry() -> None:
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| (\w+) \|", METHODS, re.MULTILINE)
    assert sorted(name for name, _ in rows) == combiners.names()
    assert {name: needs.lower() for name, needs in rows} == {n: combiners.get(n).needs for n in combiners.names()}


def test_the_front_page_counts_the_methods() -> None:
    named, others = re.findall(
        r"one word on the command line: (.*) and (\d+) others", " ".join(DOCUMENTS[Path("README.md")].split())
    )[0]
    assert len(named.split(",")) + int(others) == len(combiners.names())


def test_the_site_describes_every_method() -> None:
    page = documentation.on_page_markdown(METHODS)
    for name in combiners.names():
        method, described = combiners.get(name), page[page.index(f"### {name}\n") :].split("###")[1]
        rows = dict(re.findall(r"^\| (.*?) \| (.*) \|$", described, re.MULTILINE))
        assert re.search(r"(19|20)\d\d", rows["Source"])
        assert rows["Needs"].lower().startswith(method.needs)
        assert re.fullmatch(r"[\d.]+ \(10 tasks\), [\d.]+ \(50 tasks of 26 samples\), .*", rows["Cost here"])
        options = [key for key in rows if key.startswith("`")]
        assert [option[1:].partition("=")[0] for option in options] == list(method.options())
        whole = " ".join((method.__doc__ or "").partition("Args:")[0].partition("Raises:")[0].split())
        assert len(" ".join(described.split())) > 0.9 * len(whole)  # the equation, and all that is said of it
        assert f"[`{name}`](#{name}) |" in page


def test_links_of_notebooks_lead_to_pages_of_the_site() -> None:
    html = '<a href="../methods.md#famo">a</a> <a href="https://x.org/a.md">b</a>'
    notebook, page = (SimpleNamespace(file=SimpleNamespace(src_uri=f"a.{end}")) for end in ("ipynb", "md"))
    assert documentation.on_page_content(html, notebook) == html.replace("methods.md", "methods.html")
    assert documentation.on_page_content(html, page) == html


def test_the_methods_that_need_positive_losses_are_named() -> None:
    named = re.search(r"^Methods that need positive losses \(([^)]*)\)", METHODS, re.MULTILINE)
    assert named is not None
    positive = [name for name in combiners.names() if combiners.get(name).positive_losses]
    assert re.findall(r"`(\w+)`", named[1]) == positive


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_file_it_names_exists(document: Path) -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)(?:#[^)]*)?\)", DOCUMENTS[document]):
        assert (ROOT / document.parent / path).exists(), path
    for path in re.findall(r"(?<![\w/])(?:mtrl|agents|envs|configs|scripts)/[\w/.]+\w", DOCUMENTS[document]):
        assert "mine" in path or (ROOT / path).exists(), path


def test_the_newest_changes_are_those_of_this_version() -> None:
    headings = re.findall(r"^## (\S+)", DOCUMENTS[Path("CHANGELOG.md")], re.MULTILINE)
    assert headings[0] == mtrl.__version__


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_lists_and_tables_are_rendered_as_such(document: Path) -> None:
    text = re.sub(r"```.*?```", "", DOCUMENTS[document], flags=re.DOTALL)
    assert not re.findall(r"^(?![-#| ]|\d+\.).+\n- .*", text, re.MULTILINE)  # the site's Markdown wants an empty line
    assert "\\|" not in text  # the backslash would be shown


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with the method of one's own that the page shows."""
    code = re.search(r"```python\n(.*?)```", OWN, re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) < 30
    (tmp_path / "mine.py").write_text(code[1])
    return tmp_path


def line_of_own(program: str) -> list[str]:
    """The arguments of the line of that page that runs a program, its path made absolute."""
    line = re.search(rf"^(\w+=\S+ )?python (-m )?{program} .*$", OWN, re.MULTILINE)
    assert line is not None
    words = shlex.split(line[0])
    words = words[words.index("python") + 1 :]
    return [str(ROOT / word) if (ROOT / word).exists() else word for word in words]


def test_a_method_of_ones_own_trains_and_is_evaluated(own: Path) -> None:
    small = ("tasks=[reach-v3]", "benchmark.horizon=10", "agent.hidden_sizes=[8,8]", "batch_size=4", "steps=30")
    quick = ("warmup_steps=10", "eval.episodes=1", "device=cpu", "threads=1", "num_workers=1", "run_dir=run")
    script, *words = line_of_own("scripts/train.py")
    done = commands.run(Path(script).name, *words, *small, *quick, folder=own)
    assert done.returncode == 0, done.stderr
    config = read_config(own / "run")
    assert config["combiner"] == {"name": "softmax", "temperature": 2}
    assert config["plugins"] == [str(own / "mine.py")]
    words = [f"run={own / 'run'}", "episodes=1", "num_workers=1"]
    code, errors = commands.Started("evaluate.py", *words, errors=own / "errors").ended()  # from another folder
    assert code == 0, errors


def test_a_method_of_ones_own_is_measured(own: Path) -> None:
    script, *words = line_of_own("scripts/benchmark.py")
    sizes = ["--cases", "2x4", "--hidden-sizes", "8", "--repeats", "1"]
    done = commands.run(Path(script).name, *words, *sizes, folder=own)
    assert done.returncode == 0, done.stderr
    rows = json.loads((own / "runs" / "benchmark" / "overhead.json").read_text())["rows"]
    assert "softmax" in {row["method"] for row in rows}


def test_a_method_of_ones_own_has_every_property(own: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MTRL_PLUGINS": "mine.py"}
    command = [sys.executable, *line_of_own("pytest"), "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout
    passed = re.search(r"^(\d+) passed", printed, re.MULTILINE)
    assert passed is not None, printed
    assert int(passed[1]) > 50
