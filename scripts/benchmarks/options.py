"""A full SAC update with one of the agent's options changed, in processor time relative to ``agent=kurin``."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import OmegaConf

from agents.sac import MultiTaskSAC, SACConfig
from envs.metaworld import ACTION_SIZE, OBSERVATION_SIZE
from scripts.benchmarks.timing import Line, Row, Work, interleaved, milliseconds, processor_seconds, ratio
from scripts.benchmarks.updates import make_agent, make_combiner
from scripts.entry import CONFIGS

TITLE = "full SAC update: processor time relative to that of agent=kurin (and in milliseconds)"
WORDS = ("option",)
INSIGHT = "at a step of insight.every"
CHANGED = (
    "agent.critic.layer_norm=true",
    "agent.actor.layer_norm=true",
    "agent.critic.block=residual",
    "agent.critic.hidden_sizes=[1024,1024,1024]",
    "agent.actor.hidden_sizes=[256,256,256]",
    "agent.critics=1",
    "agent.critics=4",
    "agent.twins=mean",
    "agent.critic_loss=categorical",
    "agent.reward_scale=return",
    "agent.reward_scale=mean",
    "agent.reward_scale=none",
    "agent.task_encoding=embedding",
    "agent.task_encoding=none",
    "agent.per_task_temperature=true",
    "agent.max_gradient_norm=1.0",
    "agent.weight_decay_mode=decoupled",
    INSIGHT,
    "agent=large",
    "agent=cpu",
)


def measure(arguments: argparse.Namespace, device: torch.device) -> list[Row]:
    """Times an update with each option, each right after Kurin's, in rounds over all of them."""
    rows: list[Row] = []
    for num_tasks in arguments.tasks:
        base = make_agent(num_tasks, arguments.batch_size, SACConfig().hidden_sizes, device)
        make = partial(_update, base)

        def pair(update: Work, kurin: Work = base.update) -> tuple[float, float]:
            return processor_seconds(kurin), processor_seconds(update)

        costs = {option: partial(pair, make(option)) for option in CHANGED}
        kurin, own = interleaved(costs, arguments.repeats, f"{num_tasks} tasks x {arguments.batch_size} samples")
        case = {"tasks": num_tasks, "batch_size": arguments.batch_size}
        rows.append(case | {"option": "agent=kurin", "median": median(chain(*kurin.values())), "ratio": 1.0})
        for option in CHANGED:
            found = {"kurin_seconds": kurin[option], "seconds": own[option], "median": median(own[option])}
            rows.append(case | {"option": option, **found, "ratio": ratio(own[option], kurin[option])})
    return rows


def _update(base: MultiTaskSAC, option: str) -> Callable[[], object]:
    """The update of an agent with an option, which learns from what another has seen."""
    if option == INSIGHT:
        return partial(_agent(base, SACConfig(), base.batch_size).update, insight=True)
    given: Any = OmegaConf.from_dotlist([option])
    if isinstance(name := given.agent, str):
        given = OmegaConf.load(Path(CONFIGS) / "agent" / f"{name}.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SACConfig), given.agent))
    assert isinstance(config, SACConfig)
    return _agent(base, config, given.get("batch_size", base.batch_size)).update


def _agent(base: MultiTaskSAC, config: SACConfig, batch_size: int) -> MultiTaskSAC:
    num_tasks = len(base.tasks)
    agent = MultiTaskSAC(
        base.tasks,
        OBSERVATION_SIZE,
        ACTION_SIZE,
        make_combiner("unitary", num_tasks),
        make_combiner("unitary", num_tasks),
        config,
        batch_size=batch_size,
        capacity=base.replay.capacity,
        seed=0,
        device=base.device,
    )
    agent.replay.restore(0, base.replay.slice(0, base.replay.added))
    agent.replay.load_state_dict(base.replay.state_dict())
    return agent


def lines(rows: list[Row]) -> Iterator[Line]:
    """One line an option, one column a case."""
    for row in rows:
        yield (
            (row["option"],),
            {f"{row['tasks']} x {row['batch_size']}": f"{row['ratio']:.2f} ({milliseconds(row['median'])})"},
        )
