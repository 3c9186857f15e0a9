"""What a configuration asks for: tasks, run directory, combiners, agent and environments."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from agents.alternating import AlternatingSAC
from agents.sac import MultiTaskSAC
from envs.gymnasium import Gymnasium
from envs.metaworld import MetaWorld, Options, benchmark_tasks, check_tasks
from envs.shared import Family
from envs.vector import TaskVector
from mtrl import combiners
from mtrl.combiners import Combiner
from mtrl.errors import InputError, unknown_name
from mtrl.gradients.precision import has_bf16, precision_of
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.directory import read_config
from mtrl.run.extracted_weights import weights_of_run
from mtrl.run.initial_weights import state_of_run
from mtrl.task_groups import random_groups
from scripts.configuration import TrainConfig
from scripts.methods import combiner_of, load_plugins


def make_family(config: TrainConfig) -> Family:
    """The tasks that a configuration asks for.

    Raises:
        InputError: on an unknown task, keys that do not fit the benchmark, or environments that do not.
    """
    benchmark = config.benchmark
    if config.is_metaworld:
        options = {one.name: getattr(benchmark, one.name) for one in dataclasses.fields(Options)}
        family: Family = MetaWorld(_metaworld_tasks(config), Options(**options))
    else:
        family = Gymnasium(
            config.tasks or [],
            envs=config.envs or [],
            file=benchmark.file,
            options=benchmark.options or {},
            horizon=benchmark.horizon,
            pad=bool(config.pad),
        )
    if config.metric == "score" and not family.reference_returns:
        raise InputError("metric=score needs the returns of a random policy and of an expert, for every task")
    return family


def _metaworld_tasks(config: TrainConfig) -> list[str]:
    """The benchmark's tasks, a selection of them, or any list."""
    name = config.benchmark.name
    if name == "mt1":
        if config.task is None or config.tasks is not None:
            raise InputError("benchmark=mt1 takes one task: add e.g. task=reach-v3")
        return check_tasks([config.task])
    if config.task is not None:
        raise InputError(f"benchmark={name} takes tasks=[...]; task=NAME is for benchmark=mt1")
    if name in ("mt10", "mt25", "mt50"):
        own = benchmark_tasks(name)
        for task in config.tasks or ():
            if task not in own:
                raise unknown_name(f"task of {name}", task, own)
        return check_tasks(config.tasks or own)
    if not config.tasks:
        raise InputError(f"benchmark={name} needs tasks, e.g. tasks=[reach-v3,push-v3]")
    return check_tasks(config.tasks)


SIDES = ("critic", "actor")


def combiner_options(config: TrainConfig, side: str) -> dict[str, Any]:
    """Name and options of one objective's combiner: its own where ``combiner.<side>`` gives one, or else the run's."""
    options = dict(config.combiner)
    own = {side: options.pop(side, None) for side in SIDES}[side]
    if own is None:
        return options
    options = {"name": own} if isinstance(own, str) else own
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise InputError(f"combiner.{side}: expected a name or {{name: NAME, option: value}}, got {own!r}")
    return dict(options)


def make_combiners(config: TrainConfig, num_tasks: int) -> tuple[dict[str, Combiner], str | None]:
    """The combiners of critic and actor, and a remark for the user where the run's serves one of them alone.

    A method that needs positive losses serves the critic alone: the actor's losses are negative action values.

    Raises:
        InputError: if a method is unknown, an option does not fit, or the actor was given one for positive losses.
    """
    load_plugins(config.plugins)
    made: dict[str, Combiner] = {}
    remark = None
    for seed, side in enumerate(SIDES, config.seed):
        options = combiner_options(config, side)
        said = "the agent's: agent.rescale=true or false"
        made[side] = combiner_of(options, num_tasks, seed, rescale=config.agent.rescale, rescaled_by=said)
    if made["actor"].positive_losses:
        needs = f"{made['actor'].name} needs positive losses, which the actor's are not"
        if config.combiner.get("actor") is not None:
            raise InputError(f"combiner.actor: {needs}")
        remark = f"{needs}: it serves the critic, unitary the actor"
        made["actor"] = combiners.make("unitary", num_tasks, config.seed + 1, rescale=config.agent.rescale)
    return made, remark


