"""The agent against the equations of soft actor-critic, written out sample by sample in float64."""

import io
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import sac
from agents.networks import Actor, TwinCritic
from agents.replay import Batch
from agents.sac import MultiTaskSAC, SACConfig, actor_losses, critic_losses, critic_targets, temperature_loss
from mtrl import combiners
from mtrl.errors import InputError, RunError

TASKS = ["reach-v3", "push-v3", "door-open-v3"]
OBSERVATION, ACTION, SAMPLES = 5, 2, 6
DISCOUNT = 0.9


def make_agent(combiner: str = "unitary", seed: int = 0, **options: object) -> MultiTaskSAC:
    config = SACConfig(hidden_sizes=[16, 16], **options)  # type: ignore[arg-type]
    return MultiTaskSAC(
        TASKS,
        OBSERVATION,
        ACTION,
        combiners.make(combiner, len(TASKS), seed=1),
        combiners.make(combiner, len(TASKS), seed=2),
        config,
        batch_size=SAMPLES,
        capacity=100,
        seed=seed,
        device=torch.device("cpu"),
    )


def fill(agent: MultiTaskSAC, count: int = 40, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for _ in range(count):
        agent.remember(*transition(random))


def transition(random: np.random.Generator, unstable: tuple[bool, ...] = (False, False, False)) -> tuple[Any, Any, Any]:
    n = len(TASKS)
    step = SimpleNamespace(
        rewards=random.normal(size=n) * [1, 10, 100],
        next_observations=random.normal(size=(n, OBSERVATION)).astype(np.float32),
        terminated=random.random(n) < 0.1,
        unstable=np.array(unstable),
    )
    observations = random.normal(size=(n, OBSERVATION)).astype(np.float32)
    return observations, random.uniform(-1, 1, (n, ACTION)).astype(np.float32), step


def break_loss(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second task's loss is infinite from now on."""
    factors = torch.tensor([1.0, math.inf, 1.0])
    if objective == "critic":
        monkeypatch.setattr(sac, "critic_losses", lambda *args: critic_losses(*args) * factors)
    else:
        monkeypatch.setattr(sac, "actor_losses", lambda *args: (actor_losses(*args)[0] * factors, torch.zeros(3, 6)))


def policy(actor: Actor, observation: Tensor, noise: Tensor) -> tuple[Tensor, float]:
    """One action and its log-probability, by the textbook."""
    mean, log_std = actor(observation)
    action, log_prob = [], 0.0
    for m, s, e in zip(mean.tolist(), log_std.tolist(), noise.tolist(), strict=True):
        raw = m + math.exp(s) * e
        action.append(math.tanh(raw))
        log_prob += -0.5 * e * e - s - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(raw) ** 2)
    return torch.tensor(action, dtype=torch.float64), log_prob


@pytest.fixture
def setting() -> SimpleNamespace:
    torch.manual_seed(0)
    shape = (len(TASKS), SAMPLES)
    return SimpleNamespace(
        actor=Actor(OBSERVATION, ACTION, [16]).double(),
        critic=TwinCritic(OBSERVATION, ACTION, [16]).double(),
        target_critic=TwinCritic(OBSERVATION, ACTION, [16]).double(),
        alpha=torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64),
        noise=torch.randn(*shape, ACTION, generator=torch.Generator().manual_seed(5), dtype=torch.float64),
        batch=Batch(
            torch.randn(*shape, OBSERVATION, dtype=torch.float64),
            torch.rand(*shape, ACTION, dtype=torch.float64) * 2 - 1,
            torch.randn(*shape, dtype=torch.float64),
            torch.randn(*shape, OBSERVATION, dtype=torch.float64),
            (torch.rand(shape) < 0.3).double(),
        ),
    )


