"""Auto-Lambda: task weights learned by looking one step ahead."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from mtrl.ranges import Positive, check
from mtrl.supervised.problem import MultiTaskModel, Task
from mtrl.supervised.updates import Batch, OptimizerOptions, named, set_learning_rate, task_losses


class AutoLambdaUpdate:
    """Auto-Lambda (Liu, James, Davison & Johns, 2022): weights under which a step helps on other data.

    The weights descend the unweighted loss on an independent batch after a plain step on this one, ``theta' = theta -
    lr sum_i lambda_i grad L_i``. With ``d`` its gradient at ``theta'``, its gradient by ``lambda_i`` is
    ``-lr <grad L_i, d>``, taken by finite differences along d: ``-lr (L_i(theta + e d) - L_i(theta - e d)) / 2e`` with
    ``e = 0.01 / |d|``. Then the model takes its own optimizer's step on the weighted losses. Head and encoder
    parameters are treated alike. One step costs two backward and three forward passes more than a plain one.

    Args:
        model: what learns.
        tasks: by name.
        optimizer: makes the model's optimizer.
        initial_weight: of every task; 0.1 as in the paper.
        learning_rate: Adam's on the weights, above 0.

    Raises:
        InputError: if an option is out of range.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: Mapping[str, Task],
        optimizer: OptimizerOptions,
        *,
        initial_weight: float = 0.1,
        learning_rate: float = 1e-4,
    ) -> None:
        check("initial_weight of auto_lambda", initial_weight, Positive)
        check("learning_rate of auto_lambda", learning_rate, Positive)
        self.model, self.tasks = model, tasks
        self.optimizer = optimizer.make(list(model.parameters()))
        like = next(model.parameters())
        self.weights = like.new_full((len(tasks),), initial_weight, requires_grad=True)
        self.weights_optimizer = torch.optim.Adam([self.weights], lr=learning_rate)

    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """See `mtrl.supervised.updates.Update`."""
        self.weights.grad = self._look_ahead(batch, draw())
        self.weights_optimizer.step()
        with torch.no_grad():
            self.weights.clamp_(min=0)
        weights = self.weights.detach()
        losses = torch.stack(task_losses(self.tasks, self.model(batch[0]), batch[1]))
        self.optimizer.zero_grad()
        (weights @ losses).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        moved()
        return named("loss", self.tasks, losses) | named("weight", self.tasks, weights.clone())

    def _look_ahead(self, batch: Batch, other: Batch) -> Tensor:
        """The gradient by the weights of the unweighted loss on the other batch after a step on this one."""
        parameters = dict(self.model.named_parameters())
        rate = float(self.optimizer.param_groups[0]["lr"])

        def losses(at: Mapping[str, Tensor], inputs: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
            outputs = functional_call(self.model, dict(at), (inputs,))
            return torch.stack(task_losses(self.tasks, outputs, targets))

        def gradient(loss: Tensor, at: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(loss, list(at.values()), allow_unused=True, materialize_grads=True)

        plain = gradient(self.weights.detach() @ losses(parameters, *batch), parameters)
        ahead = {
            name: (parameter - rate * g).detach().requires_grad_()
            for (name, parameter), g in zip(parameters.items(), plain, strict=True)
        }
        direction = gradient(losses(ahead, *other).sum(), ahead)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in direction]))
        if norm == 0:
            return torch.zeros_like(self.weights)
        reach = 0.01 / float(norm)
        with torch.no_grad():
            sides = [
                losses(
                    {n: p + sign * reach * d for (n, p), d in zip(parameters.items(), direction, strict=True)}, *batch
                )
                for sign in (1, -1)
            ]
        forward, backward = sides
        return (forward - backward) * (-rate / (2 * reach))

    def set_learning_rate(self, learning_rate: float) -> None:
        """See `mtrl.supervised.updates.Update`."""
        set_learning_rate(self.optimizer, learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """See `mtrl.supervised.updates.Update`."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "weights": self.weights.detach(),
            "weights_optimizer": self.weights_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `mtrl.supervised.updates.Update`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.weights_optimizer.load_state_dict(state["weights_optimizer"])
        with torch.no_grad():
            self.weights.copy_(state["weights"])
