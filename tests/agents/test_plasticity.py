"""Measures of plasticity, by hand."""

import pytest
import torch
from torch import nn

from agents.networks import Critics
from agents.plasticity import dormant_share, effective_rank, plasticity
from agents.values import ScalarValues


def test_units_are_dormant_relative_to_their_layer() -> None:
    activations = torch.tensor([[0.0, 1.0, 0.02, 3.0], [0.0, 3.0, 0.02, 1.0]])
    # Means 0, 2, .02 and 2; their mean is 1.005
    assert float(dormant_share(activations)) == 0.5
    assert float(dormant_share(activations, threshold=0.01)) == 0.25
    assert float(dormant_share(1e6 * activations)) == 0.5


def test_the_rank_of_equal_directions_is_their_number() -> None:
    rows = torch.eye(5)[:3].repeat(4, 1)
    assert float(effective_rank(rows)) == pytest.approx(3)
    assert float(effective_rank(100 * rows)) == pytest.approx(3)
    assert float(effective_rank(torch.ones(7, 5))) == pytest.approx(1)
    assert float(effective_rank(torch.zeros(7, 5))) == 0
    # Singular values 3 and 1: the entropy of (3/4, 1/4)
    assert float(effective_rank(torch.diag(torch.tensor([3.0, 1.0])))) == pytest.approx(4 / 3**0.75)


def test_a_network_is_measured_by_its_hidden_layers() -> None:
    first = nn.Linear(2, 4)
    network = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 3))
    nn.init.eye_(first.weight)
    nn.init.zeros_(first.bias)
    found = plasticity(network, lambda: network(torch.eye(2)))
    assert found == pytest.approx({"dormant_share": 0.5, "effective_rank": 2.0})


def test_the_members_of_an_ensemble_are_measured_each_and_averaged() -> None:
    torch.manual_seed(0)
    critic = Critics(5, 2, [8, 8], ScalarValues(pessimistic=True))
    critic.layers[2].weight.data[0] = 0
    critic.layers[2].bias.data[0] = 0  # the first member's last hidden layer is dead
    found = plasticity(critic, lambda: critic(torch.randn(3, 4, 5), torch.randn(3, 4, 2)), members=2)
    assert found["dormant_share"] >= 0.25
    alone = plasticity(critic, lambda: critic(torch.randn(3, 4, 5), torch.randn(3, 4, 2)))
    assert 0.5 < found["effective_rank"] < alone["effective_rank"] + 8
