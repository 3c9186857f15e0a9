"""Multi-task soft actor-critic (Haarnoja et al., 2018) with one combiner per objective.

Actor and critics are fully shared; every loss is a vector with one entry per task, and a combiner turns its T
gradients into one. Defaults are those of Kurin et al. (2022), table 1, unless a field says otherwise.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from agents.networks import Actor, Critics, rows_of
from agents.objectives import Objectives, Told
from agents.plasticity import plasticity
from agents.replay import Batch, ReplayBuffer
from agents.reward_scale import CollectedScale, DeviationScale, MeanScale, ReturnScale, RewardScale
from agents.values import CategoricalValues, ScalarValues, Values
from mtrl.combiners import Combiner
from mtrl.errors import InputError, RunError
from mtrl.gradients import TaskBatched
from mtrl.gradients.graphs import Graphs, OnItsWay, pinned, warn
from mtrl.gradients.precision import float32_products
from mtrl.ranges import Count, Finite, Fraction, NotNegative, Positive, Within, check_fields
from mtrl.rl.protocols import Floats, Policy, Step
from mtrl.run import random_state
from mtrl.run.initial_weights import check_weights

EMBEDDING_SIZE = 32
"""Of the codes that tell tasks apart under ``task_encoding=embedding``, as in BRC (Nauman et al., 2025)."""
ADAM = {"coupled": torch.optim.Adam, "decoupled": torch.optim.AdamW}


@dataclass
class NetworkConfig:
    """Hyperparameters of one network."""

    hidden_sizes: list[Count] | None = None  # agent.hidden_sizes
    block: Annotated[str, Literal["mlp", "residual"]] = "mlp"  # or BroNet's, for each hidden layer after the first
    layer_norm: bool = False
    weight_decay: NotNegative = 0.0


@dataclass
class SACConfig:
    """Hyperparameters of the agent."""

    hidden_sizes: list[Count] = field(default_factory=lambda: [400, 400, 400])
    actor: NetworkConfig = field(default_factory=lambda: NetworkConfig(weight_decay=3e-4))
    critic: NetworkConfig = field(default_factory=NetworkConfig)
    critic_loss: Annotated[str, Literal["mse", "categorical"]] = "mse"
    value_limit: Positive = 10.0  # of a categorical critic's atoms, and of returns under reward_scale=return
    atoms: Annotated[int, Within("[2, inf)")] = 101
    critics: Annotated[int, Within("[1, inf)")] = 2
    twins: Annotated[str, Literal["min", "mean"]] = "min"  # what several critics say together
    # Added to observations; Kurin et al.: none; BRC: an embedding that the critics learn
    task_encoding: Annotated[str, Literal["one_hot", "embedding", "none"]] = "one_hot"
    discount: Fraction = 0.99
    n_step: Count = 1  # steps whose rewards a target sums before the critics' word counts
    target_update_rate: Annotated[float, Within("(0, 1]")] = 0.005
    learning_rate: Positive = 3e-4
    weight_decay_mode: Annotated[str, Literal["coupled", "decoupled"]] = "coupled"  # Adam's, as in their code; or AdamW
    max_gradient_norm: Positive | None = None
    initial_temperature: Positive = 1.0
    temperature_learning_rate: Positive | None = None  # agent.learning_rate
    per_task_temperature: bool = False
    target_entropy: Finite | None = None  # minus the number of action dimensions
    buffer_size: Count = 4_000_000  # transitions over all tasks, each of which has an equal share
    reward_scale: Annotated[str, Literal["sigma", "return", "mean", "collected", "none"]] = "sigma"
    rescale: bool = True  # every method's weights to unitary's scale; off, each keeps its paper's own
    compile: Annotated[str, Literal["auto", "off"]] = "auto"  # on CUDA, replay updates as graphs or launch operations

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        check_fields(self, "agent.")
        for side in (self.actor, self.critic):
            sizes = self.network(side)["hidden_sizes"]
            if side.block == "residual" and len(set(sizes)) > 1:
                raise InputError(f"agent: residual blocks need hidden layers of one size, got {sizes}")
        if self.reward_scale == "return" and self.discount == 1:
            raise InputError("agent.reward_scale=return needs agent.discount below 1: cut-off episodes have no return")

    def network(self, side: NetworkConfig) -> dict[str, Any]:
        """How one network is built."""
        sizes = side.hidden_sizes or self.hidden_sizes
        return {"hidden_sizes": sizes, "block": side.block, "layer_norm": side.layer_norm}

    def arguments(self, num_tasks: int, observation_size: int, action_size: int) -> dict[str, dict[str, Any]]:
        """What `Actor` and `Critics` are made with, by ``actor`` and ``critic``."""
        sizes = {"observation_size": observation_size, "action_size": action_size}
        sizes["num_tasks"] = 0 if self.task_encoding == "none" else num_tasks
        sizes["embedding_size"] = EMBEDDING_SIZE if self.task_encoding == "embedding" else 0
        critics = {"size": self.critics, "values": self.values()}
        return {"actor": sizes | self.network(self.actor), "critic": sizes | self.network(self.critic) | critics}

    def values(self) -> Values:
        """What critics say."""
        if self.critic_loss == "mse":
            return ScalarValues(pessimistic=self.twins == "min")
        return CategoricalValues(self.value_limit, self.atoms, pessimistic=self.twins == "min")


def critic_targets(
    actor: Actor,
    target_critic: Critics,
    batch: Batch,
    alpha: Tensor,
    generator: torch.Generator,
    tasks: Tensor | None = None,
) -> Tensor:
    """``r + gamma (Q'(s', a') - alpha log pi(a'|s'))`` as `Values.target` has it, ``[T, B, ...]``.

    ``r`` is the discounted sum of n rewards, ``s'`` where they led to and ``gamma`` the n-th power of the discount, 0
    where the episode ended for good. Of n > 1, all actions but the first are those once taken, whatever the policy
    would do now, and their entropies do not count (uncorrected n-step returns, as in Rainbow: Hessel et al., 2018).

    Here and below, a batch of some of the tasks alone comes with their numbers.
    """
    with torch.no_grad():
        next_actions, log_prob = actor.sample(batch.next_observations, generator, tasks)
        outputs = target_critic(batch.next_observations, next_actions, tasks)
        return target_critic.values.target(batch.rewards, batch.discounts, outputs, alpha * log_prob)


def critic_losses(critic: Critics, batch: Batch, targets: Tensor, tasks: Tensor | None = None) -> Tensor:
    """Each task's mean error, summed over all critics: ``[T]``."""
    errors = critic.values.error(critic(batch.observations, batch.actions, tasks), targets)
    return errors.mean(-1).sum(0)


def actor_losses(
    actor: Actor,
    critic: Critics,
    batch: Batch,
    alpha: Tensor,
    generator: torch.Generator,
    tasks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each task's mean of ``alpha log pi(a|s) - Q(s, a)``, ``[T]``, and the log-probabilities ``[T, B]``."""
    actions, log_prob = actor.sample(batch.observations, generator, tasks)
    values = critic.values.joint_value(critic(batch.observations, actions, tasks))
    return (alpha * log_prob - values).mean(-1), log_prob.detach()


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """``-alpha (log pi + target_entropy)``, averaged (Haarnoja et al., 2018, equation 18); never combined."""
    return -(log_alpha.exp().unsqueeze(-1) * (log_prob + target_entropy)).mean()


METRICS = (
    "train/critic_loss",
    "train/actor_loss",
    "train/critic_gradient_norm",
    "train/actor_gradient_norm",
    "train/temperature",
    "train/entropy",
    "train/target_value",
)


@torch.no_grad()
def _tell_codes(critic: Critics, actor: Actor) -> None:
    """Gives the actor the tasks' codes that the critics have learned, if they do: its own loss does not train them."""
    if critic.rows is not None:
        actor.codes.copy_(critic.codes())


class Pieces(NamedTuple):
    """What the agent does on the device; none reads anything back from it, so that each can be a CUDA graph.

    An update is the third to last, in this order: differentiate, combine what the host has weighed meanwhile, step.
    """

    explore: Callable[[Tensor], Tensor]
    write: Callable[[Tensor], None]
    critic: Callable[[Tensor | Batch], Told]
    actor: Callable[[], Told]
    combine_critic: Callable[[Tensor], None]
    combine_actor: Callable[[Tensor], None]
    step: Callable[[], "Moved"]


class Moved(NamedTuple):
    """What a step leaves to read."""

    scalars: Tensor
    """`METRICS`, ``[7]``."""
    losses: dict[str, Tensor]
    """On the same batch once more, ``[T]`` by objective, for the methods that look after the step."""


class Turn(NamedTuple):
    """A gradient step: whose losses it lessens, and what it moves parameters by."""

    objectives: Objectives
    optimizers: Mapping[str, torch.optim.Optimizer]
    tasks: Tensor | None = None
    """The numbers of the tasks that have a part in it, ``[N]``; None is all."""
    last: bool = True
    """Whether it is the update's last, which the target critics follow."""

    def rows(self, by_task: Tensor) -> Tensor:
        """The tasks' part of what there is of all, ``[T, ...]``."""
        return rows_of(by_task, self.tasks)


class Seen(NamedTuple):
    """What the critics' part of an update leaves for the others."""

    batch: Batch
    alpha: Tensor
    """Temperatures, ``[T or 1, 1]``."""
    targets: Tensor
    """The critics', ``[T, B, ...]``."""
    losses: Tensor
    """``[T]``."""


class MultiTaskSAC:
    """The agent: networks, optimizers, replay buffer and the two combiners.

    Args:
        tasks: their names, in the order of the first dimension of every array.
        observation_size: O, without task identity.
        action_size: A; actions are in ``[-1, 1]``.
        critic_combiner: combines the tasks' critic gradients.
        actor_combiner: combines the tasks' actor gradients; another instance.
        config: the hyperparameters.
        batch_size: transitions B per task and update.
        capacity: transitions per task that the replay buffer holds.
        seed: of initial weights, exploration and sampling.
        device: where networks and buffer live.
        precision: of the networks' products in updates: ``fp32``, ``tf32``, or ``bf16`` by autocast, activations too.
            Weights, optimizers, targets, losses, Gramians and the policy that acts are in float32.

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
        precision: str = "fp32",
    ) -> None:
        self.precision = precision
        self.tasks, self.config, self.batch_size, self.device = list(tasks), config, batch_size, device
        num_tasks = len(tasks)
        self.generator = torch.Generator(device).manual_seed(seed)
        self._arguments = config.arguments(num_tasks, observation_size, action_size)
        actor, critic = self._new_networks(seed)
        self.actor, self.critic = actor.to(device), critic.to(device)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        temperatures = num_tasks if config.per_task_temperature else 1
        self.log_alpha = nn.Parameter(torch.full((temperatures,), math.log(config.initial_temperature), device=device))
        self.target_entropy = -float(action_size) if config.target_entropy is None else config.target_entropy

        self.objectives = Objectives(
            self.tasks,
            {"critic": TaskBatched(self.critic, num_tasks), "actor": TaskBatched(self.actor, num_tasks)},
            {"critic": critic_combiner, "actor": actor_combiner},
            max_norm=config.max_gradient_norm,
            device=device,
        )
        self.optimizers = self.new_optimizers()
        shape = num_tasks, capacity, observation_size, action_size
        self.replay = ReplayBuffer(
            *shape, device, discount=config.discount, n_step=config.n_step, reserve=self.memory_of_updates()
        )
        self.drawing = self.generator  # or one of the host, where a buffer in its memory would wait for numbers
        if self.replay.storage != device:
            self.drawing = torch.Generator(self.replay.storage).manual_seed(seed)
        self.reward_scale = self._make_reward_scale()
        self._seen: Seen | None = None
        self._actor_losses: tuple[Tensor, Tensor] | None = None  # [T], and log-probabilities [T, B]
        self.turns = self.make_turns()
        self._unused_combiners = copy.deepcopy([c.state_dict() for c in self.objectives.combiners.values()])
        self.renew_pieces()

    def new_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Those of critics, actor and temperature, without memory."""
        config = self.config
        rate = config.temperature_learning_rate or config.learning_rate
        return {
            "critic": self.adam(self.critic.parameters(), config.critic.weight_decay),
            "actor": self.adam(self.actor.parameters(), config.actor.weight_decay),
            "temperature": torch.optim.Adam([self.log_alpha], rate, fused=True),
        }

    def make_turns(self) -> Sequence[Turn]:
        """The gradient steps that an update consists of: here one."""
        return [Turn(self.objectives, self.optimizers)]

    def adam(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
        """An optimizer of a network's parameters."""
        kind: type[torch.optim.Adam] = ADAM[self.config.weight_decay_mode]
        return kind(parameters, self.config.learning_rate, weight_decay=weight_decay, fused=True)

    def _new_networks(self, seed: int) -> tuple[Actor, Critics]:
        # Weights are drawn on the CPU whatever the device, so that a seed means the same networks everywhere.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            actor, critic = Actor(**self._arguments["actor"]), Critics(**self._arguments["critic"])
        _tell_codes(critic, actor)
        return actor, critic

    def memory_of_updates(self) -> int:
        """Bytes that updates take at most beside networks and buffer, whatever the method.

        As measured by PyTorch's allocator for 3 to 50 tasks, 16 to 1024 transitions each and both presets, as graphs
        and without: less than two Jacobians and 14 numbers per unit and transition, and what libraries take.
        """
        t, parameters = len(self.tasks), [*self.actor.named_parameters(), *self.critic.named_parameters()]
        units = sum(parameter.numel() for name, parameter in parameters if name.endswith("bias"))
        numbers = 2 * t * sum(parameter.numel() for _, parameter in parameters) + 14 * t * self.batch_size * units
        return 4 * numbers + 2**28

    def reset(self) -> None:
        """Begins anew, but for the replay buffer and what rewards are scaled by (Nikishin et al., 2022).

        Networks get new random weights; optimizers, temperature and methods are as at the start.
        """
        seed = torch.randint(2**31, (1,), generator=self.generator, device=self.device)
        actor, critic = self._new_networks(int(seed))
        self.actor.load_state_dict(actor.state_dict())
        for network in (self.critic, self.target_critic):
            network.load_state_dict(critic.state_dict())
        self.log_alpha.data.fill_(math.log(self.config.initial_temperature))
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        for combiner, state in zip(self.objectives.combiners.values(), self._unused_combiners, strict=True):
            combiner.load_state_dict(copy.deepcopy(state))
        self.renew_pieces()

    def act(self, observations: Floats) -> Floats:
        """Samples one exploring action per task: ``[T, O]`` to ``[T, A]``."""
        return self.pieces.explore(pinned(torch.as_tensor(observations), self.device)).cpu().numpy()

    @torch.no_grad()
    def explore(self, observations: Tensor) -> Tensor:
        """`act` on the device."""
        return self.actor.sample(observations.to(self.device, non_blocking=True), self.generator)[0]

    def act_randomly(self) -> Floats:
        """One uniform action in ``[-1, 1]`` per task, ``[T, A]``, for the warm-up."""
        return self.actor.act_randomly(len(self.tasks), self.generator)

    def policy(self, state: dict[str, Any] | None = None) -> Policy:
        """The deterministic policy that evaluation uses, of a `policy_state` or of this moment: see `Actor.policy`."""
        return self.actor.policy(state)

    def policy_state(self) -> dict[str, Tensor]:
        """A copy of what the policy is at this moment, on the CPU."""
        return {name: tensor.cpu().clone() for name, tensor in self.actor.state_dict().items()}

    def remember(self, observations: Floats, actions: Floats, step: Step) -> None:
        """Stores one raw transition of every task; of one whose simulation broke, its previous one once more.

        Raises:
            RunError: if the very first step of a task broke.
        """
        broken = [task for task, bad in zip(self.tasks, step.unstable, strict=True) if bad]
        if broken and not len(self.replay):
            raise RunError(f"the simulation was unstable at the first step of {', '.join(broken)}")
        rewards = self.reward_scale.collected(step)
        fields = map(torch.as_tensor, (observations, actions, rewards, step.next_observations, step.terminated))
        ended = torch.as_tensor(step.terminated | step.truncated)
        self.replay.add(*fields, ended=ended, broken=torch.as_tensor(step.unstable), write=self.pieces.write)

    def abandon(self, tasks: Sequence[str]) -> None:
        """Is told that the episodes of these tasks, neither terminated nor truncated, do not go on: others begin."""
        numbers = [self.tasks.index(task) for task in tasks]
        self.reward_scale.abandon(numbers)
        self.replay.begins[numbers] = True

    def update(self, *, insight: bool = False) -> dict[str, Any]:
        """One gradient step of critics, actor and temperature, and of the target critics; gives scalars to log.

        All gradients are taken at the same parameters and then applied together (as in Haarnoja et al.'s own
        implementation), so that an update that fails leaves every network as it was.

        Args:
            insight: add measures of gradient conflict, under ``conflict/<objective>/...``, and of plasticity, under
                ``network/<network>/...``.

        Raises:
            RunError: if a loss, gradient or weight is not finite (objective, task and method named). A captured
                update finds a combined gradient that is not with the next update or `state_dict`, its task unnamed.
        """
        with float32_products(self.device, tf32=True) if self.precision == "tf32" else nullcontext():
            return self._update(insight)

    def _update(self, insight: bool) -> dict[str, Any]:
        drawn = self.replay.draw(self.batch_size, self.drawing)
        try:
            metrics = self._learn(drawn, insight=insight)
        except Exception:
            self.renew_pieces()  # graphs of one update are captured in one update
            raise
        finally:
            self._seen = self._actor_losses = None
            for turn in self.turns:
                turn.objectives.forget()
        return metrics | self.objectives.counts()

    def _learn(self, drawn: Tensor | Batch, *, insight: bool) -> dict[str, Any]:
        """One gradient step for all tasks together."""
        pieces = self.plain_pieces() if insight else self.pieces
        found = self.differentiate(self.turns[0], pieces, drawn)
        seen = self.objectives.describe(found) | self._plasticity() if insight else {}
        moved = pieces.step()
        scalars = moved.scalars.clone()  # what a graph returns, its next replay overwrites
        for name, losses in moved.losses.items():
            with self.objectives.named_errors(name):
                self.objectives.combiners[name].after_step(losses.cpu())
        return dict(zip(METRICS, scalars.unbind(), strict=True)) | seen

    def differentiate(self, turn: Turn, pieces: Pieces, drawn: Tensor | Batch) -> dict[str, Tensor]:
        """Fills ``.grad`` of critics and actor at the same parameters; gives what their combiners have found."""
        critic = pieces.critic(drawn)
        of_critic = OnItsWay(critic.numbers)
        actor = pieces.actor()
        of_actor = OnItsWay(actor.numbers)
        found = {"critic": turn.objectives.weigh("critic", critic._replace(numbers=of_critic.wait()))}
        pieces.combine_critic(found["critic"])
        found["actor"] = turn.objectives.weigh("actor", actor._replace(numbers=of_actor.wait()))
        pieces.combine_actor(found["actor"])
        if isinstance(pieces.step, partial):  # else it is found out later: nothing waits for a graph
            turn.objectives.check()
        return found

    def _make_reward_scale(self) -> RewardScale:
        config = self.config
        if config.reward_scale == "return":
            limits = config.discount, self.target_entropy, config.value_limit
            return ReturnScale(len(self.tasks), *limits, self.device)
        if config.reward_scale == "collected":
            return CollectedScale(len(self.tasks))
        return {"sigma": DeviationScale, "mean": MeanScale, "none": RewardScale}[config.reward_scale]()

    def differentiate_critic(self, turn: Turn, drawn: Tensor | Batch) -> Told:
        """The critics' losses, and what their combiner looks at: see `Objectives.look`."""
        batch, alpha = self.replay.batch(drawn, turn.tasks), self.log_alpha.detach().exp()
        divisor = self.reward_scale.divisor(self.replay, alpha)
        if divisor is not None:
            batch = batch._replace(rewards=batch.rewards / turn.rows(divisor).unsqueeze(1).to(batch.rewards))
        alpha = self._temperatures(turn, alpha).unsqueeze(-1)
        with self._autocast():
            targets = critic_targets(self.actor, self.target_critic, batch, alpha, self.generator, turn.tasks)
            with turn.objectives.networks["critic"].record():
                losses = critic_losses(self.critic, batch, targets, turn.tasks)
        self._seen = Seen(batch, alpha, targets, losses)
        return turn.objectives.look("critic", losses)

    def differentiate_actor(self, turn: Turn) -> Told:
        """The actor's losses at the same parameters, and what its combiner looks at."""
        assert self._seen is not None
        with self._autocast(), turn.objectives.networks["actor"].record():
            self._actor_losses = actor_losses(
                self.actor, self.critic, self._seen.batch, self._seen.alpha, self.generator, turn.tasks
            )
        return turn.objectives.look("actor", self._actor_losses[0])

    def _temperatures(self, turn: Turn, of_all: Tensor) -> Tensor:
        """A turn's own of the temperatures, where there is one for each task."""
        return turn.rows(of_all) if self.config.per_task_temperature else of_all

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def step(self, turn: Turn) -> Moved:
        """Moves all networks and the temperature, unless a combined gradient is not finite."""
        assert self._seen is not None
        assert self._actor_losses is not None
        actor_loss, log_prob = self._actor_losses
        norms = turn.objectives.norms
        skip = 1 - norms.isfinite().all().float()
        log_alpha = self._temperatures(turn, self.log_alpha)
        temperature = temperature_loss(log_alpha, log_prob, self.target_entropy) * (len(log_prob) / len(self.tasks))
        self.log_alpha.grad = torch.autograd.grad(temperature, self.log_alpha)[0]
        self._move(turn, skip)
        critic: list[Tensor] = list(self.critic.parameters())
        with torch.no_grad():
            if turn.last:
                rate = self.config.target_update_rate * (1 - skip)
                torch._foreach_lerp_(list(self.target_critic.parameters()), critic, [rate] * len(critic))
            _tell_codes(self.critic, self.actor)
            found = (
                self._seen.losses.mean(),
                actor_loss.mean(),
                *norms.unbind(),
                self._seen.alpha.mean(),
                -log_prob.mean(),
                self.critic.values.mean_target(self._seen.targets),
            )
            return Moved(torch.stack(found), self._losses_after(turn, self._seen))

    def _losses_after(self, turn: Turn, seen: Seen) -> dict[str, Tensor]:
        asking = [name for name, made in turn.objectives.combiners.items() if made.needs_losses_after_step]
        found: dict[str, Tensor] = {}
        with self._autocast():
            if "critic" in asking:
                found["critic"] = critic_losses(self.critic, seen.batch, seen.targets, turn.tasks)
            if "actor" in asking:
                actor = self.actor, self.critic, seen.batch, seen.alpha, self.generator, turn.tasks
                found["actor"] = actor_losses(*actor)[0]
        return found

    def _move(self, turn: Turn, skip: Tensor) -> None:
        """The optimizers' steps; none where ``skip`` is 1."""
        for optimizer in turn.optimizers.values():
            # Fused optimizers look at this on the device, and do nothing where it is 1.
            setattr(optimizer, "found_inf", skip)  # noqa: B010 - not among the declared attributes
            optimizer.step()
            optimizer.zero_grad()

    def _plasticity(self) -> dict[str, float]:
        assert self._seen is not None
        observations, actions, critics = self._seen.batch.observations, self._seen.batch.actions, self.config.critics
        of_actor = plasticity(self.actor, lambda: self.actor(observations))
        of_critic = plasticity(self.critic, lambda: self.critic(observations, actions), critics)
        named = {"actor": of_actor, "critic": of_critic}
        return {f"network/{name}/{key}": value for name, found in named.items() for key, value in found.items()}

    def plain_pieces(self, turn: Turn | None = None) -> Pieces:
        """The pieces of a turn (by default the first), operation by operation."""
        turn = turn or self.turns[0]
        return Pieces(
            explore=self.explore,
            write=self.replay.write,
            critic=partial(self.differentiate_critic, turn),
            actor=partial(self.differentiate_actor, turn),
            combine_critic=partial(turn.objectives.combine, "critic"),
            combine_actor=partial(turn.objectives.combine, "actor"),
            step=partial(self.step, turn),
        )

    def renew_pieces(self) -> None:
        """Makes them anew, where what they compute with is in other memory now or an update was not finished."""
        self.pieces = self.make_pieces()

    def make_pieces(self, turn: Turn | None = None) -> Pieces:
        """The pieces; on CUDA as graphs."""
        eager = self.config.compile == "off" or self.device.type != "cuda"
        return self.plain_pieces(turn) if eager else self.graphed_pieces(turn)

    def graphed_pieces(self, turn: Turn | None = None) -> Pieces:
        """The pieces as graphs, where the combiners and the memory of the replay buffer allow it."""
        turn = turn or self.turns[0]
        pieces = self.plain_pieces(turn)._asdict()
        obstacle = turn.objectives.obstacle()
        if obstacle is not None:
            warn(f"updates, for {obstacle}")
        names = [name for name in pieces if obstacle is None or name in ("explore", "write")]
        if self.replay.storage != self.device:
            names.remove("write")
        optimizers = list(turn.optimizers.values())
        graphs = Graphs([pieces[name] for name in names], self.device, self.generator, optimizers)
        return Pieces(**pieces | dict(zip(names, graphs.functions, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning goes on from, except for the buffer's transitions (see `ReplayBuffer.slice`)."""
        for turn in self.turns:
            turn.objectives.check()
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        drawing = {} if self.drawing is self.generator else {"drawing": self.drawing.get_state()}
        own = {"log_alpha": self.log_alpha.detach(), "generator": self.generator.get_state()}
        return parts | own | drawing

    def start_from(self, state: Mapping[str, Any]) -> None:
        """Takes over what another agent had learned, from its `state_dict`: all networks and the temperature.

        Optimizers, methods, random numbers and the buffer stay new. Raises `InputError` if a shape differs (named).
        """
        for name, network in self._networks().items():
            check_weights(network.state_dict(), state[name], name)
        check_weights({"log_alpha": self.log_alpha}, {"log_alpha": state["log_alpha"]}, "temperature")
        for name, network in self._networks().items():
            network.load_state_dict(state[name])
        self.log_alpha.data.copy_(state["log_alpha"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave; on another kind of device, random numbers are new from here on."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.log_alpha.data.copy_(state["log_alpha"])
        random_state.restore(self.generator, state["generator"])
        if self.drawing is not self.generator:
            random_state.restore(self.drawing, state.get("drawing", state["generator"]))
        self.renew_pieces()

    def _networks(self) -> dict[str, nn.Module]:
        return {"actor": self.actor, "critic": self.critic, "target_critic": self.target_critic}

    def _parts(self) -> dict[str, Any]:
        optimizers = {f"{name}_optimizer": optimizer for name, optimizer in self.optimizers.items()}
        combiners = {f"{name}_combiner": combiner for name, combiner in self.objectives.combiners.items()}
        return {**self._networks(), **optimizers, **combiners, "replay": self.replay, "reward_scale": self.reward_scale}
