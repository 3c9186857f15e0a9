"""Steps for one group of tasks after the other: against a loop that is written out in float64."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from agents import sac
from agents.alternating import AlternatingSAC
from agents.sac import MultiTaskSAC, NetworkConfig, SACConfig, actor_losses, critic_losses
from mtrl.errors import RunError
from mtrl.gradients.graphs import WARM_UP
from tests.agents.test_graphs import captured, graphed, graphs, state  # noqa: F401
from tests.agents.test_sac import ACTION, LARGE, OBSERVATION, SAMPLES, TASKS, fill, make_agent, transition

GROUPS = [["door-open-v3", "reach-v3"], ["push-v3"]]
NUMBERS = [[2, 0], [1]]
PLAIN: dict[str, Any] = {"actor": NetworkConfig()}
DECAYED: dict[str, Any] = {"actor": NetworkConfig(weight_decay=0.05), "critic": NetworkConfig(weight_decay=0.1)}
OWN: dict[str, Any] = {"per_task_temperature": True, "max_gradient_norm": 0.5, "temperature_learning_rate": 1e-2}
DECOUPLED: dict[str, Any] = {"weight_decay_mode": "decoupled", "task_encoding": "none", "reward_scale": "none"}
EMBEDDING: dict[str, Any] = {"task_encoding": "embedding"}
OPTIONS = [PLAIN, DECAYED | OWN, DECAYED | DECOUPLED, DECAYED | EMBEDDING, LARGE | EMBEDDING | OWN]
NAMES = ["plain", "own temperatures, clipped", "decoupled", "codes", "large"]
BOTH = pytest.mark.parametrize("memory", [False, True], ids=["individual_steps", "individual_optimizers"])


def make(memory: bool, groups: Any = GROUPS, seed: int = 0, **options: Any) -> AlternatingSAC:
    config = SACConfig(hidden_sizes=[16, 16], **options)
    sizes = {"batch_size": SAMPLES, "capacity": 100, "seed": seed, "device": torch.device("cpu")}
    return AlternatingSAC(TASKS, OBSERVATION, ACTION, config, groups=groups, memory_per_group=memory, **sizes)


class Adam:
    """Kingma & Ba's, with weight decay of either kind, for one tensor."""

    def __init__(self, rate: float, decay: float = 0.0, *, decoupled: bool = False) -> None:
        self.rate, self.decay, self.decoupled = rate, decay, decoupled
        self.m: Any = 0.0
        self.v: Any = 0.0
        self.t = 0

    def step(self, p: Tensor, g: Tensor) -> Tensor:
        self.t += 1
        p, g = (p * (1 - self.rate * self.decay), g) if self.decoupled else (p, g + self.decay * p)
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        along: Tensor = (self.m / (1 - 0.9**self.t)) / ((self.v / (1 - 0.999**self.t)).sqrt() + 1e-8)
        return p - self.rate * along


