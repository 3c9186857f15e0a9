"""Training with the weights that a method had, from end to end."""

import sys
from pathlib import Path

import pytest

from mtrl.errors import InputError
from mtrl.run.directory import read_config
from mtrl.run.metrics import read_metrics
from scripts.build import make_combiners
from scripts.configuration import TrainConfig, load_config
from scripts.train import train
from tests.commands import ROOT
from tests.configured import configured

TASKS = ["goal-4", "goal-8"]
SMALL = [
    "benchmark=custom",
    f"benchmark.file={ROOT / 'tests' / 'envs' / 'line.py'}",
    "agent.hidden_sizes=[8,8]",
    "batch_size=4",
    "steps=20",
    "warmup_steps=10",
    "catch_up_updates=0",
    "eval.episodes=1",
    "insight.every=5",
    "device=cpu",
    "threads=1",
    "num_workers=1",
    "progress=false",
]


def small(*overrides: str) -> TrainConfig:
    return configured(*SMALL, *overrides)


def logged(directory: Path, objective: str) -> list[list[float]]:
    keys = [f"conflict/{objective}/weight/{task}" for task in TASKS]
    entries = read_metrics(directory / "metrics.jsonl")
    return [[entry[key] for key in keys] for entry in entries if keys[0] in entry]


def test_weights_of_critic_and_actor_serve_critic_and_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    source = tmp_path / "source"
    train(small("combiner=nash_mtl", f"run_dir={source}"))
    fixed = ["combiner=fixed", f"weights_from={source}", "weights_how=last", f"run_dir={tmp_path / 'fixed'}"]
    train(small(*fixed))
    weights = {objective: logged(source, objective)[-1] for objective in ("critic", "actor")}
    assert weights["critic"] != weights["actor"]
    sides = {objective: {"name": "fixed", "weights": own} for objective, own in weights.items()}
    assert read_config(tmp_path / "fixed")["combiner"] == {"name": "fixed", "weights": None, **sides}
    for objective in weights:
        used = logged(tmp_path / "fixed", objective)
        assert used
        assert all(row == pytest.approx(weights[objective], rel=1e-5) for row in used)
    made, _ = make_combiners(load_config(tmp_path / "fixed"), 2)  # as evaluate.py does, without the source
    assert made["actor"].given.tolist() == weights["actor"]


def test_a_method_of_the_critic_alone_leaves_the_actor_unweighted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    train(small("combiner=stch", f"run_dir={tmp_path / 'source'}"))
    config = small("combiner=fixed", f"weights_from={tmp_path / 'source'}", f"run_dir={tmp_path / 'fixed'}")
    train(config)
    assert config.combiner["actor"]["weights"] == [1.0, 1.0]
    assert config.combiner["critic"]["weights"] != [1.0, 1.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["combiner=pcgrad"], "weights_from is for combiner=fixed"),
        (["combiner=fixed", "combiner.weights=[1,2]"], "without weights of its own"),
        (["combiner=fixed"], "is not a run directory"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(small(*overrides, f"weights_from={tmp_path}", f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()
