"""The agent against the equations of soft actor-critic, written out sample by sample in float64."""

import copy
import io
import math
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import sac
from agents.networks import Actor, Critics
from agents.replay import Batch
from agents.reward_scale import ReturnScale
from agents.sac import (
    MultiTaskSAC,
    NetworkConfig,
    SACConfig,
    actor_losses,
    critic_losses,
    critic_targets,
    temperature_loss,
)
from agents.values import ScalarValues
from mtrl import combiners
from mtrl.errors import InputError, RunError
from tests.products import MATMUL, Products

TASKS = ["reach-v3", "push-v3", "door-open-v3"]
OBSERVATION, ACTION, SAMPLES = 5, 2, 6
DISCOUNT = 0.9


def make_agent(combiner: str = "unitary", seed: int = 0, precision: str = "fp32", **options: object) -> MultiTaskSAC:
    config = SACConfig(hidden_sizes=[16, 16], **options)  # type: ignore[arg-type]
    return MultiTaskSAC(
        TASKS,
        OBSERVATION,
        ACTION,
        combiners.make(combiner, len(TASKS), seed=1),
        combiners.make("unitary" if combiner == "famo" else combiner, len(TASKS), seed=2),  # its losses are negative
        config,
        batch_size=SAMPLES,
        capacity=100,
        seed=seed,
        device=torch.device("cpu"),
        precision=precision,
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
        truncated=np.zeros(n, bool),
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
        critic=Critics(OBSERVATION, ACTION, [16], ScalarValues(pessimistic=True)).double(),
        target_critic=Critics(OBSERVATION, ACTION, [16], ScalarValues(pessimistic=True)).double(),
        alpha=torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64),
        noise=torch.randn(*shape, ACTION, generator=torch.Generator().manual_seed(5), dtype=torch.float64),
        batch=Batch(
            torch.randn(*shape, OBSERVATION, dtype=torch.float64),
            torch.rand(*shape, ACTION, dtype=torch.float64) * 2 - 1,
            torch.randn(*shape, dtype=torch.float64),
            torch.randn(*shape, OBSERVATION, dtype=torch.float64),
            DISCOUNT * (torch.rand(shape) > 0.3).double(),
        ),
    )


def test_losses_follow_the_equations(setting: SimpleNamespace) -> None:
    s, b = setting, setting.batch
    targets = critic_targets(s.actor, s.target_critic, b, s.alpha, torch.Generator().manual_seed(5))
    of_critic = critic_losses(s.critic, b, targets)
    of_actor, log_prob = actor_losses(s.actor, s.critic, b, s.alpha, torch.Generator().manual_seed(5))
    assert 0 < (b.discounts == 0).sum() < b.discounts.numel()
    of_critic, of_actor = of_critic.detach(), of_actor.detach()
    for t in range(len(TASKS)):
        critic_sum = actor_sum = 0.0
        for i in range(SAMPLES):
            action, log_p = policy(s.actor, b.next_observations[t, i], s.noise[t, i])
            q = s.target_critic(b.next_observations[t : t + 1, i : i + 1], action.view(1, 1, -1)).flatten().tolist()
            soft_value = min(q) - float(s.alpha[t]) * log_p
            target = float(b.rewards[t, i]) + float(b.discounts[t, i]) * soft_value
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


LARGE: dict[str, Any] = {
    "critic": NetworkConfig(hidden_sizes=[16, 16, 16], block="residual", layer_norm=True, weight_decay=0.1),
    "critic_loss": "categorical",
    "twins": "mean",
    "reward_scale": "return",
    "temperature_learning_rate": 1e-2,
}


EMBEDDING: dict[str, Any] = {"task_encoding": "embedding"}


@pytest.mark.parametrize("options", [{}, LARGE, EMBEDDING, {**LARGE, "twins": "min", "critics": 3, **EMBEDDING}])
def test_an_update_is_one_adam_step_on_the_mean_of_the_task_losses(options: dict[str, Any]) -> None:
    agent, reference = make_agent(**options), make_agent(**options)
    fill(agent)
    fill(reference)
    agent.update()
    r = reference
    batch = r.replay.sample(r.batch_size, r.generator)
    divisor = r.reward_scale.divisor(r.replay, r.log_alpha.detach().exp())
    assert divisor is not None
    batch = batch._replace(rewards=batch.rewards / divisor.unsqueeze(1).float())
    alpha = r.log_alpha.detach().exp().unsqueeze(-1)
    targets = critic_targets(r.actor, r.target_critic, batch, alpha, r.generator)
    critic_losses(r.critic, batch, targets).mean().backward()
    critic_gradient = [p.grad.clone() for p in r.critic.parameters() if p.grad is not None]
    losses, log_prob = actor_losses(r.actor, r.critic, batch, alpha, r.generator)
    losses.mean().backward()
    for parameter, gradient in zip(r.critic.parameters(), critic_gradient, strict=True):
        parameter.grad = gradient
    temperature_loss(r.log_alpha, log_prob, -ACTION).backward()
    rate = r.config.learning_rate
    torch.optim.Adam(r.critic.parameters(), rate, weight_decay=r.config.critic.weight_decay).step()
    torch.optim.Adam(r.actor.parameters(), rate, weight_decay=r.config.actor.weight_decay).step()
    torch.optim.Adam([r.log_alpha], r.config.temperature_learning_rate or rate).step()
    before = [p.clone() for p in r.target_critic.parameters()]
    for name in ("actor", "critic"):
        for ours, theirs in zip(getattr(agent, name).parameters(), getattr(r, name).parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(agent.log_alpha, r.log_alpha)
    tau = r.config.target_update_rate
    for ours, old, new in zip(agent.target_critic.parameters(), before, r.critic.parameters(), strict=True):
        torch.testing.assert_close(ours, (1 - tau) * old + tau * new, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"per_task_temperature": True}, LARGE, {**LARGE, **EMBEDDING}])
