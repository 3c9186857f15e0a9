"""The agent on a device that is not the host, under every method: the numbers of the CPU, and no wait too many."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from agents.sac import MultiTaskSAC, SACConfig
from mtrl import combiners
from tests.agents.test_sac import ACTION, OBSERVATION, SAMPLES, TASKS, transition
from tests.disguised import AWAY, AnotherDevice, Away, another_device, same, through_a_file  # noqa: F401

# As of the device whose name the disguise has, where nothing would be copied.
pytestmark = pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
CPU = torch.device("cpu")
DRAWN_THERE = ("graddrop", "sign_agnostic_drop")
"""Their masks are drawn where the gradients are, by a generator of that device."""


def combiner(name: str, seed: int) -> combiners.Combiner:
    options = {"weights": [1.0, 2.0, 0.5]} if name == "fixed" else {}
    return combiners.make(name, len(TASKS), seed=seed, rescale=True, **options)


def make(name: str, device: torch.device) -> MultiTaskSAC:
    critic = combiner(name, 1)
    actor = combiner("unitary" if critic.positive_losses else name, 2)
    config = SACConfig(hidden_sizes=[8, 8], max_gradient_norm=0.5, per_task_temperature=True, n_step=3)
    shape = {"batch_size": SAMPLES, "capacity": 7, "seed": 0, "device": device}
    agent = MultiTaskSAC(TASKS, OBSERVATION, ACTION, critic, actor, config, **shape)  # type: ignore[arg-type]
    agent._autocast = nullcontext  # type: ignore[assignment,method-assign]  # the disguise has none
    return agent


def live(agent: MultiTaskSAC, steps: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    for step in range(steps):
        observations, _, led_to = transition(random, unstable=(False, step == 3, False))
        agent.remember(observations, agent.act(observations), led_to)


@pytest.mark.parametrize("name", combiners.names())
def test_an_agent_there_is_the_agent_here(name: str, another_device: AnotherDevice) -> None:  # noqa: F811
    here, there = make(name, CPU), make(name, AWAY)
    told = []
    for agent in (here, there):
        live(agent, 8, seed=0)
        seen = [agent.update(insight=update == 1) for update in range(2)]
        # Measures of conflict depend on how memory is aligned, in the last place.
        told.append([{key: value for key, value in one.items() if key.startswith("train/")} for one in seen])
        live(agent, 1, seed=1)
    assert isinstance(next(there.actor.parameters()).data, Away)
    assert isinstance(there.replay.fields.rewards, Away)
    if name not in DRAWN_THERE:
        assert same(*told)
        assert same(here.state_dict(), there.state_dict())
    saved, transitions = through_a_file(there.state_dict()), there.replay.slice(2, 9)
    for device in (AWAY, CPU) if name not in DRAWN_THERE else (AWAY,):
        resumed = make(name, device)
        resumed.load_state_dict(saved)
        resumed.replay.restore(2, transitions)
        resumed.update()
        if device == AWAY:
            there.update()
        assert same(resumed.state_dict(), there.state_dict())


@pytest.mark.parametrize("name", combiners.names())
def test_what_a_graph_holds_leaves_the_host_alone(name: str, another_device: AnotherDevice) -> None:  # noqa: F811
    agent = make(name, AWAY)
    live(agent, 5, seed=0)
    agent.update()
    assert agent.objectives.obstacle() is None
    pieces, drawn = agent.pieces, agent.replay.draw(SAMPLES, agent.generator)
    observations, rows = (torch.zeros(len(TASKS), size, device=AWAY) for size in (OBSERVATION, 2 * OBSERVATION + 5))
    with another_device.alone():
        told = {"critic": pieces.critic(drawn), "actor": pieces.actor()}
    found = [
        agent.objectives.weigh(side, one._replace(numbers=one.numbers.cpu())).to(AWAY) for side, one in told.items()
    ]
    with another_device.alone():
        pieces.combine_critic(found[0])
        pieces.combine_actor(found[1])
        pieces.step()
        pieces.explore(observations)
        pieces.write(rows.double())


@pytest.mark.parametrize("name", ["unitary", "uncertainty", "pcgrad", "mgda", "graddrop"])
def test_an_iteration_waits_once_for_each_objective_and_for_the_actions(
    name: str,
    another_device: AnotherDevice,  # noqa: F811
) -> None:
    agent = make(name, AWAY)
    live(agent, 5, seed=0)
    agent.update()
    step = agent.pieces.step
    agent.pieces = agent.pieces._replace(step=lambda: step())  # as a graph: nobody waits for its norms
    another_device.waits.clear()
    agent.update()
    assert another_device.waits == ["aten._to_copy.default"] * 2
    live(agent, 1, seed=1)
    assert another_device.waits == ["aten._to_copy.default"] * 3


def test_what_involves_the_host_is_noticed(another_device: AnotherDevice) -> None:  # noqa: F811
    there, here = torch.ones(3, device=AWAY), torch.ones(3)
    for work in (
        lambda: there.sum().item(),
        lambda: bool(there.any()),
        lambda: there.cpu(),
        lambda: here.to(AWAY),
        lambda: there[there > 0],
        lambda: here + 1,
        lambda: torch.zeros(2),
    ):
        with another_device.alone(), pytest.raises(RuntimeError, match="involves the host"):
            work()
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with another_device.alone():
        assert isinstance(there + torch.zeros(3, device=AWAY), Away)
