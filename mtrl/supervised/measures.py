"""Measures of a model while it trains: gradient alignment, distance travelled."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.gradients import Combination
from mtrl.gradients.distributed import Replicas
from mtrl.gradients.pipeline import weighted_cosines
from mtrl.gradients.shared_input import ByParameters
from mtrl.supervised.problem import MultiTaskModel
from mtrl.supervised.tasks import Targets, Task, task_losses


def shared_gradients(
    model: MultiTaskModel,
    tasks: Mapping[str, Task],
    batch: tuple[Any, Mapping[str, Targets]],
    replicas: Replicas = Replicas(),  # noqa: B008  (it is immutable)
) -> Combination:
    """The tasks' gradients by the encoder's parameters on one batch, measured without dropout.

    Its ``alignment`` is each gradient's cosine to their average (Gama & Grassi, 2025, figures 3a and 7), its
    ``update_norm`` the norm of their sum (Kurin et al., 2022, section 5.3). No ``.grad`` is touched. Of several
    processes, each gives its part of the batch.
    """
    training = model.training
    losses = task_losses(tasks, model.eval()(batch[0]), batch[1], replicas)
    model.train(training)
    encoder = list(model.encoder.parameters())
    jacobian = ByParameters(losses, encoder, (), False, memory_limit=sys.maxsize, replicas=replicas).jacobian()
    gramian = jacobian @ jacobian.T
    alignment = weighted_cosines(gramian, torch.ones_like(gramian[0]))
    return Combination(replicas.mean_(torch.stack(losses).detach()), None, gramian, alignment, jacobian.sum(0).norm())


class Distance(nn.Module):
    """How far parameters, given at their starting point, travel (Pascal et al., section 4.4)."""

    def __init__(self, travelling: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self._travelling = travelling
        self.start: Tensor = nn.Buffer(self._here())
        self.last: Tensor = nn.Buffer(self._here())
        self.total: Tensor = nn.Buffer(torch.zeros((), dtype=torch.float64, device=self.start.device))

    def moved(self) -> None:
        """To be called after every step."""
        here = self._here()
        self.total += (here - self.last).norm()
        self.last = here

    def measures(self) -> dict[str, float]:
        """``total``, the length of the path; ``shortest``, the straight line; ``ratio``, their quotient (1 at rest)."""
        total, shortest = float(self.total), float((self.last - self.start).norm())
        return {"total": total, "shortest": shortest, "ratio": total / shortest if shortest else 1.0}

    def _here(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self._travelling])  # whatever their layout
