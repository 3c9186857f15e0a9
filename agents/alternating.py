"""Multi-task SAC by steps for one group of tasks after the other, not by one for all of them together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents.objectives import Objectives, Summed
from agents.replay import Batch
from agents.sac import METRICS, MultiTaskSAC, SACConfig, Turn
from mtrl import combiners


class AlternatingSAC(MultiTaskSAC):
    """MTL-IUS and MTL-IO (Pascal et al., equations 6 to 8) for critics, actor and temperature.

    An update draws one mini-batch and takes a step for each group in turn, on its tasks' part of it, from where the
    step before has led: critics and actor are differentiated at the same parameters and then moved together, as
    without groups. A step's loss is the sum of its tasks' divided by T, so that one group is unitary scalarization.
    Rewards are scaled and targets computed when it is a group's turn; the target critics follow once, after the last.
    What is a task's own, a temperature or a learned code, moves in its group's steps alone, with a memory of its own.

    Measures of conflict are those of all tasks' gradients before the first step, against their sum.

    Args:
        tasks: their names, in the order of the first dimension of every array.
        observation_size: O, without task identity.
        action_size: A.
        config: the hyperparameters; ``rescale`` means nothing here.
        groups: the tasks of each step; every task is in one.
        memory_per_group: whether each group has moment estimates of its own (IO), or all share one (IUS).
        **others: see `MultiTaskSAC`, whose update says what it raises; the steps of the groups before stay.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        observation_size: int,
        action_size: int,
        config: SACConfig,
        *,
        groups: Sequence[Sequence[str]],
        memory_per_group: bool,
        **others: Any,
    ) -> None:
        self.groups, self.memory_per_group = groups, memory_per_group
        critic, actor = (combiners.make("unitary", len(tasks)) for _ in range(2))
        super().__init__(tasks, observation_size, action_size, critic, actor, config, **others)

    def new_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """See `MultiTaskSAC`; codes have one of their own."""
        made = super().new_optimizers()
        if self.critic.rows is not None:
            codes, decay = self.critic.rows.weight, self.config.critic.weight_decay
            made["critic"] = self.adam([p for p in self.critic.parameters() if p is not codes], decay)
            made["codes"] = self.adam([codes], decay)
        return made

    def make_turns(self) -> Sequence[Turn]:
        """One for each group; the optimizers of all but the first are numbered."""
        own = {"codes", "temperature"} if self.config.per_task_temperature else {"codes"}
        first, turns = dict(self.optimizers), []
        for number, names in enumerate(self.groups):
            optimizers = first
            if number:
                further = self.new_optimizers()
                further = {name: made for name, made in further.items() if self.memory_per_group or name in own}
                optimizers = first | further
                self.optimizers |= {f"{name}_{number}": made for name, made in further.items()}
            numbers = torch.tensor([self.tasks.index(name) for name in names], device=self.device)
            last = number == len(self.groups) - 1
            turns.append(Turn(self._objectives_of(names), optimizers, numbers, last))
        return turns

    def _objectives_of(self, names: Sequence[str]) -> Objectives:
        return Objectives(
            names,
            {"critic": Summed(self.critic), "actor": Summed(self.actor)},
            {side: combiners.make("unitary", len(names)) for side in ("critic", "actor")},
            max_norm=self.config.max_gradient_norm,
            device=self.device,
            scale=1 / len(self.tasks),
        )

    def renew_pieces(self) -> None:
        """See `MultiTaskSAC`."""
        super().renew_pieces()
        self.further_pieces = [self.make_pieces(turn) for turn in self.turns[1:]]

    def _learn(self, drawn: Tensor | Batch, *, insight: bool) -> dict[str, Any]:
        """A gradient step for each group; what is logged is the mean over tasks."""
        seen = self._look(drawn) if insight else {}
        scalars = torch.zeros(len(METRICS), device=self.device)
        for turn, pieces in zip(self.turns, [self.pieces, *self.further_pieces], strict=True):
            self.differentiate(turn, pieces, drawn)
            scalars = scalars + pieces.step().scalars * (len(turn.objectives.tasks) / len(self.tasks))
            turn.objectives.forget()
        return dict(zip(METRICS, scalars.unbind(), strict=True)) | seen

    def _look(self, drawn: Tensor | Batch) -> dict[str, Any]:
        """Measures of conflict and plasticity; changes nothing, random numbers included."""
        random, whole = self.generator.get_state(), Turn(self.objectives, {})
        try:
            found = self.differentiate(whole, self.plain_pieces(whole), drawn)
            return self.objectives.describe(found) | self._plasticity()
        finally:
            self.generator.set_state(random)
            self.critic.zero_grad()
            self.actor.zero_grad()
            self.objectives.forget()

    def _move(self, turn: Turn, skip: Tensor) -> None:
        """See `MultiTaskSAC`; weight decay and the codes of other groups' tasks are none of this step's business."""
        codes = None if self.critic.rows is None else self.critic.rows.weight.data
        before = None if codes is None else codes.clone()
        super()._move(turn, skip)
        if codes is not None and before is not None:
            assert turn.tasks is not None
            codes.copy_(before.index_copy(0, turn.tasks, codes[turn.tasks]))
