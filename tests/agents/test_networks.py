import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from torch.nn import functional

from agents.networks import Actor, Critics, ResidualBlock, one_hot, with_codes
from agents.values import CategoricalValues, ScalarValues
from mtrl.gradients import TaskBatched


def test_the_task_id_is_appended_to_every_sample() -> None:
    observations, actions = torch.randn(3, 4, 5), torch.randn(3, 4, 2)
    extended = with_codes(one_hot(3), None, observations, actions)
    assert torch.equal(extended[..., :5], observations)
    assert torch.equal(extended[..., 5:8], torch.eye(3).unsqueeze(1).expand(3, 4, 3))
    assert torch.equal(extended[..., 8:], actions)
    of_two = with_codes(one_hot(3), torch.tensor([2, 0]), observations[:2])
    assert torch.equal(of_two, torch.cat([observations[:2], torch.eye(3)[[2, 0], None].expand(2, 4, 3)], -1))
    assert torch.equal(with_codes(one_hot(2), None, torch.zeros(2, 5))[:, 5:], torch.eye(2))
    assert torch.equal(with_codes(None, None, observations, actions), torch.cat([observations, actions], -1))
    assert with_codes(one_hot(0), None, observations) is observations


@pytest.mark.parametrize("layer_norm", [False, True])
def test_log_prob_is_that_of_a_squashed_gaussian(layer_norm: bool) -> None:
    torch.manual_seed(0)
    actor = Actor(6, 4, [16, 16], layer_norm=layer_norm, log_std_max=0.0).double()
    observations = 0.1 * torch.randn(3, 7, 6, dtype=torch.float64)
    actions, log_prob = actor.sample(observations, torch.Generator().manual_seed(1))
    mean, log_std = actor(observations)
    reference = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), [TanhTransform()])
    torch.testing.assert_close(log_prob, reference.log_prob(actions), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(actor.mode(observations), mean.tanh())


def test_log_prob_stays_finite_where_the_squashing_saturates() -> None:
    actor = Actor(1, 1, [4])
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.fill_(30.0)
    actions, log_prob = actor.sample(torch.ones(1, 1, 1), torch.Generator().manual_seed(0))
    assert actions.abs().max() <= 1
    assert torch.isfinite(log_prob).all()


def test_the_ensemble_is_two_independent_networks() -> None:
    torch.manual_seed(0)
    critic = Critics(5, 2, [8, 9], ScalarValues(pessimistic=True), layer_norm=True)
    observations, actions = torch.randn(3, 4, 5), torch.randn(3, 4, 2)
    values = critic(observations, actions)
    for member in range(2):
        x = torch.cat([observations, actions], -1)
        layers = list(critic.layers)
        for linear, norm in ((layers[0], layers[1]), (layers[3], layers[4])):
            x = x @ linear.weight[member] + linear.bias[member]
            x = functional.layer_norm(x, x.shape[-1:]) * norm.weight[member] + norm.bias[member]
            x = x.relu()
        x = x @ layers[6].weight[member] + layers[6].bias[member]
        torch.testing.assert_close(values[member], x)
    assert not torch.equal(values[0], values[1])


def test_residual_blocks_add_to_what_they_get() -> None:
    actor = Actor(5, 2, [8, 8, 8], layer_norm=True, block="residual")
    linear, norm, _, *blocks, last = actor.layers
    assert [type(block) for block in blocks] == [ResidualBlock, ResidualBlock]
    observations = torch.randn(3, 4, 5)
    x = norm(linear(observations)).relu()
    for block in blocks:
        inner = block.layers
        x = x + inner[4](inner[3](inner[1](inner[0](x)).relu()))
    assert last.weight.shape == (4, 8)
    torch.testing.assert_close(actor.layers[:-1](observations), x)
    weight = blocks[0].layers[0].weight  # orthogonal, scaled by sqrt(2)
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(8))


@pytest.mark.parametrize("block", ["mlp", "residual"])
@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_per_task_gradients_of_the_large_critic(block: str, memory_limit: int) -> None:
    """All tasks' gradients from one backward pass, kept or streamed, against autograd task by task."""
    torch.manual_seed(0)
    values = CategoricalValues(10.0, 11, pessimistic=False)
    critic = Critics(5, 2, [8, 8, 8], values, num_tasks=3, layer_norm=True, block=block).double()
    network = TaskBatched(critic, 3, memory_limit=memory_limit)
    batch = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 4, 2, dtype=torch.float64)
    target = torch.randn(3, 4, 11, dtype=torch.float64).softmax(-1)
    with network.record():
        losses = values.error(critic(*batch), target).mean(-1).sum(0)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, network.parameters, retain_graph=True)])
        for loss in losses
    ]
    jacobian = torch.stack(rows)
    torch.testing.assert_close(network.source(losses).gramian(), jacobian @ jacobian.T)
