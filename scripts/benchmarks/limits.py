"""What a full SAC update is measured against: its own matrix products, and a plain implementation."""

import copy
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from agents.networks import Critics, mlp
from agents.sac import MultiTaskSAC, actor_losses, critic_losses, critic_targets, temperature_loss
from envs.metaworld import ACTION_SIZE, OBSERVATION_SIZE
from mtrl.gradients.precision import float32_products
from scripts.benchmarks.timing import Work


def matrix_products(agent: MultiTaskSAC) -> Work:
    """The matrix products of one update with a plain backward pass, of all tasks' batches, and nothing else."""
    samples, hidden = len(agent.tasks) * agent.batch_size, agent.config.hidden_sizes
    kind = torch.bfloat16 if agent.precision == "bf16" else torch.float32
    size = OBSERVATION_SIZE + len(agent.tasks)
    actor, critic = [size, *hidden, 2 * ACTION_SIZE], [size + ACTION_SIZE, *hidden, 1]
    passes = [  # how many networks of which sizes; whether back to their weights, and to their inputs
        (1, actor, False, False),  # the targets
        (agent.config.critics, critic, False, False),
        (agent.config.critics, critic, True, False),  # the critics' loss
        (agent.config.critics, critic, False, True),  # the actor's, which passes through the critics
        (1, actor, True, False),
    ]
    products: list[list[Tensor]] = []
    for members, sizes, to_weights, to_inputs in passes:
        for layer, (before, after) in enumerate(pairwise(sizes)):
            shapes = [(samples, before, after)]
            if to_weights:
                shapes.append((before, samples, after))
            if to_inputs or (to_weights and layer > 0):
                shapes.append((samples, after, before))
            for rows, inner, columns in shapes:
                operands = torch.randn(members, rows, inner), torch.randn(members, inner, columns)
                result = torch.empty(members, rows, columns)
                products.append([tensor.to(agent.device, kind) for tensor in (*operands, result)])

    def update() -> None:
        for left, right, result in products:
            torch.bmm(left, right, out=result)

    return _in_precision(agent, update)


def _in_precision(agent: MultiTaskSAC, update: Work) -> Work:
    """An update whose float32 products are the agent's."""
    if agent.precision != "tf32":
        return update
    return float32_products(agent.device, tf32=True)(update)


class _Members(nn.Sequential):
    """Networks of ordinary layers, one after the other, each on its own slice of the inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(own) for member, own in zip(self, inputs, strict=True)])


def linear_critics(agent: MultiTaskSAC) -> Critics:
    """Critics like an agent's, of two networks of ordinary layers."""
    critics = copy.deepcopy(agent.critic)
    sizes = [OBSERVATION_SIZE + critics.num_tasks + ACTION_SIZE, *agent.config.hidden_sizes, 1]
    critics.layers = _Members(*(mlp(sizes, nn.Linear, None) for _ in range(agent.config.critics)))
    return critics.to(agent.device)


def plain_sac(agent: MultiTaskSAC) -> Work:
    """SAC for the mean of the losses as it is usually written, on an agent's replay buffer."""
    config, generator = agent.config, agent.generator
    actor, critics = copy.deepcopy(agent.actor), linear_critics(agent)
    target_critics = copy.deepcopy(critics).requires_grad_(False)
    log_alpha = torch.zeros(1, device=agent.device, requires_grad=True)
    learned = (critics.parameters(), actor.parameters(), [log_alpha])
    optimizers = [torch.optim.Adam(parameters, config.learning_rate) for parameters in learned]

    def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    rounded = partial(torch.autocast, agent.device.type, torch.bfloat16, enabled=agent.precision == "bf16")

    def update() -> None:
        batch = agent.replay.sample(agent.batch_size, generator)
        alpha = log_alpha.detach().exp().unsqueeze(-1)
        with rounded():
            targets = critic_targets(actor, target_critics, batch, alpha, generator)
            loss = critic_losses(critics, batch, targets).mean()
        descend(optimizers[0], loss)
        with rounded():
            losses, log_prob = actor_losses(actor, critics, batch, alpha, generator)
        descend(optimizers[1], losses.mean())
        descend(optimizers[2], temperature_loss(log_alpha, log_prob, agent.target_entropy))
        with torch.no_grad():
            for target, parameter in zip(target_critics.parameters(), critics.parameters(), strict=True):
                target.lerp_(parameter, config.target_update_rate)

    return _in_precision(agent, update)