def test_state_restores_learning_bit_for_bit(options: dict[str, Any]) -> None:
    agent = make_agent("rlw_normal", **options)
    fill(agent)
    for _ in range(3):
        agent.update()
    twin = make_agent("rlw_normal", seed=9, **options)
    twin.replay.restore(0, agent.replay.slice(0, agent.replay.added))
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        agent.update(insight=True)  # looking changes nothing
        twin.update()
    observations = np.ones((3, OBSERVATION), np.float32)
    assert np.array_equal(agent.act(observations), twin.act(observations))
    for ours, theirs in zip(agent.target_critic.parameters(), twin.target_critic.parameters(), strict=True):
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


@pytest.mark.parametrize("combiner", ["unitary", "random_grad_drop", "mgda", "graddrop"])
def test_codes_of_tasks_are_learned_from_the_critics_own_losses_alone(combiner: str) -> None:
    agent, reference = make_agent(combiner, **EMBEDDING), make_agent(combiner, **EMBEDDING)
    for one in (agent, reference):
        fill(one)
    r = reference
    batch, alpha = r.replay.batch(r.replay.draw(r.batch_size, r.drawing)), r.log_alpha.detach().exp()
    divisor = r.reward_scale.divisor(r.replay, alpha)
    if divisor is not None:
        batch = batch._replace(rewards=batch.rewards / divisor.unsqueeze(1))
    alpha = alpha.unsqueeze(-1)
    targets = critic_targets(r.actor, r.target_critic, batch, alpha, r.generator)
    losses = critic_losses(r.critic, batch, targets)
    assert r.critic.rows is not None
    table = r.critic.rows.weight
    own = torch.stack([torch.autograd.grad(loss, table, retain_graph=True)[0][t] for t, loss in enumerate(losses)])
    table.grad = own / len(TASKS)
    torch.optim.Adam([table], r.config.learning_rate).step()
    before = agent.actor.codes.clone()
    metrics = agent.update(insight=True)
    assert agent.critic.rows is not None
    torch.testing.assert_close(agent.critic.rows.weight, table, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(agent.actor.codes, torch.nn.functional.normalize(table, dim=-1), rtol=1e-5, atol=1e-6)
    assert not torch.equal(agent.actor.codes, before)
    torch.testing.assert_close(agent.actor.codes.norm(dim=1), torch.ones(3))
    assert "codes" not in dict(agent.actor.named_parameters())
    shared = [p for name, p in r.critic.named_parameters() if name != "rows.weight"]
    gradients = [torch.cat([g.flatten() for g in torch.autograd.grad(x, shared, retain_graph=True)]) for x in losses]
    expected = torch.stack(gradients).sum(0).norm()
    assert metrics["conflict/critic/summed_gradient_norm"] == pytest.approx(float(expected), rel=1e-4)


def test_codes_are_part_of_the_policy_and_begin_anew_with_the_networks() -> None:
    agent = make_agent(**EMBEDDING)
    fill(agent)
    assert agent.critic.rows is not None
    kept, acted = agent.policy_state(), agent.policy()(np.ones((3, OBSERVATION), np.float32))
    torch.testing.assert_close(kept["codes"], agent.critic.codes())
    for _ in range(3):
        agent.update()
    observations = np.ones((3, OBSERVATION), np.float32)
    assert np.array_equal(agent.policy(kept)(observations), acted)
    sent = pickle.dumps(agent.policy(kept))  # to another process
    assert np.array_equal(pickle.loads(sent)(observations), acted)
    assert not np.array_equal(agent.policy()(observations), acted)
    assert not np.array_equal(acted[0], acted[1]), "the task identity reaches the policy"
    agent.reset()
    torch.testing.assert_close(agent.actor.codes, agent.critic.codes())
    assert torch.equal(agent.critic.codes(), agent.target_critic.codes())
    assert not torch.equal(agent.actor.codes, kept["codes"])


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


def test_the_buffer_holds_rewards_as_they_were_unless_they_are_scaled_when_collected() -> None:
    raw, scaled, twin = make_agent(), make_agent(reward_scale="collected"), make_agent(reward_scale="collected")
    random = np.random.default_rng(0)
    for _ in range(3):
        observations, actions, step = transition(random)
        for agent in (raw, scaled):
            agent.remember(observations, actions, step)
        assert torch.equal(raw.replay.last()[2].squeeze(), torch.as_tensor(step.rewards).float())
    expected = step.rewards / (np.sqrt(scaled.state_dict()["reward_scale"]["variance"]) + 1e-8)
    assert scaled.replay.last()[2].squeeze().tolist() == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(step.rewards)
    twin.load_state_dict(scaled.state_dict())  # its buffer aside
    twin.remember(observations, actions, step)
    scaled.remember(observations, actions, step)
    assert torch.equal(twin.replay.last()[2], scaled.replay.last()[2])


def test_of_an_episode_that_does_not_go_on_nothing_is_kept_for_the_next() -> None:
    agent, random = make_agent(reward_scale="return"), np.random.default_rng(0)
    first = transition(random)
    agent.remember(*first)
    agent.abandon(["push-v3"])
    observations, actions, step = transition(random)
    step.rewards, step.terminated = np.ones(3), np.ones(3, bool)
    agent.remember(observations, actions, step)
    assert isinstance(agent.reward_scale, ReturnScale)
    assert agent.reward_scale.largest[1] == 1.0
    assert (agent.reward_scale.largest[[0, 2]] != 1.0).all()
    ended = first[2].terminated.tolist()
    assert not ended[1]
    assert agent.replay.last().begins.tolist() == [ended[0], True, ended[2]]  # so that no target sums beyond


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


@pytest.mark.parametrize("factors", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0)])
def test_a_critic_loss_of_0_goes_on_and_a_negative_one_is_named(
    factors: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent()
    agent.objectives.combiners["critic"] = combiners.make("scale_invariant", 3)  # type: ignore[index]
    fill(agent)
    monkeypatch.setattr(sac, "critic_losses", lambda *args: critic_losses(*args) * torch.tensor(factors))
    if min(factors) == 0:
        agent.update()
        return
    message = r"^scale_invariant needs positive losses, but task 'push-v3' has -\S+ in the critic objective$"
    with pytest.raises(InputError, match=message):
        agent.update()


def test_what_has_arrived_is_counted() -> None:
    agent = make_agent()
    fill(agent)
    assert not agent.objectives.counts()
    agent.objectives.combiners["actor"].stationary = True
    assert agent.update()["count/actor_stationary"] == 1


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
    [
        ("learning_rate", -1.0),
        ("discount", 1.5),
        ("hidden_sizes", [0]),
        ("task_encoding", "x"),
        ("buffer_size", 0),
    ],
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


def test_a_reset_begins_anew_but_for_what_was_seen() -> None:
    agent, fresh = make_agent("uncertainty"), make_agent("uncertainty")
    fill(agent)
    for _ in range(3):
        agent.update()
    scale = agent.replay.reward_std().clone()
    before = copy.deepcopy(agent.state_dict())
    agent.reset()
    again = make_agent("uncertainty", seed=9)
    again.replay.restore(0, agent.replay.slice(0, agent.replay.added))
    again.load_state_dict(before)
    again.reset()
    for name, parameter in agent.critic.named_parameters():
        assert torch.equal(parameter, agent.target_critic.get_parameter(name))
        assert torch.equal(parameter, again.critic.get_parameter(name)), "the new weights are drawn from its own stream"
        if "weight" in name:
            assert not torch.equal(parameter, before["critic"][name])
            assert not torch.equal(parameter, fresh.critic.get_parameter(name))
            one, other = (float(own.detach().std()) for own in (parameter, fresh.critic.get_parameter(name)))
            assert one == pytest.approx(other, rel=0.3)
    assert torch.equal(agent.log_alpha, fresh.log_alpha)
    assert all(not optimizer.state for optimizer in agent.optimizers.values())
    for ours, new in zip(agent.objectives.combiners.values(), fresh.objectives.combiners.values(), strict=True):
        assert_same(ours.state_dict(), new.state_dict())
    assert torch.equal(agent.replay.reward_std(), scale)
    for _ in range(2):
        agent.update()
        again.update()
    for mine, theirs in zip(agent.critic.parameters(), again.critic.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items() if isinstance(value, Tensor))


def test_an_agent_of_a_gpu_goes_on_here_and_draws_anew_but_the_same_every_time() -> None:
    agent = make_agent("moco")
    fill(agent)
    for _ in range(3):
        agent.update()
    state = agent.state_dict() | {"generator": torch.arange(16, dtype=torch.uint8)}
    copies = [make_agent("moco", seed=seed) for seed in (1, 2)]
    for twin in copies:
        twin.replay.restore(0, agent.replay.slice(0, agent.replay.added))
        twin.load_state_dict(copy.deepcopy(state))
        for name, part in twin._parts().items():
            if name != "replay":
                torch.testing.assert_close(part.state_dict(), agent._parts()[name].state_dict(), rtol=0, atol=0)
        twin.update()
    one, other = (torch.nn.utils.parameters_to_vector(twin.actor.parameters()) for twin in copies)
    assert torch.equal(one, other)


@pytest.mark.parametrize("temperature", [False, True])
def test_an_agent_that_starts_from_another_takes_over_what_that_had_learned(temperature: bool) -> None:
    source = make_agent("moco", per_task_temperature=temperature)
    fill(source)
    for _ in range(3):
        source.update()
    agent = make_agent("moco", seed=7, per_task_temperature=temperature, learning_rate=1e-2)
    new = make_agent("moco", seed=7, per_task_temperature=temperature, learning_rate=1e-2)
    agent.start_from(source.state_dict())
    for name in ("actor", "critic", "target_critic"):
        torch.testing.assert_close(
            getattr(agent, name).state_dict(), getattr(source, name).state_dict(), rtol=0, atol=0
        )
    assert torch.equal(agent.log_alpha, source.log_alpha)
    assert len(agent.replay) == 0
    assert torch.equal(agent.generator.get_state(), new.generator.get_state())
    assert all(not optimizer.state for optimizer in agent.optimizers.values())
    assert all(group["lr"] == 1e-2 for o in agent.optimizers.values() for group in o.param_groups)
    for objective, combiner in agent.objectives.combiners.items():
        assert combiner.state_dict().keys() == new.objectives.combiners[objective].state_dict().keys()
    fill(agent)
    agent.update()  # and it learns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor": NetworkConfig(layer_norm=True)}, "init_from: actor '"),
        ({"task_encoding": "none"}, r"has shape \[16, 8\] here, but there it is of shape \[16, 5\]|shape \[32, 8\]"),
        ({"per_task_temperature": True}, r"temperature 'log_alpha' has shape \[1\] here, .* of shape \[3\]"),
    ],
)
def test_an_agent_of_another_shape_is_refused_by_name_and_nothing_is_taken(
    options: dict[str, Any], message: str
) -> None:
    agent = make_agent()
    before = {name: tensor.clone() for name, tensor in agent.actor.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        agent.start_from(make_agent(seed=3, **options).state_dict())
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(agent.actor.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, LARGE])
@pytest.mark.parametrize("combiner", ["unitary", "pcgrad", "graddrop"])
def test_products_in_bfloat16_change_an_update_by_rounding_alone(combiner: str, options: dict[str, Any]) -> None:
    exact, rounded = make_agent(combiner, **options), make_agent(combiner, precision="bf16", **options)
    for agent in (exact, rounded):
        fill(agent)
    metrics = [agent.update(insight=True) for agent in (exact, rounded)]
    for key in ("train/critic_loss", "train/entropy", "train/critic_gradient_norm", "conflict/critic/cosine_mean"):
        assert float(metrics[1][key]) == pytest.approx(float(metrics[0][key]), rel=0.03, abs=0.02), key
    assert float(metrics[1]["train/critic_loss"]) != float(metrics[0]["train/critic_loss"])
    for network in (rounded.actor, rounded.critic):
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    observations = np.ones((3, OBSERVATION), np.float32)
    assert exact.policy()(observations) == pytest.approx(rounded.policy()(observations), abs=1e-2)


def test_tf32_holds_for_the_products_of_an_update_and_for_nothing_else() -> None:
    """On the CPU, where being told so changes no number without AMX-FP16."""
    before, told = MATMUL.fp32_precision, dict[str, list[str]]()
    for precision in ("fp32", "tf32", "bf16"):
        agent = make_agent("pcgrad", precision=precision)
        fill(agent)
        agent.update()  # the first checks promises
        with Products() as products:
            agent.update()
        told[precision] = products.told
        assert MATMUL.fp32_precision == before
        agent.replay.fields.rewards.fill_(torch.nan)
        with pytest.raises(RunError, match="non-finite"):
            agent.update()
        assert MATMUL.fp32_precision == before
    # J J^T of critic and actor, in two products each, and nothing else, is taken as without.
    assert told["tf32"].count("ieee") == 4
    assert set(told["tf32"]) == {"tf32", "ieee"}
    assert set(told["fp32"]) == set(told["bf16"]) == {before, "ieee"}
    assert len(told["fp32"]) == len(told["tf32"]) > 20