class Oracle:
    """The same updates in float64, tensor by tensor: equation 6 or 7 with the groups of equation 8."""

    def __init__(self, agent: AlternatingSAC, memory: bool) -> None:
        self.agent, self.memory, self.config = agent, memory, agent.config
        self.nets = {
            name: copy.deepcopy(getattr(agent, name)).double() for name in ("critic", "actor", "target_critic")
        }
        self.log_alpha = agent.log_alpha.detach().double().clone()
        self.generator = torch.Generator()
        self.generator.set_state(agent.generator.get_state())
        self.adams: dict[Any, Adam] = {}

    def adam(self, key: Any, group: int, *, own: bool = False) -> Adam:
        decoupled = self.config.weight_decay_mode == "decoupled"
        if key == "alpha":
            made = Adam(self.config.temperature_learning_rate or self.config.learning_rate)
        else:
            made = Adam(self.config.learning_rate, getattr(self.config, key[0]).weight_decay, decoupled=decoupled)
        return self.adams.setdefault((key, group if self.memory or own else 0), made)

    def update(self) -> None:
        a, c = self.agent, self.config
        drawn = torch.randint(len(a.replay), (len(TASKS), SAMPLES), generator=self.generator)
        for number, group in enumerate(NUMBERS):
            self.step(number, group, drawn)
        critic = dict(self.nets["critic"].named_parameters())
        with torch.no_grad():
            for name, p in self.nets["target_critic"].named_parameters():
                p.copy_((1 - c.target_update_rate) * p + c.target_update_rate * critic[name])

    def noises(self, group: list[int]) -> Tensor:
        return torch.randn(len(group), SAMPLES, ACTION, generator=self.generator).double()

    def step(self, number: int, group: list[int], drawn: Tensor) -> None:
        a, c = self.agent, self.config
        alpha_of_all = self.log_alpha.exp()
        divisor = a.reward_scale.divisor(a.replay, alpha_of_all.float())
        # Each task alone, as if there were no batches of several.
        sums: dict[str, Any] = {"critic": 0.0, "actor": 0.0, "alpha": 0.0}
        log_alpha = self.log_alpha.clone().requires_grad_()
        next_noise, noise = self.noises(group), self.noises(group)
        for row, task in enumerate(group):
            rows = drawn[task]
            o, u, r, o2, done = (field[task][rows].double() for field in a.replay.fields[:5])
            r = r if divisor is None else r / divisor[task].double()
            alpha = alpha_of_all[task if len(alpha_of_all) > 1 else 0]
            with torch.no_grad():
                u2, lp2 = self.sample(task, o2, next_noise[row])
                target = self.nets["target_critic"].values.target(
                    r, c.discount * (1 - done), self.value("target_critic", task, o2, u2), alpha * lp2
                )
            error = self.nets["critic"].values.error(self.value("critic", task, o, u), target)
            sums["critic"] = sums["critic"] + error.mean(-1).sum()
            u1, lp = self.sample(task, o, noise[row])
            q = self.nets["critic"].values.joint_value(self.value("critic", task, o, u1))
            sums["actor"] = sums["actor"] + (alpha * lp - q).mean()
            own = log_alpha[task if len(alpha_of_all) > 1 else 0]
            sums["alpha"] = sums["alpha"] - (own.exp() * (lp.detach() + a.target_entropy)).mean()
        found = {}
        for side in ("critic", "actor"):
            named = dict(self.nets[side].named_parameters())
            gradients = torch.autograd.grad(sums[side] / len(TASKS), list(named.values()), retain_graph=True)
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            factor = 1.0 if c.max_gradient_norm is None else min(1.0, c.max_gradient_norm / float(norm))
            found[side] = {name: g * factor for name, g in zip(named, gradients, strict=True)}
        (of_alpha,) = torch.autograd.grad(sums["alpha"] / len(TASKS), log_alpha)
        with torch.no_grad():
            for side in ("critic", "actor"):
                for name, p in self.nets[side].named_parameters():
                    if name == "rows.weight":  # a task's row is the task's own parameter
                        for task in group:
                            p[task] = self.adam((side, name, task), 0).step(p[task], found[side][name][task])
                    else:
                        p.copy_(self.adam((side, name), number).step(p, found[side][name]))
            if len(self.log_alpha) == 1:
                self.log_alpha = self.adam("alpha", number).step(self.log_alpha, of_alpha)
            else:
                for task in group:
                    adam = self.adam("alpha", 100 + task, own=True)  # a task's temperature is its own parameter
                    self.log_alpha[task] = adam.step(self.log_alpha[task], of_alpha[task])
            if self.nets["critic"].rows is not None:
                self.nets["actor"].codes.copy_(self.nets["critic"].codes())

    def code(self, side: str, task: int, x: Tensor) -> Tensor:
        if self.config.task_encoding == "none":
            return x
        if self.config.task_encoding == "one_hot":
            own = torch.eye(len(TASKS), dtype=torch.float64)[task]
        elif side == "actor":
            own = self.nets["actor"].codes[task]
        else:
            table = self.nets[side].rows.weight
            own = table[task] / table[task].norm()
        return torch.cat([x, own.expand(len(x), -1)], 1)

    def value(self, side: str, task: int, o: Tensor, u: Tensor) -> Tensor:
        net = self.nets[side]
        x = torch.cat([self.code(side, task, o), u], 1)
        return net.layers(x.expand(net.size, 1, *x.shape))[:, 0]  # type: ignore[no-any-return]

    def sample(self, task: int, o: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.nets["actor"].layers(self.code("actor", task, o)).chunk(2, -1)
        log_std = log_std.clamp(-20, 2)
        raw = mean + log_std.exp() * noise
        density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - torch.log(1 - raw.tanh() ** 2)
        return raw.tanh(), density.sum(-1)


@BOTH
@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_updates_are_those_of_a_loop_over_the_groups(memory: bool, options: dict[str, Any]) -> None:
    agent = make(memory, **options)
    fill(agent)
    oracle = Oracle(agent, memory)
    before = copy.deepcopy({name: net.state_dict() for name, net in oracle.nets.items()})
    for _ in range(4):
        agent.update()
        oracle.update()
    for name, net in oracle.nets.items():
        for key, theirs in net.state_dict().items():
            # Adam makes whole steps of gradients that are all rounding: the way as a whole is compared.
            error, way = getattr(agent, name).state_dict()[key].double() - theirs, theirs - before[name][key]
            assert float(error.norm()) <= 3e-3 * float(way.norm()) + 1e-7, f"{name} {key}"
    torch.testing.assert_close(agent.log_alpha.detach().double(), oracle.log_alpha, rtol=1e-5, atol=1e-7)


def learned(agent: MultiTaskSAC) -> list[Tensor]:
    """All that an update changes, but for the states of combiners."""
    parts = {name: part for name, part in agent.state_dict().items() if "combiner" not in name}
    return [leaf for leaf in tree_leaves(parts) if isinstance(leaf, Tensor)]


@BOTH
@pytest.mark.parametrize("options", OPTIONS[:3], ids=NAMES[:3])
def test_one_group_is_unitary_scalarization(memory: bool, options: dict[str, Any]) -> None:
    agent, unitary = make(memory, [TASKS], **options), make_agent("unitary", **options)
    for one in (agent, unitary):
        fill(one)
    for insight in (False, True, False):
        found, expected = (one.update(insight=insight) for one in (agent, unitary))
        assert found.keys() == expected.keys()
        for key in found:
            if "cosines" not in key:
                assert float(found[key]) == pytest.approx(float(expected[key]), rel=1e-5, abs=1e-7), key
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(learned(agent), learned(unitary), strict=True))


