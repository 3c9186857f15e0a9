"""Auto-Lambda: task weights learned by looking one step ahead."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtrl.ranges import Positive
from mtrl.supervised.methods import method
from mtrl.supervised.problem import Batch
from mtrl.supervised.tasks import task_losses
from mtrl.supervised.updates import Setup, Update, named


@method("auto_lambda")
class AutoLambdaUpdate(Update):
    """Auto-Lambda (Liu, James, Davison & Johns, 2022): weights under which a step helps on other data.

    The weights descend the unweighted loss on an independent batch after a plain step on this one, ``theta' = theta -
    lr sum_i lambda_i grad L_i``. With ``d`` its gradient at ``theta'``, its gradient by ``lambda_i`` is
    ``-lr <grad L_i, d>``, taken by finite differences along d: ``-lr (L_i(theta + e d) - L_i(theta - e d)) / 2e`` with
    ``e = 0.01 / |d|``. Then the model takes its own optimizer's step on the weighted losses. Head and encoder
    parameters are treated alike. One step costs two backward and three forward passes more than a plain one. After
    Adam's step a weight below 0 is set to 0, which neither the paper nor its code does: a negative one would send its
    task uphill, and from 0 it comes back when its gradient turns.
    ``initial_weight`` is every task's, 0.1 as in the paper; ``learning_rate`` is Adam's on the weights.
    """

    combines = False
    second_batch = True

    def __init__(self, setup: Setup, *, initial_weight: Positive = 0.1, learning_rate: Positive = 1e-4) -> None:
        super().__init__(setup)
        like = next(self.model.parameters())
        self.weights = nn.Parameter(like.new_full((len(self.tasks),), initial_weight))
        self.weights_optimizer = torch.optim.Adam([self.weights], lr=learning_rate)
        self.stateful |= {"weights": nn.ParameterList([self.weights]), "weights_optimizer": self.weights_optimizer}

    def step(self, batch: Batch, draw: Callable[[], Batch], moved: Callable[[], None]) -> dict[str, Tensor]:
        """See `mtrl.supervised.updates.Update`."""
        self.weights.grad = self._look_ahead(batch, draw())
        self.weights_optimizer.step()
        with torch.no_grad():
            self.weights.clamp_(min=0)
        weights = self.weights.detach()
        losses = torch.stack(task_losses(self.tasks, self.model(batch[0]), batch[1], self.replicas))
        self.optimizer.zero_grad()
        (weights @ losses).backward()  # type: ignore[no-untyped-call]
        self._average_gradients(self.optimizer)
        self.optimizer.step()
        moved()
        return named("loss", self.tasks, self._mean_losses(list(losses))) | named("weight", self.tasks, weights.clone())

    def _look_ahead(self, batch: Batch, other: Batch) -> Tensor:
        """The gradient by the weights of the unweighted loss on the other batch after a step on this one."""
        parameters: dict[str, Tensor] = dict(self.model.named_parameters())
        rate = float(self.optimizer.param_groups[0]["lr"])

        def losses(at: dict[str, Tensor], data: Batch) -> Tensor:
            outputs = functional_call(self.model, at, (data[0],))
            return torch.stack(task_losses(self.tasks, outputs, data[1], self.replicas))

        def gradient(loss: Tensor, at: dict[str, Tensor]) -> list[Tensor]:
            found = torch.autograd.grad(loss, list(at.values()), allow_unused=True, materialize_grads=True)
            averaged = self.replicas.averaged(list(found), list(at.values()))
            return [one for one in averaged if one is not None]  # all of them

        @torch.no_grad()
        def moved(step: float, along: Sequence[Tensor]) -> dict[str, Tensor]:
            return {name: p + step * d for (name, p), d in zip(parameters.items(), along, strict=True)}

        plain = gradient(self.weights.detach() @ losses(parameters, batch), parameters)
        ahead = {name: p.requires_grad_() for name, p in moved(-rate, plain).items()}
        direction = gradient(losses(ahead, other).sum(), ahead)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in direction]))
        if norm == 0:
            return torch.zeros_like(self.weights)
        reach = 0.01 / float(norm)
        with torch.no_grad():
            forward, backward = (
                self._mean_losses(list(losses(moved(step, direction), batch))) for step in (reach, -reach)
            )
        return (forward - backward) * (-rate / (2 * reach))
