"""Evaluates a finished or running run: ``python scripts/evaluate.py run=runs/x episodes=50``."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
from omegaconf import MISSING
from rich.console import Console
from rich.progress import Progress, TaskID

from agents.networks import Actor
from envs.rendering import Film, Frame, contact_sheet, use_offscreen_backend
from mtrl.errors import InputError, RunError
from mtrl.ranges import Count
from mtrl.report.learning_curve import print_measures
from mtrl.rl.evaluation import evaluate
from mtrl.run.directory import stored_checkpoints
from mtrl.run.files import write_json
from mtrl.run.record import GOALS
from scripts.build import make_evaluation_environments, make_family
from scripts.configuration import load_config
from scripts.entry import hydra_main, run


@dataclass
class EvaluateConfig:
    """The configuration of this script."""

    run: str = MISSING
    which: str = "last"
    episodes: Count = 50
    goals: Annotated[str, Literal["training", "held_out", "both"]] | None = None  # null: those that the run plays
    num_workers: Count | None = None
    video: bool = False
    debug: bool = False


def evaluate_run(options: EvaluateConfig) -> None:
    """Plays the evaluation episodes with one of a run's policies, writes what came of them, films the first."""
    directory = Path(options.run)
    trained = load_config(directory)
    trained.num_workers = options.num_workers
    trained.eval.goals = options.goals or trained.eval.goals
    if options.video:
        use_offscreen_backend(required=trained.is_metaworld)
    seeds, family = trained.eval_seeds, make_family(trained)
    step, weights = stored_policy(directory, options.which)
    torch.set_num_threads(1)  # one observation per task is too little to share
    console = Console(stderr=True)
    bar = partial(Progress, console=console, disable=not console.is_terminal)
    with make_evaluation_environments(trained, family) as environments, bar() as progress:
        actor = Actor(**trained.agent.arguments(len(family.tasks), *environments.sizes)["actor"])
        policy = actor.policy(weights)
        found: dict[str, dict[str, Any]] = {}
        for goals, seed in seeds.items():
            playing = progress.add_task(GOALS[goals], total=options.episodes * environments.num_tasks)

            def count(finished: Sequence[int], playing: TaskID = playing) -> None:
                progress.update(playing, completed=sum(finished))

            played = evaluate(policy, environments, options.episodes, seed, count, metric=trained.metric)
            found[goals] = played.summary()
    print_measures(found, options.episodes, Console())
    keep(directory / f"evaluation-{step}.json", {"step": step, "episodes": options.episodes, **found})
    if options.video:
        folder = directory / f"video-{step}"
        first = next(iter(seeds.values()))
        with bar() as progress:
            films = family.evaluated(whole_episodes=True).films(policy, first)
            write_videos(progress.track(films, len(family.tasks), description="filming"), folder)
        print(f"videos in {folder}, all tasks in {folder / 'contact_sheet.png'}")


def keep(file: Path, evaluation: dict[str, Any]) -> None:
    """Writes an evaluation, unless the file has one of more episodes; of as many, what it has of other goals stays."""
    try:
        before = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        before = {}
    episodes = before.get("episodes", 0)
    if episodes > evaluation["episodes"]:
        print(f"not written: {file} has {episodes} episodes per task (remove it first)")
        return
    write_json(file, before | evaluation if episodes == evaluation["episodes"] else evaluation)
    print(f"written to {file}")


def stored_policy(directory: Path, which: str) -> tuple[int, dict[str, Any]]:
    """The step and the weights of the ``last`` policy that a run has kept, the ``best`` one, or that of a step.

    Raises:
        InputError: if it has none, or no such one.
        RunError: if it is damaged.
    """
    checkpoints = stored_checkpoints(directory)
    steps, policies = checkpoints.steps(), checkpoints.newest_policies()
    if which == "last":
        loaded = checkpoints.load()
        assert loaded is not None
        return loaded[0], loaded[1]["agent"]["actor"]
    if which == "best":
        if not policies:
            raise InputError(
                f"run '{directory}' has kept no best policy yet: wait for a checkpoint after an evaluation"
            )
        which = str([*policies][-1])
    if which not in map(str, [*steps, *policies]):
        kept = ", ".join(map(str, sorted({*steps, *policies})))
        raise InputError(f"which={which}: expected last, best or a step that run '{directory}' has kept: {kept}")
    step = int(which)
    try:
        return step, checkpoints.policy_of(policies[step]) if step in policies else checkpoints.state_of(step)["agent"][
            "actor"
        ]
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        raise RunError(f"the policy of step {step} in {checkpoints.directory} is damaged ({error})") from error


def write_videos(films: Iterable[Film], folder: Path) -> None:
    """Writes a GIF per task, ``contact_sheet.png`` and ``episodes.json``; the folder is whole or as it was before."""
    with TemporaryDirectory(prefix=".video-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / folder.name
        unfinished.mkdir()
        last_frames: list[tuple[Film, Frame]] = []
        episodes: dict[str, dict[str, Any]] = {}
        for made in films:
            made.save(unfinished / f"{made.task}.gif")
            last_frames.append((replace(made, frames=[]), made.frames[-1]))
            told = {"success": made.success, "steps": made.steps, "return": made.episode_return}
            episodes[made.task] = {key: value for key, value in told.items() if value is not None}
        contact_sheet(last_frames, unfinished / "contact_sheet.png")
        write_json(unfinished / "episodes.json", episodes)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)


main = hydra_main(
    EvaluateConfig, "evaluate", evaluate_run, about=__doc__, run="name the run to evaluate: run=DIRECTORY"
)

if __name__ == "__main__":
    run(main)
