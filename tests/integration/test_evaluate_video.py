"""``scripts/evaluate.py video=true``: what is filmed is what was counted, and what is said where nothing can be."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from agents.networks import Actor
from envs.rendering import SIZE, Film, contact_sheet
from tests import commands

ROOT = Path(__file__).parents[2]
RENDERS = "import mujoco as m; m.Renderer(m.MjModel.from_xml_string('<mujoco/>'), 8, 8).close()"
FILM = """
import json, sys, warnings
import numpy as np
from envs.rendering import use_offscreen_backend
use_offscreen_backend()
from envs.metaworld import make_vector
from metaworld.policies import ENV_POLICY_MAP
from mtrl.rl.evaluation import evaluate
warnings.simplefilter("ignore")  # of the expert, about actions beyond [-1, 1]
tasks = ["reach-v3", "drawer-close-v3", "push-v3"]
experts = [ENV_POLICY_MAP[task]() for task in tasks[:2]]

def policy(observations):
    actions = [expert.get_action(own.astype(float)) for expert, own in zip(experts, observations)]
    return np.array([*actions, np.zeros(4)], np.float32)

with make_vector(tasks, seed=5, horizon=120, terminate_on_success=True, goals="evaluation") as environments:
    counted = evaluate(policy, environments, 2, seed=5).measured["success"][:, 0].tolist()
    films = list(environments.family.films(policy, 5))
