"""Agents to time, with something to learn from."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from agents.objectives import Objectives
from agents.sac import MultiTaskSAC, SACConfig
from envs.metaworld import ACTION_SIZE, OBSERVATION_SIZE
from mtrl import combiners
from mtrl.combiners import Combiner
from mtrl.errors import unknown_name
from mtrl.gradients import TaskBatched
from mtrl.gradients.precision import precision_of
from scripts.benchmarks.timing import Work


def make_combiner(name: str, num_tasks: int) -> Combiner:
    """A combiner with its default options."""
    options: dict[str, Any] = {"weights": [1.0] * num_tasks} if name == "fixed" else {}
    return combiners.make(name, num_tasks, rescale=True, **options)


class Mode(NamedTuple):
    """How updates are computed."""

    precision: str = "fp32"
    compile: str = "auto"

    @property
    def words(self) -> dict[str, str]:
        """For a row: the precision, and what became of the updates' operations."""
        return {"precision": self.precision, "launches": "off" if self.compile == "off" else "captured"}


def modes(arguments: argparse.Namespace, device: torch.device) -> list[Mode]:
    """Those asked for; on a GPU, each precision with updates captured as graphs and without."""
    ways = ["auto", "off"] if device.type == "cuda" else ["off"]
    return [Mode(precision_of(name, device), way) for name in arguments.precision for way in ways]


def make_agent(
    num_tasks: int,
    batch_size: int,
    hidden_sizes: list[int],
    device: torch.device,
    mode: Mode = Mode(),  # noqa: B008 - it is never changed
    *,
    capacity: int = 300,
) -> MultiTaskSAC:
    """An agent with random transitions to learn from."""
    agent = MultiTaskSAC(
        [f"task {task}" for task in range(num_tasks)],
        OBSERVATION_SIZE,
        ACTION_SIZE,
        make_combiner("unitary", num_tasks),
        make_combiner("unitary", num_tasks),
        SACConfig(hidden_sizes=hidden_sizes, compile=mode.compile),
        batch_size=batch_size,
        capacity=capacity,
        seed=0,
        device=device,
        precision=mode.precision,
    )
    generator = torch.Generator().manual_seed(0)
    never = torch.zeros(num_tasks, dtype=torch.bool)
    for _ in range(300):
        observations = torch.randn(2, num_tasks, OBSERVATION_SIZE, generator=generator)
        actions = torch.rand(num_tasks, ACTION_SIZE, generator=generator) * 2 - 1
        rewards = torch.rand(num_tasks, generator=generator) * 10
        agent.replay.add(observations[0], actions, rewards, observations[1], never, ended=never)
    return agent


def make_update(agent: MultiTaskSAC, name: str, networks: Mapping[str, TaskBatched] | None = None) -> Work:
    """The agent's full update under one method, with its own per-task gradients or, by ``networks``, a rival's.

    All methods share the agent and its memory for Jacobians.
    """
    critic = make_combiner(name, len(agent.tasks))
    # As in training: a method that needs positive losses serves the critic alone.
    actor = make_combiner("unitary" if critic.positive_losses else name, len(agent.tasks))
    objectives = Objectives(
        agent.tasks,
        networks or agent.objectives.networks,
        {"critic": critic, "actor": actor},
        max_norm=agent.config.max_gradient_norm,
        device=agent.device,
    )
    agent.objectives = objectives
    turns = agent.turns = agent.make_turns()
    # A rival has its own backward pass, which no graph can hold.
    pieces = agent.plain_pieces() if networks else agent.make_pieces()

    def update() -> None:
        agent.objectives, agent.turns, agent.pieces = objectives, turns, pieces
        agent.update()

    return update


def chosen(methods: list[str] | None, valid: Sequence[str]) -> Sequence[str]:
    """The methods asked for, or all."""
    for method in methods or ():
        if method not in valid:
            raise unknown_name("method", method, valid)
    return methods or valid
