"""Evaluates a finished or running run: ``python scripts/evaluate.py run=runs/x episodes=50``."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from omegaconf import MISSING
from rich.console import Console
from rich.progress import Progress

from envs.metaworld.rendering import Film, contact_sheet, film, use_offscreen_backend
from mtrl.errors import InputError
from mtrl.ranges import Count
from mtrl.report.learning_curve import print_success
from mtrl.rl.evaluation import evaluate
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.files import write_json
from mtrl.run.machine import device_of
from scripts.build import make_agent, make_evaluation_environments
from scripts.configuration import load_config
from scripts.entry import hydra_main, run


@dataclass
class EvaluateConfig:
    """The configuration of this script."""

    run: str = MISSING
    episodes: Count = 50
    device: str = "auto"
    num_workers: Count | None = None
    video: bool = False
    debug: bool = False


def evaluate_run(options: EvaluateConfig) -> None:
    """Plays the evaluation episodes with the newest checkpoint's policy, writes what came of them, films the first."""
    directory = Path(options.run)
    if options.video:
        use_offscreen_backend()
    trained = load_config(directory)
    trained.num_workers = options.num_workers
    loaded = Checkpoints(directory / "checkpoints").load()
    if loaded is None:
        raise InputError(f"run '{directory}' has no checkpoint yet: wait for the first one")
    step, state = loaded
    agent = make_agent(trained, state["tasks"], device_of(options.device), capacity=1)
    policy = agent.policy(state["agent"]["actor"])
    torch.set_num_threads(1)  # one observation per task is too little to share
    console = Console(stderr=True)
    bar = partial(Progress, console=console, disable=not console.is_terminal)
    with make_evaluation_environments(trained, state["tasks"]) as environments, bar() as progress:
        evaluating = progress.add_task("evaluating", total=options.episodes * environments.num_tasks)
        result = evaluate(
            policy, environments, options.episodes, lambda done: progress.update(evaluating, completed=sum(done))
        )
    rates, mean = result.success_rates, result.success_mean
    out = Console(highlight=False, soft_wrap=True)
    print_success(rates, mean, options.episodes, Console())
    file = directory / f"evaluation-{step}.json"
    write_json(file, {"step": step, "episodes": options.episodes, "success_mean": mean, "success": rates})
    out.print(f"written to {file}")
    if options.video:
        folder = directory / f"video-{step}"
        with bar() as progress:
            films = film(policy, environments)
            write_videos(progress.track(films, environments.num_tasks, description="filming"), folder)
        out.print(f"videos in {folder}, all tasks in {folder / 'contact_sheet.png'}")


def write_videos(films: Iterable[Film], folder: Path) -> None:
    """Writes a GIF per task, ``contact_sheet.png`` and ``episodes.json``; the folder is whole or as it was before."""
    with TemporaryDirectory(prefix=".video-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / folder.name
        unfinished.mkdir()
        last_frames, episodes = [], {}
        for made in films:
            made.save(unfinished / f"{made.task}.gif")
            last_frames.append((made.task, made.frames[-1], made.success))
            episodes[made.task] = {"success": made.success, "steps": made.steps}
        contact_sheet(last_frames, unfinished / "contact_sheet.png")
        write_json(unfinished / "episodes.json", episodes)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)


main = hydra_main(EvaluateConfig, "evaluate", evaluate_run, run="name the run to evaluate: run=DIRECTORY")

if __name__ == "__main__":
    run(main)