films[0].save(sys.argv[1])
print(json.dumps({
    "counted": counted,
    "filmed": [own.success for own in films],
    "steps": [own.steps for own in films],
    "frames": [len(own.frames) for own in films],
    "shape": films[0].frames[0].shape,
    "moved": [bool((own.frames[0] != own.frames[-1]).any()) for own in films],
}))
"""


def python(
    *arguments: str, expected: int | None = 0, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert expected is None or done.returncode == expected, done.stderr
    return done


@pytest.fixture(scope="module")
def renders() -> bool:
    """Whether this machine can render off-screen at all, asked of MuJoCo alone."""
    backends = [os.environ["MUJOCO_GL"]] if os.environ.get("MUJOCO_GL") else ["egl", "osmesa"]
    tried = [python("-c", RENDERS, expected=None, environment={"MUJOCO_GL": name}) for name in backends]
    return any(done.returncode == 0 for done in tried)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    small = ["benchmark.horizon=20", "agent.hidden_sizes=[8]", "batch_size=4", "steps=12", "warmup_steps=10"]
    tasks = ["benchmark=custom", "tasks=[reach-v3,push-v3]", "eval.episodes=1", "device=cpu", "threads=1"]
    done = commands.run("train.py", *tasks, *small, f"run_dir={directory}")
    assert done.returncode == 0, done.stderr
    return directory


def contents(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def refused(done: subprocess.CompletedProcess[str], backends: str) -> bool:
    return done.returncode == 1 and done.stderr == (
        f"error: video: cannot render off-screen here (tried MUJOCO_GL={backends}): install EGL "
        "(Debian: libegl1 libopengl0) or OSMesa (Debian: libosmesa6)\n"
    )


def test_what_is_filmed_is_what_was_counted(renders: bool, tmp_path: Path) -> None:
    done = python("-c", FILM, str(tmp_path / "film.gif"), expected=None)
    if not renders:
        assert "cannot render off-screen here" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["filmed"] == found["counted"] == [True, True, False]
    assert found["steps"][2] == 120
    assert all(steps < 120 for steps in found["steps"][:2])  # shortly after success
    assert found["frames"] == [1 + -(-steps // 4) for steps in found["steps"]]  # the first, every fourth, the last
    assert found["shape"] == [SIZE, SIZE, 3]
    assert found["moved"] == [True, True, True]
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.size == (SIZE, SIZE)
        assert gif.n_frames == found["frames"][0]  # type: ignore[attr-defined]


def test_a_run_is_filmed(renders: bool, run: Path) -> None:
    before = contents(run)
    done = python("scripts/evaluate.py", f"run={run}", "episodes=1", "video=true", expected=None)
    if not renders:
        assert refused(done, os.environ.get("MUJOCO_GL") or "egl, osmesa")
        assert contents(run) == before
        return
    assert done.returncode == 0, done.stderr
    files = ("contact_sheet.png", "episodes.json", "push-v3.gif", "reach-v3.gif")
    written = {"evaluation-12.json", "video-12", *(f"video-12/{name}" for name in files)}
    assert contents(run) - before == written
    assert (
        done.stdout.splitlines()[-1] == f"videos in {run / 'video-12'}, all tasks in {run}/video-12/contact_sheet.png"
    )
    episodes = json.loads((run / "video-12" / "episodes.json").read_text())
    counted = json.loads((run / "evaluation-12.json").read_text())["training"]["success"]
    assert {task: float(own["success"]) for task, own in episodes.items()} == counted
    with Image.open(run / "video-12" / "contact_sheet.png") as sheet:
        assert sheet.width == 2 * SIZE


def test_the_policy_that_comes_with_the_repository_has_learned_most_of_mt10(tmp_path: Path) -> None:
    others = shutil.ignore_patterns("evaluation-*")
    shutil.copytree(ROOT / "results/mt10/agent=cpu-seed3", tmp_path / "mt10", ignore=others)
    done = commands.run("evaluate.py", f"run={tmp_path / 'mt10'}", "which=best", "episodes=1", "num_workers=1")
    assert done.returncode == 0, done.stderr
    played = json.loads((tmp_path / "mt10/evaluation-90000.json").read_text())
    assert played["training"]["success_mean"] >= 0.8


@pytest.mark.parametrize("run", [path.parent for path in ROOT.glob("results/*/*/checkpoints")])
def test_a_policy_that_comes_with_the_repository_can_be_used(run: Path, tmp_path: Path) -> None:
    done = commands.run("export.py", f"run={run}", "which=best", f"out={tmp_path / 'policy.pt'}")
    assert done.returncode == 0, done.stderr
    saved = torch.load(tmp_path / "policy.pt", weights_only=True)
    actor = Actor(**saved["network"])
    actor.load_state_dict(saved["weights"])
    actions = actor.policy()(np.zeros((len(saved["tasks"]), 39), np.float32))
    assert len(np.unique(actions, axis=0)) == len(saved["tasks"])


def test_where_nothing_can_be_rendered_one_line_says_what_to_install(run: Path) -> None:
    before = contents(run)
    done = python(
        "scripts/evaluate.py",
        f"run={run}",
        "episodes=1",
        "video=true",
        expected=None,
        environment={"MUJOCO_GL": "no-such-backend"},
    )
    assert refused(done, "no-such-backend")
    assert done.stdout == ""
    assert contents(run) == before


def test_the_contact_sheet_marks_success_by_colour_and_word(tmp_path: Path) -> None:
    grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
    won, lost = (Film("a", [grey], success, 1) for success in (True, False))
    contact_sheet([(won, grey), (lost, grey)], tmp_path / "one.png")
    contact_sheet([(lost, grey), (lost, grey)], tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as sheet, Image.open(tmp_path / "two.png") as other:
        first, second = np.asarray(sheet), np.asarray(other)
    assert first.shape == (SIZE + 34, 2 * SIZE, 3)
    np.testing.assert_array_equal(first[2, SIZE // 2], [0x00, 0x9E, 0x73])
    np.testing.assert_array_equal(first[2, SIZE + SIZE // 2], [0xD5, 0x5E, 0x00])
    np.testing.assert_array_equal(first[:, SIZE:], second[:, SIZE:])
    words = first[SIZE:, :SIZE].min(2) < 255, second[SIZE:, :SIZE].min(2) < 255
    assert (words[0] != words[1]).any()  # "success" is another word than "failure"
