"""What a configuration asks for: tasks, run directory, combiners, agent and environments."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from agents.sac import MultiTaskSAC
from envs.metaworld import ACTION_SIZE, OBSERVATION_SIZE, TaskVector, benchmark_tasks, check_tasks
from mtrl import combiners
from mtrl.combiners import Combiner
from mtrl.errors import InputError, unknown_name
from mtrl.run.extracted_weights import weights_of_run
from scripts.configuration import TrainConfig
from scripts.methods import load_plugins

EVALUATION_SEED = 1_000_003
"""Every run of every seed is evaluated on the same held-out goals."""


def task_names(config: TrainConfig) -> list[str]:
    """The tasks that a configuration asks for: the benchmark's, a selection of them, or any list.

    Raises:
        InputError: on an unknown task, or keys that do not fit the benchmark.
    """
    name = config.benchmark.name
    if name == "mt1":
        if config.task is None or config.tasks is not None:
            raise InputError("benchmark=mt1 takes one task: add e.g. task=reach-v3")
        return check_tasks([config.task])
    if config.task is not None:
        raise InputError(f"benchmark={name} takes tasks=[...]; task=NAME is for benchmark=mt1")
    if name in ("mt10", "mt50"):
        own = benchmark_tasks(name)
        for task in config.tasks or ():
            if task not in own:
                raise unknown_name(f"task of {name}", task, own)
        return check_tasks(config.tasks or own)
    if not config.tasks:
        raise InputError(f"benchmark={name} needs tasks, e.g. tasks=[reach-v3,push-v3]")
    return check_tasks(config.tasks)


def make_combiners(config: TrainConfig, num_tasks: int) -> tuple[dict[str, Combiner], str | None]:
    """The combiners of critic and actor, and a remark for the user where they differ.

    A method that needs positive losses serves the critic alone: the actor's losses are negative action values.
    """
    load_plugins(config.plugins)
    made: dict[str, Combiner] = {}
    remark, options = None, dict(config.combiner)
    weights = options.get("weights")
    if isinstance(weights, Mapping) and set(weights) != {"critic", "actor"}:
        raise InputError(f"combiner.weights: expected a list or {{critic: ..., actor: ...}}, got {weights!r}")
    for seed, objective in enumerate(("critic", "actor"), config.seed):
        if isinstance(weights, Mapping):
            options["weights"] = weights[objective]
        if "critic" in made and made["critic"].positive_losses:
            name = options["name"]
            remark = f"{name} needs positive losses, which the actor's are not: it serves the critic, unitary the actor"
            options = {"name": "unitary"}
        made[objective] = combiners.make(num_tasks=num_tasks, seed=seed, rescale=config.agent.rescale, **options)
    return made, remark


def extract_weights(config: TrainConfig, tasks: list[str]) -> None:
    """Fills in the weights that ``weights_from`` asks for: the critic's from the critic's, the actor's likewise.

    Where a method served the critic alone, the actor is trained without weights, as it was there.

    Raises:
        InputError: if there are none to be had.
    """
    if config.weights_from is None:
        return
    name = config.combiner["name"]
    if name != "fixed" or config.combiner.get("weights") is not None:
        raise InputError(f"weights_from is for combiner=fixed without weights of its own, not for {config.combiner}")
    directory = Path(config.weights_from)
    critic = weights_of_run(directory, tasks, "conflict/critic/weight", config.weights_how)
    if critic is None:
        raise InputError(f"weights_from: the run in '{directory}' logged no weights (insight.every > 0 does)")
    actor = weights_of_run(directory, tasks, "conflict/actor/weight", config.weights_how) or [1.0] * len(tasks)
    config.combiner["weights"] = {"critic": critic, "actor": actor}


def replay_capacity(config: TrainConfig, num_tasks: int) -> int:
    """Transitions per task: an equal share of ``agent.buffer_size``, and no more than the run can fill."""
    return max(1, min(config.agent.buffer_size // num_tasks, config.steps))


def make_agent(config: TrainConfig, tasks: list[str], device: torch.device, *, capacity: int) -> MultiTaskSAC:
    """The agent that a configuration describes, untrained, with a replay buffer of ``capacity`` per task."""
    made, _ = make_combiners(config, len(tasks))
    return MultiTaskSAC(
        tasks,
        OBSERVATION_SIZE,
        ACTION_SIZE,
        made["critic"],
        made["actor"],
        config.agent,
        batch_size=config.batch_size,
        capacity=capacity,
        seed=config.seed,
        device=device,
    )


def make_environments(config: TrainConfig, tasks: list[str], **changed: Any) -> TaskVector:
    """The environments of training, some of their options changed."""
    own = {"seed": config.seed, "num_workers": config.num_workers}
    options = dataclasses.asdict(config.benchmark) | own | changed
    del options["name"]
    return TaskVector(tasks, **options)


def make_evaluation_environments(config: TrainConfig, tasks: list[str]) -> TaskVector:
    """Environments for evaluation: all 50 goals in turn (or the run's one), each episode up to its first success."""
    held_out = {} if config.benchmark.goals == "fixed" else {"goals": "evaluation", "seed": EVALUATION_SEED}
    return make_environments(config, tasks, terminate_on_success=True, **held_out)