def task_groups(config: TrainConfig, tasks: list[str]) -> list[list[str]]:
    """The tasks of each step of an update; `InputError` if there are to be more groups than tasks."""
    return [tasks] if config.method is None else random_groups(tasks, config.method.groups, config.seed)


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
    for side, weights in zip(SIDES, (critic, actor), strict=True):
        config.combiner[side] = {"name": "fixed", "weights": weights}


def replay_capacity(config: TrainConfig, num_tasks: int) -> int:
    """Transitions per task: an equal share of ``agent.buffer_size``, and no more than the run can fill."""
    return max(1, min(config.agent.buffer_size // num_tasks, config.steps))


def make_agent(
    config: TrainConfig, tasks: list[str], sizes: tuple[int, int], device: torch.device, *, capacity: int
) -> MultiTaskSAC:
    """The agent that a configuration describes, untrained, with a replay buffer of ``capacity`` per task.

    The sizes are those of observations and actions.
    """
    problem = tasks, *sizes
    how: dict[str, Any] = {"batch_size": config.batch_size, "capacity": capacity, "seed": config.seed}
    how |= {"device": device, "precision": config.precision}
    if config.method is not None:
        own_memory = config.method.name == "individual_optimizers"
        groups = task_groups(config, tasks)
        return AlternatingSAC(*problem, config.agent, groups=groups, memory_per_group=own_memory, **how)
    made, _ = make_combiners(config, len(tasks))
    return MultiTaskSAC(*problem, made["critic"], made["actor"], config.agent, **how)


def initial_weights(config: TrainConfig, tasks: list[str], sizes: tuple[int, int], path: Path) -> dict[str, Any] | None:
    """The agent's state that a run in a directory begins with, by ``init_from``; None where it has begun already.

    Raises:
        InputError: if there is none to be had, or a network has another shape.
    """
    if config.init_from is None or Checkpoints(path / "checkpoints").steps():
        return None
    state: dict[str, Any] = state_of_run(Path(config.init_from), "agent")["agent"]
    # Tried before anything is written, on an agent with next to no buffer.
    make_agent(config, tasks, sizes, torch.device("cpu"), capacity=1).start_from(state)
    return state


def settle_precision(config: TrainConfig, path: Path, device: torch.device) -> str | None:
    """Fills in what ``precision=auto`` means: what it meant when the run in a directory began, or else means here.

    Returns a remark for the user where the device has no units for it.

    Raises:
        InputError: if the device has no such products.
    """
    if config.precision == "auto" and (path / "config.yaml").exists():
        config.precision = read_config(path).get("precision", "fp32")  # a run of before there was a choice
    config.precision = precision_of(config.precision, device)
    if config.precision == "bf16" and not has_bf16(device):
        return f"precision=bf16 is emulated on this {device.type}, which has no units for it: fp32 is faster"
    return None


def nothing_learned(config: TrainConfig) -> str | None:
    """A remark for the user where a run ends before its first update."""
    if config.steps > config.warmup_steps:
        return None
    return f"nothing will be learned: steps={config.steps} is not beyond warmup_steps={config.warmup_steps}"


def make_environments(config: TrainConfig, family: Family) -> TaskVector:
    """The environments of training."""
    return TaskVector(family, seed=config.seed, num_workers=config.num_workers)


def make_evaluation_environments(config: TrainConfig, family: Family) -> TaskVector:
    """The environments of evaluation; their episodes may end at the first success where nothing else is measured."""
    return make_environments(config, family.evaluated(whole_episodes=config.metric not in (None, "success")))