def test_a_memory_of_each_group_is_what_tells_the_two_apart() -> None:
    one, other = make(False, **PLAIN), make(True, **PLAIN)
    assert len(one.optimizers) == 3
    assert len(other.optimizers) == 6
    for agent in (one, other):
        fill(agent)
        agent.update()
    assert not torch.equal(
        torch.cat([p.flatten() for p in one.actor.parameters()]),
        torch.cat([p.flatten() for p in other.actor.parameters()]),
    )


@BOTH
@pytest.mark.parametrize("options", [PLAIN, DECAYED | EMBEDDING | OWN], ids=["plain", "all"])
def test_state_restores_learning_bit_for_bit(memory: bool, options: dict[str, Any]) -> None:
    agent, twin = make(memory, **options), make(memory, seed=9, **options)
    fill(agent)
    for _ in range(3):
        agent.update()
    twin.replay.restore(0, agent.replay.slice(0, agent.replay.added))
    twin.load_state_dict(copy.deepcopy(agent.state_dict()))
    for _ in range(3):
        assert agent.update() == twin.update()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(agent), state(twin), strict=True))
    agent.reset()
    assert all(not optimizer.state for optimizer in agent.optimizers.values())


@BOTH
def test_measures_of_conflict_change_nothing_and_are_of_all_tasks_before_the_first_step(memory: bool) -> None:
    agent, other, unitary = make(memory), make(memory), make_agent("unitary")
    for one in (agent, other, unitary):
        fill(one)
    found, plain, expected = agent.update(insight=True), other.update(), unitary.update(insight=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(agent), state(other), strict=True))
    measures = {key for key in expected if key.startswith(("conflict/", "network/"))}
    assert measures | plain.keys() == found.keys()
    assert {key: found[key] for key in measures} == {key: expected[key] for key in measures}
    assert found["conflict/critic/weight/push-v3"] == 1.0


@pytest.mark.usefixtures("graphs")
@BOTH
@pytest.mark.parametrize("options", [PLAIN, DECAYED | EMBEDDING | OWN], ids=["plain", "all"])
def test_captured_steps_are_the_steps(memory: bool, options: dict[str, Any]) -> None:
    eager, agent = make(memory, **options), make(memory, **options)
    for one in (eager, agent):
        fill(one)
        one.update()
    graphed(agent)
    agent.renew_pieces()
    for update in range(WARM_UP + 4):
        assert agent.update(insight=update == WARM_UP + 1) == eager.update(insight=update == WARM_UP + 1)
        for one in (eager, agent):
            one.remember(*transition(np.random.default_rng(update)))
    assert captured(agent)[2:] == [True] * 5
    assert [getattr(piece, "graph", None) is not None for piece in agent.further_pieces[0]][2:] == [True] * 5
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(agent), state(eager), strict=True))


@pytest.mark.parametrize("objective", ["critic", "actor"])
def test_a_loss_that_is_not_finite_is_named_and_its_step_not_made(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, other = make(True), make(True)
    for one in (agent, other):
        fill(one)

    def broken(losses: Any, *given: Any) -> Any:
        found = losses(*given)
        factor = math.inf if 1 in given[-1] else 1.0
        return (found[0] * factor, *found[1:]) if isinstance(found, tuple) else found * factor

    plain = critic_losses if objective == "critic" else actor_losses
    monkeypatch.setattr(sac, f"{objective}_losses", lambda *given: broken(plain, *given))
    before = [p.clone() for p in agent.actor.parameters()]
    with pytest.raises(RunError, match=f"non-finite loss of task 'push-v3' in the {objective} objective"):
        agent.update()
    monkeypatch.undo()
    drawn = other.replay.draw(SAMPLES, other.generator)
    other.differentiate(other.turns[0], other.pieces, drawn)
    other.pieces.step()
    first = [p.clone() for p in other.actor.parameters()]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(agent.actor.parameters(), first, strict=True))
    assert not torch.equal(before[0], first[0])
    agent.update()


def test_both_are_agents_whose_policies_are_alike() -> None:
    agent = make(False)
    assert isinstance(agent, MultiTaskSAC)
    assert agent.policy_state().keys() == make_agent().policy_state().keys()
    other = make(True, seed=3)
    other.start_from(agent.state_dict())
    assert torch.equal(other.log_alpha, agent.log_alpha)
    assert math.isfinite(float(other.policy()(np.zeros((3, OBSERVATION), np.float32)).sum()))
