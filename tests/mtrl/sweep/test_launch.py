"""What a sweep makes of its command line."""

import re
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mtrl.errors import InputError
from mtrl.sweep import launch, place
from mtrl.sweep.launch import for_launcher, run_dir_of, size_of
from mtrl.sweep.supervision import at_one_time, requested, sweep_directory
from mtrl.text import quoted


def test_run_directories_tell_which_combiner_a_side_has() -> None:
    own = ["combiner=mgda", "combiner.actor={name:cagrad,c:0.2}", "seed=1"]
    named = run_dir_of("runs", own, {"combiner.actor"})
    assert named.startswith("runs/{name}-combiner.actor_name_cagrad_c_0.2_")
    assert run_dir_of("runs", ["combiner.actor=pcgrad"], {"combiner.actor"}) == "runs/{name}-combiner.actor_pcgrad"


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


def told(*overrides: str, size: int | None = 40) -> list[str]:
    """What a launcher is told beside a command line."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return for_launcher({override.key_or_group: override for override in parsed}, size)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpus", lambda: ["0", "1"])
    monkeypatch.setattr(place, "cores", lambda: 16)


JOBLIB, RAY = "hydra/launcher=joblib", "hydra/launcher=ray"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("overrides", "at_once", "said"),
    [
        ([JOBLIB], 4, True),
        ([JOBLIB, "device=cuda"], 4, True),
        ([JOBLIB, "device=cpu"], 16, False),
        ([JOBLIB, "hydra.launcher.n_jobs=9"], 9, False),
        ([JOBLIB, "hydra.launcher.n_jobs=-1"], 16, False),
        ([JOBLIB, "device=cpu,cuda"], 4, True),
    ],
)
def test_by_default_joblib_computes_no_more_runs_than_gpus_bear(
    overrides: list[str], at_once: int, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(*overrides) == [f"hydra.launcher.n_jobs={at_once}"]
    line = (
        "4 runs at a time, 2 on each GPU; hydra.launcher.n_jobs=N says otherwise, and device=cpu has one on each core\n"
    )
    assert capsys.readouterr().err == (line if said else "")
    assert told(*overrides, size=3) == ["hydra.launcher.n_jobs=3"]
    assert capsys.readouterr().err == ""


def test_without_a_gpu_joblib_computes_a_run_on_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpus", list)
    monkeypatch.setattr(place, "cores", lambda: 16)
    assert told(JOBLIB) == ["hydra.launcher.n_jobs=16"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["cuda:1", "cpu,cuda:1", "'cuda:12'"])
def test_a_gpu_that_no_run_of_a_sweep_sees_is_refused_before_it_starts(device: str) -> None:
    with pytest.raises(InputError, match=r"^device=cuda:\d+ cannot be used: a run of a joblib sweep sees one GPU"):
        told(JOBLIB, f"device={device}")
    assert told(JOBLIB, "device=cuda:0") == ["hydra.launcher.n_jobs=4"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([RAY], True),
        ([RAY, "device=cuda"], True),
        ([RAY, "device=cpu"], False),
        ([RAY, "+hydra.launcher.ray.remote.num_gpus=0.5"], False),
        ([], False),
    ],
)
def test_ray_that_hides_gpus_is_said(overrides: list[str], said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    told(*overrides)
    assert capsys.readouterr().err.startswith("Ray hides GPUs from runs that ask for none") == said