def test_losses_follow_the_equations(setting: SimpleNamespace) -> None:
    s, b = setting, setting.batch
    targets = critic_targets(s.actor, s.target_critic, b, s.alpha, DISCOUNT, torch.Generator().manual_seed(5))
    of_critic = critic_losses(s.critic, b, targets)
    of_actor, log_prob = actor_losses(s.actor, s.critic, b, s.alpha, torch.Generator().manual_seed(5))
    assert 0 < b.terminated.sum() < b.terminated.numel()
    of_critic, of_actor = of_critic.detach(), of_actor.detach()
    for t in range(len(TASKS)):
        critic_sum = actor_sum = 0.0
        for i in range(SAMPLES):
            action, log_p = policy(s.actor, b.next_observations[t, i], s.noise[t, i])
            q = s.target_critic(b.next_observations[t : t + 1, i : i + 1], action.view(1, 1, -1)).flatten().tolist()
            soft_value = min(q) - float(s.alpha[t]) * log_p
            target = float(b.rewards[t, i]) + (0.0 if b.terminated[t, i] else DISCOUNT * soft_value)
            assert float(targets[t, i]) == pytest.approx(target, rel=1e-9)
            q = s.critic(b.observations[t : t + 1, i : i + 1], b.actions[t : t + 1, i : i + 1]).flatten().tolist()
            critic_sum += (q[0] - target) ** 2 + (q[1] - target) ** 2
            action, log_p = policy(s.actor, b.observations[t, i], s.noise[t, i])
            assert float(log_prob[t, i]) == pytest.approx(log_p, rel=1e-9)
            q = s.critic(b.observations[t : t + 1, i : i + 1], action.view(1, 1, -1)).flatten().tolist()
            actor_sum += float(s.alpha[t]) * log_p - min(q)
        assert float(of_critic[t]) == pytest.approx(critic_sum / SAMPLES, rel=1e-9)
        assert float(of_actor[t]) == pytest.approx(actor_sum / SAMPLES, rel=1e-9)


@pytest.mark.parametrize("size", [1, 3])
def test_the_temperature_rises_where_entropy_is_below_its_target(size: int) -> None:
    log_alpha = torch.zeros(size, requires_grad=True)
    log_prob = torch.tensor([[5.0], [5.0], [-5.0]]).expand(3, SAMPLES)
    temperature_loss(log_alpha, log_prob, target_entropy=-2.0).backward()
    assert log_alpha.grad is not None
    expected = -(log_prob - 2.0).mean(1) / 3  # d/d log_alpha of -alpha (log_prob + H), alpha = 1, mean over tasks
    torch.testing.assert_close(log_alpha.grad, expected if size == 3 else expected.sum(0, keepdim=True))


