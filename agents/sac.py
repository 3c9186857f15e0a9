"""Multi-task soft actor-critic (Haarnoja et al., 2018) with one combiner per objective.

Actor and critics are fully shared; every loss is a vector with one entry per task, and a combiner turns its T
gradients into one. Defaults are those of Kurin et al. (2022), table 1, unless a field says otherwise.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from agents.graphs import CapturedUpdate, capture
from agents.networks import Actor, TwinCritic, append_task_id
from agents.replay import Batch, ReplayBuffer
from mtrl.combiners import Combiner
from mtrl.errors import InputError, RunError
from mtrl.gradients import Combination, NonFiniteError, TaskBatched
from mtrl.gradients.conflict import conflict_metrics
from mtrl.rl.protocols import Floats, Step


@dataclass
class SACConfig:
    """Hyperparameters of the agent."""

    hidden_sizes: list[int] = field(default_factory=lambda: [400, 400, 400])
    layer_norm: bool = False
    task_encoding: str = "one_hot"
    """``one_hot`` appends the task identity to observations; ``none`` is Kurin et al.'s choice."""
    discount: float = 0.99
    target_update_rate: float = 0.005
    learning_rate: float = 3e-4
    actor_weight_decay: float = 3e-4
    weight_decay_mode: str = "coupled"
    """``coupled``: Adam's L2 term, as in the paper's code; ``decoupled``: AdamW."""
    max_gradient_norm: float | None = None
    initial_temperature: float = 1.0
    per_task_temperature: bool = False
    target_entropy: float | None = None
    """None is minus the number of action dimensions."""
    buffer_size: int = 4_000_000
    """Transitions over all tasks; each task has an equal share."""
    normalize_rewards: bool = True
    rescale: bool = True
    """Bring every method's weights to unitary's scale; off, each keeps its paper's own."""
    compile: str = "auto"
    """``auto``: updates on CUDA replay CUDA graphs; ``off``: every operation is launched on its own, as on the CPU."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for key, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"agent.{key}: expected a finite number, got {value}")
        checks: dict[str, tuple[bool, str]] = {
            "hidden_sizes": (all(width > 0 for width in self.hidden_sizes), "positive widths"),
            "task_encoding": (self.task_encoding in ("one_hot", "none"), "one_hot or none"),
            "discount": (0 <= self.discount <= 1, "a number in [0, 1]"),
            "target_update_rate": (0 < self.target_update_rate <= 1, "a number in (0, 1]"),
            "learning_rate": (self.learning_rate > 0, "a positive number"),
            "actor_weight_decay": (self.actor_weight_decay >= 0, "a number that is not negative"),
            "weight_decay_mode": (self.weight_decay_mode in ("coupled", "decoupled"), "coupled or decoupled"),
            "max_gradient_norm": (
                self.max_gradient_norm is None or self.max_gradient_norm > 0,
                "null or > 0",
            ),
            "initial_temperature": (self.initial_temperature > 0, "a positive number"),
            "buffer_size": (self.buffer_size > 0, "a positive number of transitions"),
            "compile": (self.compile in ("auto", "off"), "auto or off"),
        }
        for key, (valid, expected) in checks.items():
            if not valid:
                raise InputError(f"agent.{key}: expected {expected}, got {getattr(self, key)!r}")


def critic_targets(
    actor: Actor,
    target_critic: TwinCritic,
    batch: Batch,
    alpha: Tensor,
    discount: float,
    generator: torch.Generator,
) -> Tensor:
    """``y = r + gamma (1 - terminated) (min_e Q'_e(s', a') - alpha log pi(a'|s'))``, ``[T, B]``."""
    with torch.no_grad():
        next_actions, log_prob = actor.sample(batch.next_observations, generator)
        next_values: Tensor = target_critic(batch.next_observations, next_actions).amin(0)
        return batch.rewards + discount * (1 - batch.terminated) * (next_values - alpha * log_prob)


def critic_losses(critic: TwinCritic, batch: Batch, targets: Tensor) -> Tensor:
    """Each task's mean squared error, summed over both critics: ``[T]``."""
    errors: Tensor = critic(batch.observations, batch.actions) - targets
    return errors.square().mean(-1).sum(0)


def actor_losses(
    actor: Actor, critic: TwinCritic, batch: Batch, alpha: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each task's mean of ``alpha log pi(a|s) - min_e Q_e(s, a)``, ``[T]``, and the log-probabilities ``[T, B]``."""
    actions, log_prob = actor.sample(batch.observations, generator)
    values = critic(batch.observations, actions).amin(0)
    return (alpha * log_prob - values).mean(-1), log_prob.detach()


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """``-alpha (log pi + target_entropy)``, averaged (Haarnoja et al., 2018, equation 18); never combined."""
    return -(log_alpha.exp().unsqueeze(-1) * (log_prob + target_entropy)).mean()


@dataclass(frozen=True)
class Losses:
    """What one mini-batch says about the networks.

    Attributes:
        critic: each task's critic loss, ``[T]``.
        actor: each task's actor loss, ``[T]``.
        alpha: the temperatures, ``[T, 1]`` or ``[1, 1]``.
        targets: the critics' targets, ``[T, B]``.
        log_prob: of the actions that the actor draws, ``[T, B]``.
    """

    critic: Tensor
    actor: Tensor
    alpha: Tensor
    targets: Tensor
    log_prob: Tensor


class MultiTaskSAC:
    """The agent: networks, optimizers, replay buffer and the two combiners.

    Args:
        tasks: the task names, in the order of the first dimension of every array.
        observation_size: the size of an environment's observation, without task identity.
        action_size: the size of an action in ``[-1, 1]``.
        critic_combiner: combines the tasks' critic gradients.
        actor_combiner: combines the tasks' actor gradients; an instance of its own.
        config: the hyperparameters.
        batch_size: transitions per task and update.
        capacity: transitions per task that the replay buffer holds.
        seed: seeds initial weights, exploration and sampling.
        device: where networks and buffer live.

    Raises:
        InputError: if both objectives share a combiner, or the buffer does not fit.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        observation_size: int,
        action_size: int,
        critic_combiner: Combiner,
        actor_combiner: Combiner,
        config: SACConfig,
        *,
        batch_size: int,
        capacity: int,
        seed: int,
        device: torch.device,
    ) -> None:
        if critic_combiner is actor_combiner:
            raise InputError("critic and actor need a combiner of their own: a combiner keeps state")
        self.tasks, self.config, self.batch_size, self.device = list(tasks), config, batch_size, device
        num_tasks = len(tasks)
        self.generator = torch.Generator(device).manual_seed(seed)
        input_size = observation_size + (num_tasks if config.task_encoding == "one_hot" else 0)
        # Weights are drawn on the CPU whatever the device, so that a seed means the same network everywhere.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = Actor(input_size, action_size, config.hidden_sizes, layer_norm=config.layer_norm)
            self.critic = TwinCritic(input_size, action_size, config.hidden_sizes, layer_norm=config.layer_norm)
            self.target_critic = TwinCritic(input_size, action_size, config.hidden_sizes, layer_norm=config.layer_norm)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        for network in (self.actor, self.critic, self.target_critic):
            network.to(device)
        initial = torch.full((num_tasks if config.per_task_temperature else 1,), config.initial_temperature)
        self.log_alpha = nn.Parameter(initial.log().to(device))
        self.target_entropy = -float(action_size) if config.target_entropy is None else config.target_entropy

        self.combiners = {"critic": critic_combiner, "actor": actor_combiner}
        for combiner in self.combiners.values():
            # Weights are found on the CPU; what combines whole gradients works, and remembers, where these are.
            combiner.to(device if combiner.needs == "jacobian" else "cpu")
        self.critic_gradients = TaskBatched(self.critic, num_tasks)
        self.actor_gradients = TaskBatched(self.actor, num_tasks)
        optimizer = torch.optim.Adam if config.weight_decay_mode == "coupled" else torch.optim.AdamW
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "critic": torch.optim.Adam(self.critic.parameters(), config.learning_rate, fused=True),
            "actor": optimizer(
                self.actor.parameters(),
                config.learning_rate,
                weight_decay=config.actor_weight_decay,
                fused=True,
            ),
            "temperature": torch.optim.Adam([self.log_alpha], config.learning_rate, fused=True),
        }
        self.replay = ReplayBuffer(
            num_tasks,
            capacity,
            observation_size,
            action_size,
            device,
            normalize_rewards=config.normalize_rewards,
        )
        self.captured: CapturedUpdate | None = None
        """The update as CUDA graphs, once it is captured."""
        self.capture_next = self._captures
        """Whether the capture is still to be tried."""

    # ------------------------------------------------------------------------------------------------- acting

    def _with_task_id(self, observations: Tensor) -> Tensor:
        return append_task_id(observations) if self.config.task_encoding == "one_hot" else observations

    def act(self, observations: Floats) -> Floats:
        """Samples one exploring action per task: ``[T, O]`` to ``[T, A]``."""
        with torch.no_grad():
            inputs = self._with_task_id(torch.as_tensor(observations, device=self.device))
            actions: Floats = self.actor.sample(inputs, self.generator)[0].cpu().numpy()
            return actions

    def act_randomly(self) -> Floats:
        """One uniform action in ``[-1, 1]`` per task, ``[T, A]``, for the warm-up."""
        shape = self.replay.actions.shape[0], self.replay.actions.shape[2]
        uniform = torch.rand(shape, generator=self.generator, device=self.device) * 2 - 1
        actions: Floats = uniform.cpu().numpy()
        return actions

    def policy(self, state: dict[str, Any] | None = None) -> Callable[[Floats], Floats]:
        """The deterministic policy that evaluation uses, the actor's mode: ``[T, O]`` to ``[T, A]``.

        Args:
            state: a `policy_state`; by default the actor as it is now.

        Returns:
            A function on a copy on the CPU, which learning does not change.
        """
        actor = copy.deepcopy(self.actor).cpu()
        if state is not None:
            actor.load_state_dict(state)

        def act(observations: Floats) -> Floats:
            with torch.no_grad():
                actions: Floats = actor.mode(self._with_task_id(torch.as_tensor(observations))).numpy()
                return actions

        return act

    def policy_state(self) -> dict[str, Tensor]:
        """A copy of what the policy is at this moment, on the CPU."""
        return {name: tensor.cpu().clone() for name, tensor in self.actor.state_dict().items()}

    def remember(self, observations: Floats, actions: Floats, step: Step) -> None:
        """Stores one raw transition of every task.

        A task whose simulation broke has none to offer; its previous transition is stored once more.

        Raises:
            RunError: if the very first step of a task broke.
        """
        fields = [
            torch.as_tensor(field).to(self.replay.storage)
            for field in (observations, actions, step.rewards, step.next_observations, step.terminated)
        ]
        if step.unstable.any():
            if not len(self.replay):
                broken = [task for task, bad in zip(self.tasks, step.unstable, strict=True) if bad]
                raise RunError(f"the simulation was unstable at the first step of {', '.join(broken)}")
            bad = torch.as_tensor(step.unstable, device=self.replay.storage)
            for field, stored in zip(fields, self.replay.last(), strict=True):
                field[bad] = stored[bad].to(field)
        self.replay.add(*fields)

    # ----------------------------------------------------------------------------------------------- learning

    def update(self, *, insight: bool = False) -> dict[str, Any]:
        """One gradient step of critics, actor and temperature, and of the target critics.

        All gradients are taken at the same parameters and then applied together (as in Haarnoja et al.'s own
        implementation), so that an update that fails leaves every network as it was.

        Args:
            insight: add measures of gradient conflict, under ``conflict/<objective>/...``.

        Returns:
            Scalars for logging, as floats or zero-dimensional tensors.

        Raises:
            RunError: if a loss, gradient or weight is not finite (objective, task and method named); nothing was
                applied. A captured update finds out last whether the combined gradients are; what `RunError` then
                says, without the task, comes with the next update or `state_dict`.
        """
        batch = self.sample()
        if self.capture_next and self.optimizers["critic"].state:  # from the second update on
            self.captured, self.capture_next = capture(self, batch), False
        if self.captured is not None and not insight:
            return self.captured(batch)
        losses = self.losses(batch)
        critic = self._combine("critic", self.critic_gradients, losses.critic, insight)
        actor = self._combine("actor", self.actor_gradients, losses.actor, insight)
        self.step(losses)
        self._after_step(batch, losses)

        metrics: dict[str, Any] = self.metrics(losses, critic.update_norm, actor.update_norm)
        if insight:
            for objective, combination in (("critic", critic), ("actor", actor)):
                for key, value in conflict_metrics(combination, self.tasks).items():
                    metrics[f"conflict/{objective}/{key}"] = value
        return metrics

    def sample(self) -> Batch:
        """Draws the mini-batch of an update, with the task's identity in the observations."""
        batch = self.replay.sample(self.batch_size, self.generator)
        return Batch(
            self._with_task_id(batch.observations),
            batch.actions,
            batch.rewards,
            self._with_task_id(batch.next_observations),
            batch.terminated,
        )

    def losses(self, batch: Batch) -> Losses:
        """Both objectives' losses, at the same parameters; their layers are recorded for per-task gradients."""
        alpha = self.log_alpha.detach().exp().unsqueeze(-1)
        targets = critic_targets(self.actor, self.target_critic, batch, alpha, self.config.discount, self.generator)
        with self.critic_gradients.record():
            critic = critic_losses(self.critic, batch, targets)
        with self.actor_gradients.record():
            actor, log_prob = actor_losses(self.actor, self.critic, batch, alpha, self.generator)
        return Losses(critic, actor, alpha, targets, log_prob)

    def _combine(self, objective: str, gradients: TaskBatched, losses: Tensor, insight: bool) -> Combination:
        """Fills the objective's ``.grad`` with the combined gradient of the mean over tasks."""
        combiner = self.combiners[objective]
        with self.named_errors(objective):
            combination = gradients.backward(losses, combiner, scale=1 / len(self.tasks), insight=insight)
        self.clip(gradients.parameters, combination.update_norm)
        return combination

    @contextmanager
    def named_errors(self, objective: str) -> Iterator[None]:
        """Gives errors the name of objective, method and task, and drops the gradients of an update that failed."""
        try:
            yield
        except RunError as error:
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()
            reason = str(error)
            if isinstance(error, NonFiniteError):
                task = "" if error.task is None else f" of task '{self.tasks[error.task]}'"
                reason = f"non-finite {error.quantity}{task}"
            name = self.combiners[objective].name
            raise RunError(f"{reason} in the {objective} objective under combiner '{name}'") from error

    def clip(self, parameters: Sequence[nn.Parameter], norm: Tensor) -> None:
        """Shortens the gradients, whose norm is given, to the limit if there is one."""
        limit = self.config.max_gradient_norm
        if limit is not None:
            factor = (limit / (norm + 1e-12)).clamp(max=1)
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.mul_(factor)

    def step(self, losses: Losses, skip: Tensor | None = None) -> None:
        """Moves networks and temperature against their gradients, and the target critics after the critics.

        Args:
            losses: of this update, for the temperature.
            skip: a scalar on the device, 1.0 where all is to stay as it is and else 0.0; None is 0.0.
        """
        self.log_alpha.grad = torch.autograd.grad(
            temperature_loss(self.log_alpha, losses.log_prob, self.target_entropy), self.log_alpha
        )[0]
        for optimizer in self.optimizers.values():
            # Fused optimizers look at this on the device, and do nothing where it is 1.
            setattr(optimizer, "found_inf", skip)  # noqa: B010 - not among the declared attributes
            optimizer.step()
            optimizer.zero_grad()
        targets: list[Tensor] = list(self.target_critic.parameters())
        sources: list[Tensor] = list(self.critic.parameters())
        rate = self.config.target_update_rate
        with torch.no_grad():
            if skip is None:
                torch._foreach_lerp_(targets, sources, rate)
            else:
                torch._foreach_lerp_(targets, sources, [rate * (1 - skip)] * len(sources))

    def _after_step(self, batch: Batch, losses: Losses) -> None:
        """Shows the losses on the same batch once more to the methods that ask for them."""
        critic, actor = self.combiners["critic"], self.combiners["actor"]
        with torch.no_grad():
            if critic.needs_losses_after_step:
                critic.after_step(critic_losses(self.critic, batch, losses.targets))
            if actor.needs_losses_after_step:
                actor.after_step(actor_losses(self.actor, self.critic, batch, losses.alpha, self.generator)[0])

    @staticmethod
    def metrics(losses: Losses, critic_norm: Tensor, actor_norm: Tensor) -> dict[str, Tensor]:
        """What every update logs, as zero-dimensional tensors."""
        return {
            "train/critic_loss": losses.critic.detach().mean(),
            "train/actor_loss": losses.actor.detach().mean(),
            "train/critic_gradient_norm": critic_norm,
            "train/actor_gradient_norm": actor_norm,
            "train/temperature": losses.alpha.mean(),
            "train/entropy": -losses.log_prob.mean(),
            "train/target_value": losses.targets.mean(),
        }

    # -------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning goes on from, except for the buffer's transitions (see `ReplayBuffer.slice`).

        Raises:
            RunError: if the last update failed on the device and nobody was told yet.
        """
        if self.captured is not None:
            self.captured.check()
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "target_critic": self.target_critic.state_dict(),
            "log_alpha": self.log_alpha.detach(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "combiners": {name: combiner.state_dict() for name, combiner in self.combiners.items()},
            "generator": self.generator.get_state(),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        self.target_critic.load_state_dict(state["target_critic"])
        self.log_alpha.data.copy_(state["log_alpha"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, combiner in self.combiners.items():
            combiner.load_state_dict(state["combiners"][name])
        self.generator.set_state(state["generator"].cpu())
        self.replay.load_state_dict(state["replay"])
        # The optimizers' state is in other memory now.
        self.captured, self.capture_next = None, self._captures

    @property
    def _captures(self) -> bool:
        return self.config.compile == "auto" and self.device.type == "cuda"
