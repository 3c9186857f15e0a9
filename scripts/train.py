"""Trains one multi-task SAC agent: ``python scripts/train.py benchmark=mt10 combiner=pcgrad seed=3``."""

import dataclasses
import os
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

# Threads that wait for work go to sleep soon (after some 10 microseconds): simulators need their cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# NumPy solves problems of T x T here, which are too small to share.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from mtrl.sweep.supervision import supervise

if __name__ == "__main__":
    supervise()  # a sweep; before anything large is loaded

from scripts.methods import read_methods

if __name__ == "__main__":
    read_methods()  # before the simulators are

import torch
from rich.console import Console

from agents.replay import ReplayBuffer
from agents.sac import MultiTaskSAC
from envs.rendering import use_offscreen_backend
from envs.shared import Family
from envs.vector import TaskVector
from mtrl.report.learning_curve import print_outcome
from mtrl.rl.loop import OnBest, Trainer
from mtrl.run.directory import RunDirectory, directory_of
from mtrl.run.machine import device_of, keep_freed_memory, keep_to_cores, machine, peak_memory
from mtrl.sweep.launch import launch
from scripts import build
from scripts.configuration import TrainConfig
from scripts.entry import CONFIGS, hydra_main, run
from scripts.evaluate import write_videos


def say(line: str) -> None:
    """Tells the user, beside what is printed as a result."""
    print(line, file=sys.stderr)


def film_best(config: TrainConfig, family: Family, path: Path) -> OnBest:
    """What films policies into a run's directory; where that fails, it says so, and training goes on."""
    seed = next(iter(config.eval_seeds.values()))

    def on_best(step: int, policy: Callable[[Any], Any]) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # one observation per task is too little to share
        try:
            write_videos(family.films(policy, seed), path / f"video-{step}")
        except Exception as error:  # a renderer can fail in any way
            say(f"warning: no film of step {step}: {' '.join(str(error).split())}")
        finally:
            torch.set_num_threads(threads)

    return on_best


def train(config: TrainConfig) -> None:
    """Trains to the end, or goes on with an interrupted run; says so where the run is finished."""
    if config.eval.video is not None:
        use_offscreen_backend(required=config.is_metaworld)
    keep_freed_memory()
    family = build.make_family(config)
    tasks = family.tasks
    device = device_of(config.device)
    threads = 1 if config.threads is None and device.type == "cuda" else config.threads  # it only launches
    if threads is None:
        keep_to_cores()
    else:
        torch.set_num_threads(threads)
    build.extract_weights(config, tasks)
    build.task_groups(config, tasks)
    _, remark = build.make_combiners(config, len(tasks))
    name = "-".join(filter(None, [config.benchmark.name, config.task, config.method_name, f"seed{config.seed}"]))
    path = directory_of(config.run_dir, name)
    slow = build.settle_precision(config, path, device)
    if (path / "config.yaml").exists():  # no simulators for a run that is finished, or another
        with closing(open_directory(config, tasks, path)) as directory:
            if is_finished(directory, config):
                return
    with build.make_environments(config, family) as environments:
        capacity = build.replay_capacity(config, len(tasks))
        memory = ReplayBuffer.check_memory(len(tasks), capacity, *environments.sizes, device)
        initial = build.initial_weights(config, tasks, environments.sizes, path)
        with closing(open_directory(config, tasks, path)) as directory:
            if is_finished(directory, config):  # meanwhile
                return
            if directory.longer:
                say(f"{path} is finished, and goes on to {config.steps:,} steps; all other keys are the same.")
            for one in filter(None, [remark, slow, build.nothing_learned(config)]):
                say(one)
            say(
                f"{len(tasks)} tasks, {config.steps:,} steps, {config.method_name}, {device}, {config.precision}; "
                f"replay buffer of {memory / 2**30:.2f} GiB; run directory {path}"
            )
            agent = build.make_agent(config, tasks, environments.sizes, device, capacity=capacity)
            if initial is not None:
                agent.start_from(initial)
            learn(config, family, environments, agent, directory)
            print_outcome(path, Console())


def learn(
    config: TrainConfig, family: Family, environments: TaskVector, agent: MultiTaskSAC, directory: RunDirectory
) -> None:
    """Trains the agent in a run's directory, which is finished then."""
    trainer = Trainer(
        agent,
        environments,
        partial(build.make_evaluation_environments, config, family),
        directory,
        config.schedule,
        device=agent.device,
        show_progress=config.progress,
        on_best=None if config.eval.video is None else film_best(config, family, directory.path),
    )
    trainer.train()
    of_machine = {"memory": peak_memory(agent.device), "machine": machine(agent.device), "command": sys.argv}
    directory.finish(trainer.summary() | of_machine)
    if not config.checkpoint.keep_replay:
        directory.checkpoints.drop_stream()


def open_directory(config: TrainConfig, tasks: list[str], path: Path) -> RunDirectory:
    """The run's directory; raises what `RunDirectory` does."""
    directory = RunDirectory(path, dataclasses.asdict(config) | {"tasks": tasks})
    directory.checkpoints.keep = config.checkpoint.keep
    return directory


def is_finished(directory: RunDirectory, config: TrainConfig) -> bool:
    """Whether there is nothing to do, which is said."""
    if not directory.finished:
        return False
    if not config.checkpoint.keep_replay:
        directory.checkpoints.drop_stream()
    say(f"{directory.path} is finished: nothing to do. More steps go on with it; another run_dir or seed is a new run.")
    return True


main = hydra_main(TrainConfig, "train", train)

if __name__ == "__main__":
    named = ("benchmark", "task", "combiner", "method", "seed")
    run(main, partial(launch, CONFIGS, "train", named, cores_key="num_workers"))
