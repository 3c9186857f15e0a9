"""What becomes of a run after its end: longer, a start for others, played, without its buffer."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.gymnasium import Gymnasium
from envs.rendering import Film
from mtrl.errors import InputError
from mtrl.run.checkpoints import Checkpoints
from scripts.configuration import HELD_OUT_SEED
from scripts.evaluate import EvaluateConfig, evaluate_run, keep
from scripts.train import train
from tests.configured import configured
from tests.integration.test_weights_from import SMALL
from tests.reliability.runs import assert_same_run


@pytest.fixture(autouse=True)
def _command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])


def small(run: Path, steps: int, *overrides: str) -> None:
    own = ["combiner=moco", "eval.every=6", "checkpoint.every=8", "log.every=4", f"steps={steps}"]
    train(configured(*SMALL, *own, *overrides, f"run_dir={run}"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps that nothing disturbs."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        small(directory, 30)
    return directory


def test_a_finished_run_goes_on_to_more_steps(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    small(run, 19)
    assert json.loads((run / "summary.json").read_text())["steps"] == 19
    small(run, 30)
    assert "is finished, and goes on to 30 steps; all other keys are the same" in capsys.readouterr().err
    assert_same_run(whole, run)
    found, expected = (json.loads((path / "summary.json").read_text()) for path in (run, whole))
    for key in ("steps", "updates", "transitions", "final", "best"):
        assert found[key] == expected[key]
    small(run, 30)
    assert "is finished: nothing to do" in capsys.readouterr().err
    before = (run / "summary.json").read_bytes()
    for overrides, message in ((["seed=5"], "holds a run with seed=1, not 5"), ([], "longer, not shorter")):
        with pytest.raises(InputError, match=message):
            small(run, 29, *overrides)
    assert (run / "summary.json").read_bytes() == before


def test_a_finished_run_that_came_without_its_checkpoints_is_passed_over(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    small(tmp_path / "run", 30, "checkpoint.keep_replay=false")
    assert "is finished: nothing to do" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def played(run: Path, which: str) -> dict[str, Any]:
    for old in run.glob("evaluation-*.json"):
        old.unlink()
    evaluate_run(EvaluateConfig(run=str(run), which=which, episodes=1, num_workers=1))
    (file,) = run.glob("evaluation-*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_an_evaluation_of_fewer_episodes_does_not_replace_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evaluation-30.json"
    training, held_out = {"training": {"success_mean": 0.5}}, {"held_out": {"success_mean": 0.4}}
    file.write_text("damaged")
    for found, becomes in [
        ({"episodes": 2} | training, {"episodes": 2} | training),
        ({"episodes": 2} | held_out, {"episodes": 2} | training | held_out),
        ({"episodes": 1} | training, {"episodes": 2} | training | held_out),
        ({"episodes": 3} | held_out, {"episodes": 3} | held_out),
    ]:
        keep(file, found)
        assert json.loads(file.read_text()) == becomes
    assert f"not written: {file} has 2 episodes per task" in capsys.readouterr().out


def test_the_last_the_best_or_the_policy_of_a_step_is_played(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    steps = Checkpoints(whole / "checkpoints").steps()
    assert steps == [24, 30]
    assert played(whole, "last")["step"] == 30
    assert played(whole, "24")["step"] == 24
    best = played(whole, "best")
    assert best["step"] == summary["best"]["step"]
    assert best["seeded"]["success_mean"] == summary["best"]["success_mean"]
    with pytest.raises(InputError, match=r"which=bset: expected last, best or a step that run '.*' has kept: .*24, 30"):
        played(whole, "bset")


def films(family: Any, policy: Any, seed: int) -> Iterator[Film]:
    for task in family.tasks:
        yield Film(task, [np.zeros((8, 8, 3), np.uint8)] * 2, success=False, steps=seed)


def test_the_best_policies_are_filmed_and_a_film_that_fails_is_no_matter(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scripts.train.use_offscreen_backend", lambda *, required: None)
    monkeypatch.setattr(Gymnasium, "films", films)
    run = tmp_path / "run"
    small(run, 19, "eval.video=best")
    best = json.loads((run / "summary.json").read_text())["best"]["step"]
    names = {"contact_sheet.png", "episodes.json", "goal-4.gif", "goal-8.gif"}
    assert {path.name for path in (run / f"video-{best}").iterdir()} == names
    filmed = json.loads((run / f"video-{best}" / "episodes.json").read_text())
    assert filmed["goal-4"]["steps"] == HELD_OUT_SEED

    def broken(*_: Any) -> Iterator[Film]:
        raise RuntimeError("no context")

    monkeypatch.setattr(Gymnasium, "films", broken)
    small(run, 30)  # filming is not what makes it another run
    shutil.rmtree(run / f"video-{best}")
    assert_same_run(whole, run)
    broke = tmp_path / "broke"
    capsys.readouterr()
    small(broke, 12, "eval.video=best")
    assert "warning: no film of step 6: no context" in capsys.readouterr().err
    assert (broke / "summary.json").exists()
    assert not list(broke.glob("*video*"))


def test_a_run_starts_from_another_and_needs_it_no_longer(whole: Path, tmp_path: Path) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    small(source, 12)
    begins = f"init_from={source}"
    small(run, 11, "warmup_steps=11", begins)  # no updates: what it ends with is what it began with
    loaded, begun = Checkpoints(source / "checkpoints").load(), Checkpoints(run / "checkpoints").load()
    assert loaded is not None
    assert begun is not None
    for network in ("actor", "critic", "target_critic"):
        for name, tensor in loaded[1]["agent"][network].items():
            assert bool((begun[1]["agent"][network][name] == tensor).all())
    source.rename(tmp_path / "gone")
    small(run, 14, "warmup_steps=11", begins)
    with pytest.raises(InputError, match="is not a run directory"):
        small(tmp_path / "other", 11, begins)
    with pytest.raises(InputError, match=r"init_from: actor '.*' has shape .* here, but there it is of shape"):
        small(tmp_path / "other", 11, "agent.hidden_sizes=[9,8]", f"init_from={tmp_path / 'gone'}")
    assert not (tmp_path / "other").exists()


def test_the_buffer_of_a_finished_run_is_dropped_at_its_end_or_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small(run, 12)
    assert list((run / "checkpoints").glob("replay-*"))
    small(run, 12, "checkpoint.keep_replay=false")
    assert not list((run / "checkpoints").glob("replay-*"))
    assert played(run, "last")["step"] == 12
    capsys.readouterr()
    small(run, 26, "checkpoint.keep_replay=false", "checkpoint.keep=1")
    assert "the replay buffer of this run was dropped: up to step 22 it is filled again" in capsys.readouterr().err
    assert json.loads((run / "summary.json").read_text())["updates"] == 2 + 4
    assert {path.name.split("-")[0] for path in (run / "checkpoints").glob("*.pt")} == {"step", "policy"}
    assert Checkpoints(run / "checkpoints").steps() == [26]
