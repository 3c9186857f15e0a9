"""One's own environments from training to the report, in this process; only the simulators have their own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from envs.gymnasium import Gymnasium
from envs.vector import TaskVector
from mtrl.errors import InputError
from mtrl.report.runs import metric_keys
from mtrl.run.metrics import read_metrics
from mtrl.run.record import read_record
from scripts.build import make_family
from scripts.compare import CompareConfig, compare_runs
from scripts.configuration import HELD_OUT_SEED
from scripts.evaluate import EvaluateConfig, evaluate_run
from scripts.train import train
from tests.configured import configured

ROOT = Path(__file__).parents[2]
LINES = f"benchmark.file={ROOT / 'tests' / 'envs' / 'line.py'}"
SMALL = ["agent.hidden_sizes=[8]", "batch_size=4", "warmup_steps=10", "eval.every=40", "eval.episodes=2"]
SMALL += ["checkpoint.every=20", "log.every=20", "insight.every=0", "device=cpu", "num_workers=1", "progress=false"]


def trained(directory: Path, *overrides: str) -> Path:
    train(configured(*SMALL, f"run_dir={directory}", *overrides))
    return directory


def evaluations(directory: Path) -> list[dict[str, Any]]:
    return [entry for entry in read_metrics(directory / "metrics.jsonl") if "eval/return_mean" in entry]


def without_times(directory: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in entry.items() if key != "time" and not key.startswith("speed/")}
        for entry in read_metrics(directory / "metrics.jsonl")
    ]


PENDULUMS = [
    "benchmark=gymnasium",
    "benchmark.horizon=25",
    "envs=[{id: Pendulum-v1, g: 2.0}, {id: Pendulum-v1, g: 10.0}]",
]


def test_gymnasiums_own_go_on_bit_for_bit_in_the_middle_of_an_episode(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", *PENDULUMS, "steps=60")
    for steps in (35, 60):
        trained(tmp_path / "parts", *PENDULUMS, f"steps={steps}")
    assert without_times(tmp_path / "parts") == without_times(whole)
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert summary["counters"]["resumes"] == 1
    assert "restarted_episodes" not in summary["counters"]
    assert (summary["measure"], summary["evaluated_on"]) == ("return", ["seeded"])
    evaluate_run(EvaluateConfig(run=str(tmp_path / "parts"), episodes=1, num_workers=1, video=True))
    filmed = {path.name for path in (tmp_path / "parts" / "video-60").glob("*.gif")}
    assert filmed == {"Pendulum-v1-g2.0.gif", "Pendulum-v1-g10.0.gif"}
    record = read_record(whole)
    assert record.tasks == ["Pendulum-v1-g2.0", "Pendulum-v1-g10.0"]
    assert record.summary is not None
    assert record.summary.best is not None
    assert record.summary.best.value == max(entry["eval/return_mean"] for entry in evaluations(whole))
    assert (whole / "learning_curve.png").exists()


def test_steps_for_groups_go_on_bit_for_bit_and_no_simulators_are_started_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    make = TaskVector.__init__

    def counted(self: TaskVector, *args: Any, **options: Any) -> None:
        started.append(self)
        make(self, *args, **options)

    monkeypatch.setattr(TaskVector, "__init__", counted)
    own = [*PENDULUMS, "method=individual_optimizers", "agent.per_task_temperature=true", "agent.reward_scale=return"]
    whole = trained(tmp_path / "whole", *own, "steps=60", "insight.every=20")
    assert len(started) == 2  # of training, and of evaluation
    trained(tmp_path / "whole", *own, "steps=60", "insight.every=20")
    assert len(started) == 2
    for steps in (35, 60):
        trained(tmp_path / "parts", *own, f"steps={steps}", "insight.every=20")
    assert without_times(tmp_path / "parts") == without_times(whole)
    assert read_record(whole).method == "individual_optimizers"
    (measured,) = [
        entry for entry in without_times(whole) if entry["step"] == 40 and "conflict/actor/cosine_min" in entry
    ]
    assert measured["conflict/critic/weight/Pendulum-v1-g2.0"] == 1.0
    with pytest.raises(InputError, match=r"holds a run with method\.groups=None, not 2"):
        trained(tmp_path / "whole", *own, "steps=60", "insight.every=20", "method.groups=2")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on environments of a file, the first with evaluation in a process, the second interrupted."""
    folder = tmp_path_factory.mktemp("lines")
    own = ["benchmark=custom", LINES, "benchmark.options={opaque: true}"]
    trained(folder / "one", *own, "steps=30", "eval.beside=true")
    for steps in (20, 30):
        trained(folder / "two", *own, "combiner=pcgrad", f"steps={steps}")
    return folder


def test_success_is_what_policies_are_chosen_by_where_there_is_one(lines: Path) -> None:
    entry = evaluations(lines / "one")[-1]
    for measure in ("success", "score", "return", "length"):
        values = [entry[f"eval/{measure}/goal-{goal}"] for goal in (4, 8)]
        assert entry[f"eval/{measure}_mean"] == pytest.approx(sum(values) / 2)
    assert entry["eval/score/goal-4"] == pytest.approx((entry["eval/return/goal-4"] + 30) / 25)
    summary = json.loads((lines / "one" / "summary.json").read_text())
    assert "measure" not in summary
    assert summary["best"].keys() == {"step", "success_mean", "of_evaluations"}


