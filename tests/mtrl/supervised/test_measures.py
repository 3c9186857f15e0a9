import math

import pytest
import torch
from torch import nn

from mtrl.errors import InputError
from mtrl.measures import gain_statistics, mean_rank, relative_gain, relative_loss
from mtrl.supervised import MultiTaskModel, regression
from mtrl.supervised.measures import Distance, shared_gradients

HIGHER = {"segmentation": True, "segmentation/accuracy": True, "depth": False}
SINGLE = {"segmentation": 0.5, "segmentation/accuracy": 0.8, "depth": 0.1}


def test_relative_gain_averages_within_tasks_first():
    metrics = {"segmentation": 0.6, "segmentation/accuracy": 0.76, "depth": 0.13, "loss/depth": 9.0}
    total, by_task = relative_gain(metrics, SINGLE, HIGHER)
    # segmentation: (+20% - 5%) / 2 = 7.5%; depth: 30% more error is -30%; their mean is -11.25%.
    assert by_task == pytest.approx({"segmentation": 0.075, "depth": -0.3})
    assert total == pytest.approx(-0.1125)


def test_relative_loss_averages_over_metrics_and_is_of_the_other_sign():
    metrics = {"segmentation": 0.6, "segmentation/accuracy": 0.76, "depth": 0.13, "loss/depth": 9.0}
    # -(20% - 5% - 30%) / 3: a task with two metrics counts twice.
    assert relative_loss(metrics, SINGLE, HIGHER) == pytest.approx(0.05)
    assert relative_loss(SINGLE, SINGLE, HIGHER) == 0
    with pytest.raises(InputError, match="depth"):
        relative_loss({"depth": 1.0}, {}, HIGHER)


def test_relative_gain_needs_its_reference():
    with pytest.raises(InputError, match="depth"):
        relative_gain({"depth": 1.0}, {}, HIGHER)
    with pytest.raises(InputError, match="depth"):
        relative_gain({"depth": 1.0}, {"depth": 0.0}, HIGHER)


def test_mean_rank_averages_within_tasks_first_and_shares_ties():
    methods = {
        "x": {"segmentation": 0.6, "segmentation/accuracy": 0.7, "depth": 0.3},  # ranks 1, 3, 2.5
        "y": {"segmentation": 0.5, "segmentation/accuracy": 0.8, "depth": 0.3},  # ranks 2, 2, 2.5
        "z": {"segmentation": 0.4, "segmentation/accuracy": 0.9, "depth": 0.2},  # ranks 3, 1, 1
    }
    assert mean_rank(methods, HIGHER) == pytest.approx({"x": 2.25, "y": 2.25, "z": 1.5})


def test_gain_statistics_by_hand():
    found = gain_statistics({"a": -0.4, "b": 0.0, "c": 0.1})
    assert found == pytest.approx(
        {"min": -0.4, "max": 0.1, "median": 0.0, "mean": -0.1, "std": math.sqrt((0.09 + 0.01 + 0.04) / 3)}
    )


def test_shared_gradients_by_hand():
    # z = w x with w = (1, 1) and x = 1; losses (z_a - t)^2 with their own coordinate of z each, and the sum.
    class Sum(nn.Module):
        def __init__(self, index):
            super().__init__()
            self.index = index

        def forward(self, z):
            return z.sum(1, keepdim=True) if self.index is None else z[:, self.index : self.index + 1]

    encoder = nn.Linear(1, 2, bias=False)
    nn.init.ones_(encoder.weight)
    model = MultiTaskModel(encoder, {"a": Sum(0), "b": Sum(1)})
    batch = torch.ones(1, 1), {"a": torch.tensor([[-0.5]]), "b": torch.tensor([[-1.0]])}
    found = shared_gradients(model, {"a": regression(), "b": regression()}, batch)
    # Gradients: 2 (1 + 0.5) = 3 along the first axis, 2 (1 + 1) = 4 along the second.
    assert found.gramian is not None
    assert torch.allclose(found.gramian, torch.tensor([[9.0, 0.0], [0.0, 16.0]]))
    assert found.update_norm == pytest.approx(5.0)
    assert found.alignment.tolist() == pytest.approx([0.6, 0.8])
    assert encoder.weight.grad is None


def test_distance_by_hand():
    point = nn.Parameter(torch.zeros(2))
    distance = Distance([point])
    assert distance.measures() == {"total": 0.0, "shortest": 0.0, "ratio": 1.0}
    for target in ([3.0, 0.0], [3.0, 4.0]):
        with torch.no_grad():
            point.copy_(torch.tensor(target))
        distance.moved()
    assert distance.measures() == pytest.approx({"total": 7.0, "shortest": 5.0, "ratio": 1.4})
    resumed = Distance([nn.Parameter(torch.zeros(2))])
    resumed.load_state_dict(distance.state_dict())
    assert resumed.measures() == distance.measures()
