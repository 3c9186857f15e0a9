"""Measures of conflict, computed by hand."""

import math

import pytest
import torch
from torch import Tensor

from mtrl.gradients import Combination
from mtrl.gradients.conflict import conflict_metrics, cosine_matrix, magnitude_similarity

# Gradients (3, 0), (0, 1), (-4, 3) and (0, 0): cosines 0, -4/5 and 3/5 between the first three.
JACOBIAN = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-4.0, 3.0], [0.0, 0.0]])
TASKS = ["a", "b", "c", "d"]


def combination(jacobian: Tensor | None, weights: Tensor | None, alignment: Tensor | None) -> Combination:
    return Combination(
        losses=torch.ones(4),
        weights=weights,
        gramian=None if jacobian is None else jacobian @ jacobian.T,
        alignment=alignment,
        update_norm=torch.tensor(1.0),
    )


def test_cosine_matrix() -> None:
    expected = [[1, 0, -0.8, 0], [0, 1, 0.6, 0], [-0.8, 0.6, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(cosine_matrix(JACOBIAN @ JACOBIAN.T), torch.tensor(expected))


def test_magnitude_similarity() -> None:
    ab, ac, bc = 2 * 3 * 1 / (9 + 1), 2 * 3 * 5 / (9 + 25), 2 * 1 * 5 / (1 + 25)
    expected = [[1, ab, ac, 0], [ab, 1, bc, 0], [ac, bc, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(magnitude_similarity(JACOBIAN @ JACOBIAN.T), torch.tensor(expected))


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3, 1e12])
def test_matrices_do_not_depend_on_the_scale(scale: float) -> None:
    gramian = JACOBIAN @ JACOBIAN.T
    torch.testing.assert_close(cosine_matrix(scale * gramian), cosine_matrix(gramian))
    torch.testing.assert_close(magnitude_similarity(scale * gramian), magnitude_similarity(gramian))


def test_conflict_metrics() -> None:
    weights, alignment = torch.tensor([1.0, 2.0, 0.5, 0.0]), torch.tensor([0.1, 0.2, -0.3, 0.0])
    metrics = conflict_metrics(combination(JACOBIAN, weights, alignment), TASKS)
    assert metrics.pop("cosines") == [[1, 0, -0.8, 0], [0, 1, 0.6, 0], [-0.8, 0.6, 1, 0], [0, 0, 0, 0]]
    assert metrics == pytest.approx(
        {
            "weight/a": 1.0,
            "weight/b": 2.0,
            "weight/c": 0.5,
            "weight/d": 0.0,
            "cosine_to_update/a": 0.1,
            "cosine_to_update/b": 0.2,
            "cosine_to_update/c": -0.3,
            "cosine_to_update/d": 0.0,
            "summed_gradient_norm": math.hypot(-1, 4),
            "norm_spread": 5.0,
            "cosine_mean": (0 - 0.8 + 0.6) / 6,
            "cosine_min": -0.8,
            "conflicting_pairs": 1 / 6,
            "magnitude_similarity": (0.6 + 30 / 34 + 10 / 26) / 6,
        }
    )


def test_without_weights_or_gramian() -> None:
    assert conflict_metrics(combination(None, None, None), TASKS) == {}
    assert conflict_metrics(combination(None, torch.ones(4), None), TASKS) == {f"weight/{t}": 1.0 for t in TASKS}
    only_gramian = conflict_metrics(combination(JACOBIAN, None, torch.zeros(4)), TASKS)
    assert not any(key.startswith("weight/") for key in only_gramian)


def test_one_task_has_no_pairs() -> None:
    metrics = conflict_metrics(combination(JACOBIAN[:1], torch.ones(1), torch.ones(1)), ["a"])
    assert metrics == {"weight/a": 1.0, "cosine_to_update/a": 1.0, "summed_gradient_norm": 3.0}