def test_states_that_cannot_be_told_are_counted(lines: Path) -> None:
    summary = json.loads((lines / "two" / "summary.json").read_text())
    assert summary["counters"]["restarted_episodes"] == 2


def test_evaluation_films_and_the_report(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the file is found from anywhere
    before = evaluations(lines / "one")[-1]
    evaluate_run(EvaluateConfig(run=str(lines / "one"), episodes=2, num_workers=1, video=True))
    found = json.loads((lines / "one" / "evaluation-30.json").read_text())
    assert found["seeded"]["return_mean"] == before["eval/return_mean"]  # the same episodes
    filmed = json.loads((lines / "one" / "video-30" / "episodes.json").read_text())
    assert filmed.keys() == {"goal-4", "goal-8"}
    assert {path.name for path in (lines / "one" / "video-30").glob("*.gif")} == {"goal-4.gif", "goal-8.gif"}
    with pytest.raises(InputError, match=r"eval\.goals=held_out is for Meta-World"):
        evaluate_run(EvaluateConfig(run=str(lines / "one"), goals="held_out"))
    capsys.readouterr()
    compare_runs(CompareConfig(runs=str(lines), out=str(tmp_path / "report"), metric="score"))
    said = " ".join(capsys.readouterr().out.split())
    assert "Too few seeds to tell from unitary (1 paired seed; fewer than 6 cannot" in said
    assert "every seed): pcgrad " in said
    assert "(normalised return, mean of the last 5 evaluations)" in said


def test_the_metric_is_the_first_that_every_run_has(tmp_path: Path) -> None:
    for name, keys in (("a", ("success", "return")), ("b", ("return", "score", "success")), ("c", ())):
        (tmp_path / name).mkdir()
        line = json.dumps({"step": 1} | {f"eval/{key}_mean": 0.5 for key in keys})
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "train/x": 0}\n' + line * bool(keys))
    assert metric_keys(tmp_path, None) == ("eval/success_mean", "eval/success/")
    assert metric_keys(tmp_path, "score") == ("eval/score_mean", "eval/score/")
    assert metric_keys(tmp_path, "eval/held_out/success_mean") == (
        "eval/held_out/success_mean",
        "eval/held_out/success/",
    )
    assert metric_keys(tmp_path, "test/m", "test/m/") == ("test/m", "test/m/")
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1, "eval/return_mean": 2}\n')
    assert metric_keys(tmp_path, None)[0] == "eval/return_mean"


def test_returns_of_metaworld_are_of_whole_episodes() -> None:
    config = configured("benchmark=mt1", "task=reach-v3", "metric=return")
    family = make_family(config)
    assert family.evaluated(whole_episodes=config.metric not in (None, "success")).whole_episodes
    assert not family.evaluated(whole_episodes=False).whole_episodes


def test_the_file_of_the_documentation_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "environments.md").read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    config = configured("benchmark=custom", "benchmark.file=mine.py", "benchmark.options={heavy: 12.0}")
    family = make_family(config)
    assert family.tasks == ["light", "heavy"]
    assert family.reference_returns["heavy"] == (-1185.0, -150.0)
    made = family.make("heavy", 0)
    assert made.env.unwrapped.g == 12.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["pendulums", "cheetahs", "drones"])
def test_the_examples_are_families(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = configured(f"benchmark={name}")
    family = make_family(config)
    assert isinstance(family, Gymnasium)
    assert len(family.tasks) >= 3
    for task in family.tasks:
        made = family.make(task, 0)
        assert made.reset().shape == made.observation_space.shape
    assert config.eval_seeds == {"seeded": HELD_OUT_SEED}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmark=gymnasium"], "benchmark=gymnasium needs envs"),
        (["benchmark=mt10", "envs=[{id: Pendulum-v1}]"], "envs is for benchmark=gymnasium, not for benchmark=mt10"),
        (["benchmark=custom", LINES, "envs=[{id: a}]"], "envs is for benchmark=gymnasium, not for benchmark=custom"),
        (["benchmark=mt10", "pad=true"], "pad is for Gymnasium environments, not for benchmark=mt10"),
        (["benchmark=custom", "benchmark.options={a: 1}"], "benchmark.options is for Gymnasium environments"),
        ([*PENDULUMS, "task=reach-v3"], "task is for benchmark=mt1, not for benchmark=gymnasium"),
        ([*PENDULUMS, "benchmark.goals=fixed"], "benchmark.goals is for Meta-World, not for benchmark=gymnasium"),
        ([*PENDULUMS, "eval.goals=held_out"], "eval.goals=held_out is for Meta-World"),
        ([*PENDULUMS, "metric=score"], "metric=score needs the returns of a random policy and of an expert"),
        ([*PENDULUMS, "metric=reward"], "unknown metric 'reward'"),
    ],
)
def test_keys_of_other_environments_are_refused(overrides: list[str], message: str) -> None:
    def ask() -> None:
        config = configured(*overrides)
        make_family(config)
        _ = config.eval_seeds

    with pytest.raises(Exception, match=message):
        ask()


def test_horizons_and_files_are_as_they_were_meant() -> None:
    assert configured("benchmark=mt10").benchmark.horizon == 500
    assert configured(PENDULUMS[0], PENDULUMS[2]).benchmark.horizon is None
    own = configured("benchmark=custom", "benchmark.file=tests/envs/line.py", "benchmark.horizon=3")
    assert own.benchmark.file == str(Path("tests/envs/line.py").absolute())
    assert make_family(own).identity() == {"horizon": 3, "pad": False}
