"""What a full SAC update is measured against: its own matrix products, and a plain implementation."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from agents.networks import NUM_CRITICS, Actor, TwinCritic, with_task_id
from agents.sac import MultiTaskSAC, actor_losses, critic_losses, critic_targets, temperature_loss
from envs.metaworld import ACTION_SIZE, OBSERVATION_SIZE
from scripts.benchmarks.timing import Work


def matrix_products(agent: MultiTaskSAC) -> Work:
    """The matrix products of one update with a plain backward pass, and nothing else: the least that it can take.

    Every product has the shapes that the update has, over the batches of all tasks together, and writes into
    memory that is already there.
    """
    samples = len(agent.tasks) * agent.batch_size
    size = OBSERVATION_SIZE + len(agent.tasks)
    hidden = agent.config.hidden_sizes
    products: list[tuple[Tensor, Tensor, Tensor]] = []

    def multiply(members: int, rows: int, inner: int, columns: int) -> None:
        left, right = torch.randn(members, rows, inner), torch.randn(members, inner, columns)
        operands = [tensor.to(agent.device) for tensor in (left, right, torch.empty(members, rows, columns))]
        products.append((operands[0], operands[1], operands[2]))

    def network(members: int, sizes: list[int], *, weights: bool, inputs: bool, backward: bool = True) -> None:
        """The products of one forward pass, and of a backward pass down to the weights or the inputs."""
        for layer, (before, after) in enumerate(pairwise(sizes)):
            multiply(members, samples, before, after)
            if backward and weights:
                multiply(members, before, samples, after)
            if backward and (inputs or layer > 0):
                multiply(members, samples, after, before)

    actor, critic = [size, *hidden, 2 * ACTION_SIZE], [size + ACTION_SIZE, *hidden, 1]
    # The targets; the critics' loss; the actor's, which passes through the critics.
    network(1, actor, weights=False, inputs=False, backward=False)
    network(NUM_CRITICS, critic, weights=False, inputs=False, backward=False)
    network(NUM_CRITICS, critic, weights=True, inputs=False)
    network(NUM_CRITICS, critic, weights=False, inputs=True)
    network(1, actor, weights=True, inputs=False)

    def update() -> None:
        for left, right, result in products:
            torch.bmm(left, right, out=result)

    return update


class LinearTwinCritic(TwinCritic):
    """Two critics of ordinary layers."""

    def __init__(self, observation_size: int, hidden_sizes: Sequence[int], num_tasks: int) -> None:
        nn.Module.__init__(self)
        self.num_tasks, self.members = num_tasks, nn.ModuleList()
        for _ in range(NUM_CRITICS):
            sizes = pairwise([observation_size + num_tasks + ACTION_SIZE, *hidden_sizes, 1])
            layers = [layer for before, after in sizes for layer in (nn.Linear(before, after), nn.ReLU())]
            self.members.append(nn.Sequential(*layers[:-1]))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """As `agents.networks.TwinCritic`."""
        x = torch.cat([with_task_id(observations, self.num_tasks), actions], -1)
        return torch.stack([member(x).squeeze(-1) for member in self.members])


class PlainSAC:
    """SAC for the mean of the losses as it is usually written, on an agent's replay buffer.

    Two critics of ordinary layers, one backward pass for each loss, one step after the other.

    Args:
        agent: gives the sizes and the mini-batches.
    """

    def __init__(self, agent: MultiTaskSAC) -> None:
        self.agent = agent
        num_tasks, hidden = len(agent.tasks), agent.config.hidden_sizes
        self.actor = Actor(OBSERVATION_SIZE, ACTION_SIZE, hidden, num_tasks=num_tasks).to(agent.device)
        self.critics = LinearTwinCritic(OBSERVATION_SIZE, hidden, num_tasks).to(agent.device)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = torch.zeros(1, device=agent.device, requires_grad=True)
        learned = (self.critics.parameters(), self.actor.parameters(), [self.log_alpha])
        self.optimizers = [torch.optim.Adam(parameters, agent.config.learning_rate) for parameters in learned]

    def update(self) -> None:
        """One step of critics, actor and temperature, and of the target critics."""
        config, generator = self.agent.config, self.agent.generator
        batch = self.agent.replay.sample(self.agent.batch_size, generator)
        alpha = self.log_alpha.detach().exp().unsqueeze(-1)
        targets = critic_targets(self.actor, self.target_critics, batch, alpha, config.discount, generator)
        self._step(0, critic_losses(self.critics, batch, targets).mean())
        losses, log_prob = actor_losses(self.actor, self.critics, batch, alpha, generator)
        self._step(1, losses.mean())
        self._step(2, temperature_loss(self.log_alpha, log_prob, self.agent.target_entropy))
        with torch.no_grad():
            for target, parameter in zip(self.target_critics.parameters(), self.critics.parameters(), strict=True):
                target.lerp_(parameter, config.target_update_rate)

    def _step(self, which: int, loss: Tensor) -> None:
        self.optimizers[which].zero_grad()
        torch.autograd.backward(loss)
        self.optimizers[which].step()