def test_an_update_is_one_adam_step_on_the_mean_of_the_task_losses() -> None:
    agent, reference = make_agent(), make_agent()
    fill(agent)
    fill(reference)
    agent.update()
    r = reference
    batch = r.replay.sample(r.batch_size, r.generator)
    alpha = r.log_alpha.detach().exp().unsqueeze(-1)
    targets = critic_targets(r.actor, r.target_critic, batch, alpha, r.config.discount, r.generator)
    critic_losses(r.critic, batch, targets).mean().backward()
    critic_gradient = [p.grad.clone() for p in r.critic.parameters() if p.grad is not None]
    losses, log_prob = actor_losses(r.actor, r.critic, batch, alpha, r.generator)
    losses.mean().backward()
    for parameter, gradient in zip(r.critic.parameters(), critic_gradient, strict=True):
        parameter.grad = gradient
    temperature_loss(r.log_alpha, log_prob, -ACTION).backward()
    rate = r.config.learning_rate
    torch.optim.Adam(r.critic.parameters(), rate).step()
    torch.optim.Adam(r.actor.parameters(), rate, weight_decay=r.config.actor_weight_decay).step()
    torch.optim.Adam([r.log_alpha], rate).step()
    before = [p.clone() for p in r.target_critic.parameters()]
    for name in ("actor", "critic"):
        for ours, theirs in zip(getattr(agent, name).parameters(), getattr(r, name).parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(agent.log_alpha, r.log_alpha)
    tau = r.config.target_update_rate
    for ours, old, new in zip(agent.target_critic.parameters(), before, r.critic.parameters(), strict=True):
        torch.testing.assert_close(ours, (1 - tau) * old + tau * new, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("temperature", [False, True])
def test_state_restores_learning_bit_for_bit(temperature: bool) -> None:
    agent = make_agent("rlw_normal", per_task_temperature=temperature)
    fill(agent)
    for _ in range(3):
        agent.update()
    copy = make_agent("rlw_normal", seed=9, per_task_temperature=temperature)
    copy.replay.restore(0, agent.replay.slice(0, agent.replay.added))
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    file.seek(0)
    copy.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        agent.update(insight=True)  # looking changes nothing
        copy.update()
    observations = np.ones((3, OBSERVATION), np.float32)
    assert np.array_equal(agent.act(observations), copy.act(observations))
    for ours, theirs in zip(agent.target_critic.parameters(), copy.target_critic.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_deterministic_policy_touches_no_state() -> None:
    agent = make_agent()
    before = agent.generator.get_state()
    actions = agent.policy()(np.ones((3, OBSERVATION), np.float32))
    assert torch.equal(agent.generator.get_state(), before)
    assert np.abs(actions).max() <= 1
    assert not np.array_equal(actions[0], actions[1]), "the task identity reaches the policy"


def test_without_task_encoding_tasks_cannot_be_told_apart() -> None:
    actions = make_agent(task_encoding="none").policy()(np.ones((3, OBSERVATION), np.float32))
    assert np.allclose(actions[0], actions[1])


def test_a_broken_simulation_is_never_stored() -> None:
    agent = make_agent()
    random = np.random.default_rng(0)
    with pytest.raises(RunError, match="push-v3"):
        agent.remember(*transition(random, unstable=(False, True, False)))
    agent.remember(*transition(random))
    first = [field.clone() for field in agent.replay.last()]
    agent.remember(*transition(random, unstable=(False, True, False)))
    for field, before in zip(agent.replay.last(), first, strict=True):
        assert torch.equal(field[1], before[1])
    assert not torch.equal(agent.replay.last()[0][0], first[0][0])


@pytest.mark.parametrize("objective", ["critic", "actor"])
def test_a_non_finite_update_is_named_and_not_applied(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent("mgda")
    fill(agent)
    agent.update()
    break_loss(objective, monkeypatch)
    before = [p.clone() for p in (*agent.critic.parameters(), *agent.actor.parameters())]
    with pytest.raises(RunError, match=rf"non-finite loss of task 'push-v3' in the {objective} .*'mgda'"):
        agent.update()
    after = (*agent.critic.parameters(), *agent.actor.parameters())
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_gradient_clipping_bounds_the_norm() -> None:
    agent = make_agent(max_gradient_norm=1e-6)
    fill(agent)
    norms = []
    step = agent.optimizers["critic"].step

    def measured() -> None:
        norms.append(torch.stack([p.grad.norm() for p in agent.critic.parameters() if p.grad is not None]).norm())
        step()

    agent.optimizers["critic"].step = measured  # type: ignore[method-assign, assignment]
    agent.update()
    assert float(norms[0]) == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", -1.0), ("discount", 1.5), ("hidden_sizes", [0]), ("task_encoding", "x"), ("buffer_size", 0)],
)
def test_values_out_of_range_are_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"agent.{key}"):
        SACConfig(**{key: value})  # type: ignore[arg-type]


def test_objectives_cannot_share_a_combiner() -> None:
    shared = combiners.make("unitary", 3)
    with pytest.raises(InputError, match="own"):
        MultiTaskSAC(
            TASKS, 5, 2, shared, shared, SACConfig(), batch_size=1, capacity=1, seed=0, device=torch.device("cpu")
        )
