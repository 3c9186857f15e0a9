"""Measures over supervised runs: gains over single-task training, ranks, gradient alignment, distance travelled."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mtrl.errors import InputError
from mtrl.gradients import Combination
from mtrl.gradients.pipeline import weighted_cosines
from mtrl.supervised.problem import MultiTaskModel, Task

# Metrics go by key: a task's name for its first metric, "<task>/<metric>" for others.


def _by_task(values: Mapping[str, float]) -> dict[str, float]:
    """The mean within each task."""
    groups: dict[str, list[float]] = {}
    for key, value in values.items():
        groups.setdefault(key.split("/")[0], []).append(value)
    return {task: float(np.mean(group)) for task, group in groups.items()}


def relative_gain(
    metrics: Mapping[str, float], reference: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> tuple[float, dict[str, float]]:
    """The relative gain over single-task training (Gama & Grassi, 2025, equation 1): 0.01 is one per cent better.

    Args:
        metrics: of a multi-task model, by key.
        reference: of single-task training, by key.
        higher_is_better: by key.

    Returns:
        The mean over tasks, and by task the mean over its metrics.

    Raises:
        InputError: if a reference is missing or 0.
    """
    gains = {}
    for key, value in metrics.items():
        if key not in higher_is_better:
            continue
        if not reference.get(key):
            raise InputError(f"the relative gain in {key} needs a single-task reference other than 0")
        gain = (value - reference[key]) / reference[key]
        gains[key] = gain if higher_is_better[key] else -gain
    by_task = _by_task(gains)
    return float(np.mean(list(by_task.values()))), by_task


def mean_rank(methods: Mapping[str, Mapping[str, float]], higher_is_better: Mapping[str, bool]) -> dict[str, float]:
    """The mean rank (Gama & Grassi, 2025, equation 2): within a task over its metrics, then over tasks; 1 is best.

    Args:
        methods: metrics by key, by method. Ties share the mean of their ranks.
        higher_is_better: by key.
    """
    ranks: dict[str, dict[str, float]] = {method: {} for method in methods}
    for key, higher in higher_is_better.items():
        values = np.array([metrics[key] for metrics in methods.values()]) * (-1 if higher else 1)
        for method, value in zip(methods, values, strict=True):
            ranks[method][key] = float((values < value).sum() + ((values == value).sum() + 1) / 2)
    return {method: float(np.mean(list(_by_task(found).values()))) for method, found in ranks.items()}


def gain_statistics(by_task: Mapping[str, float]) -> dict[str, float]:
    """How evenly the tasks gain (Gama & Grassi, 2025, table 5): ``min max median std mean``.

    Args:
        by_task: from `relative_gain`. The standard deviation is the population's.
    """
    values = np.array(list(by_task.values()))
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "median": float(np.median(values)),
        "std": float(values.std()),
        "mean": float(values.mean()),
    }


def shared_gradients(
    model: MultiTaskModel, tasks: Mapping[str, Task], batch: tuple[Tensor, Mapping[str, Tensor]]
) -> Combination:
    """The tasks' gradients by the encoder's parameters on one batch, measured without dropout.

    Its ``alignment`` is each gradient's cosine to their average (Gama & Grassi, 2025, figures 3a and 7), its
    ``update_norm`` the norm of their sum (Kurin et al., 2022, section 5.3). No ``.grad`` is touched.
    """
    inputs, targets = batch
    training = model.training
    model.eval()
    outputs = model(inputs)
    losses = [task.loss(outputs[name], targets[name]) for name, task in tasks.items()]
    parameters = list(model.encoder.parameters())
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(nn.utils.parameters_to_vector(gradients))
    model.train(training)
    jacobian = torch.stack(rows)
    gramian = jacobian @ jacobian.T
    alignment = weighted_cosines(gramian, torch.ones_like(gramian[0]))
    return Combination(torch.stack(losses).detach(), None, gramian, alignment, jacobian.sum(0).norm())


class Distance:
    """How far parameters travel (Pascal et al., section 4.4).

    Args:
        parameters: at their starting point.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._start = self._here()
        self._last = self._start
        self._total = torch.zeros((), dtype=torch.float64, device=self._start.device)

    def moved(self) -> None:
        """To be called after every step."""
        here = self._here()
        self._total += (here - self._last).norm()
        self._last = here

    def measures(self) -> dict[str, float]:
        """``total``, the length of the path; ``shortest``, the straight line; ``ratio``, their quotient (1 at rest)."""
        total, shortest = float(self._total), float((self._last - self._start).norm())
        return {"total": total, "shortest": shortest, "ratio": total / shortest if shortest else 1.0}

    def _here(self) -> Tensor:
        return nn.utils.parameters_to_vector(self._parameters).detach()

    def state_dict(self) -> dict[str, Tensor]:
        """Where it began, where it is, and how far it came."""
        return {"start": self._start, "last": self._last, "total": self._total}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores a `state_dict`."""
        self._start, self._last = state["start"].to(self._start), state["last"].to(self._start)
        self._total = state["total"].to(self._total)
