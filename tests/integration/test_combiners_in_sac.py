"""Every combiner drives the agent that ``scripts/train.py`` builds from its configuration."""

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from agents.sac import MultiTaskSAC
from envs.metaworld import ACTION_SIZE, OBSERVATION_SIZE, MetaWorld
from mtrl import combiners
from mtrl.errors import InputError
from scripts.build import make_agent, make_combiners
from scripts.configuration import TrainConfig
from tests.configured import configured

TASKS = ["reach-v3", "push-v3", "door-open-v3", "drawer-close-v3"]


def configuration(name: str) -> TrainConfig:
    overrides = [f"combiner={name}", "agent.hidden_sizes=[32,32]", "batch_size=8"]
    if name == "fixed":
        overrides.append("combiner.weights=[1,2,3,4]")
    return configured(*overrides)


def filled_agent(config: TrainConfig) -> MultiTaskSAC:
    agent = make_agent(config, TASKS, MetaWorld(TASKS).sizes(), torch.device("cpu"), capacity=100)
    random = np.random.default_rng(0)
    n = len(TASKS)
    for step_ in range(50):
        step: Any = SimpleNamespace(
            rewards=random.normal(size=n),
            next_observations=random.normal(size=(n, OBSERVATION_SIZE)).astype(np.float32),
            terminated=np.zeros(n, bool),
            truncated=np.full(n, step_ % 10 == 9),
            unstable=np.zeros(n, bool),
        )
        observations = random.normal(size=(n, OBSERVATION_SIZE)).astype(np.float32)
        agent.remember(observations, random.uniform(-1, 1, (n, ACTION_SIZE)).astype(np.float32), step)
    return agent


@pytest.mark.parametrize("name", combiners.names())
def test_every_combiner_trains_the_agent(name: str) -> None:
    config = configuration(name)
    agent, twin = filled_agent(config), filled_agent(config)
    before = [p.clone() for p in (*agent.actor.parameters(), *agent.critic.parameters())]
    for step in range(4):
        metrics = agent.update(insight=step == 2)
        twin.update()
    after = [*agent.actor.parameters(), *agent.critic.parameters()]
    assert all(torch.isfinite(p).all() for p in after)
    assert sum(not torch.equal(a, b) for a, b in zip(after, before, strict=True)) == len(after)
    same = [*twin.actor.parameters(), *twin.critic.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, same, strict=True)), "looking at conflict changed the update"
    assert all(np.isfinite(float(value)) for value in metrics.values())


@pytest.mark.parametrize("name", combiners.names())
def test_methods_that_need_positive_losses_serve_the_critic_alone(name: str) -> None:
    made, remark = make_combiners(configuration(name), len(TASKS))
    assert made["critic"] is not made["actor"]
    assert made["critic"].name == name
    if made["critic"].positive_losses:
        assert made["actor"].name == "unitary"
        assert remark is not None
        assert "positive losses" in remark
    else:
        assert made["actor"].name == name
        assert remark is None


def sides(*overrides: str) -> dict[str, Any]:
    made, _ = make_combiners(configured(*overrides), len(TASKS))
    return made


def test_each_side_can_have_a_combiner_of_its_own_with_its_options() -> None:
    made = sides("combiner=mgda", "combiner.normalization=l2", "combiner.actor=pcgrad")
    assert (made["critic"].name, made["actor"].name) == ("mgda", "pcgrad")
    assert made["critic"].normalization == "l2"
    made = sides("combiner=unitary", "combiner.critic={name:cagrad,c:0.2,smooth:0.5}", "combiner.actor={name:modo}")
    assert (made["critic"].name, made["actor"].name) == ("cagrad", "modo")
    assert made["critic"].momentum == 0.5
    assert made["critic"].inner.c == 0.2
    assert made["actor"].halves
    made = sides("combiner=mgda", "combiner.every=4", "combiner.actor=unitary")  # wrappers are the run's combiner's
    assert made["critic"].period == 4
    assert type(made["actor"]) is combiners.get("unitary")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["combiner.actor=famo"], r"combiner.actor: famo needs positive losses, which the actor's are not"),
        (["combiner.actor=pcgrd"], r"unknown combiner 'pcgrd': did you mean 'pcgrad'\?"),
        (
            ["combiner.critic=[mgda]"],
            r"combiner.critic: expected a name or {name: NAME, option: value}, got \['mgda'\]",
        ),
        (["combiner.critic={c:1}"], r"combiner.critic: expected a name or"),
        (["combiner.actor={name:cagrad,d:1}"], "unknown option of cagrad 'd'"),
        (["combiner.actor={name:mgda,every:0}"], "every of mgda: expected an integer of at least 1, got 0"),
    ],
)
def test_a_side_that_cannot_be_made_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sides("combiner=unitary", *overrides)


def test_every_state_of_the_newer_agent_goes_on_bit_for_bit() -> None:
    """Per-side combiners under wrappers, codes of tasks, the scale of returns, and a reset in between."""
    config = configured(
        *("combiner=gradnorm", "combiner.every=2", "combiner.actor={name:modo,gamma:0.1,every:3,smooth:0.5}"),
        *("agent=large", "agent.hidden_sizes=[16,16]", "agent.critic.hidden_sizes=[16,16]", "batch_size=8"),
        "agent.task_encoding=embedding",
    )
    agent, restored = filled_agent(config), filled_agent(config)
    for step in range(5):
        agent.update()
        if step == 2:
            agent.reset()
    restored.load_state_dict(copy.deepcopy(agent.state_dict()))
    for _ in range(7):
        agent.update()
        restored.update(insight=True)
    for one, other in zip(agent._networks().values(), restored._networks().values(), strict=True):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
    for one, other in zip(agent.objectives.combiners.values(), restored.objectives.combiners.values(), strict=True):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key


def test_conflict_is_measured_for_unitary_too() -> None:
    agent = filled_agent(configuration("unitary"))
    metrics = agent.update(insight=True)
    for objective in ("critic", "actor"):
        keys = {"cosine_mean", "cosine_min", "conflicting_pairs", "magnitude_similarity", "summed_gradient_norm"}
        keys |= {f"{kind}/{task}" for kind in ("weight", "cosine_to_update") for task in TASKS}
        assert {f"conflict/{objective}/{key}" for key in keys} <= set(metrics)


def test_rescaled_weights_sum_to_the_number_of_tasks_unless_the_papers_scale_is_asked_for() -> None:
    config = configuration("mgda")
    metrics = filled_agent(config).update(insight=True)
    weights = [metrics[f"conflict/critic/weight/{task}"] for task in TASKS]
    assert sum(weights) == pytest.approx(len(TASKS), rel=1e-5)
    unscaled = dataclasses.replace(config, agent=dataclasses.replace(config.agent, rescale=False))
    metrics = filled_agent(unscaled).update(insight=True)
    assert sum(metrics[f"conflict/critic/weight/{task}"] for task in TASKS) == pytest.approx(1, rel=1e-5)
