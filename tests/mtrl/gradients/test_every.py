"""A method that solves at some steps only, in a user's own loop: the graph is passed through no oftener than needed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl import combiners, gradients
from mtrl.gradients import TaskBatched, promises

T = 3


def step(
    way: str, combiner: combiners.Combiner, *, insight: bool = False
) -> tuple[list[Tensor], gradients.Combination]:
    """The gradients of one step of a small network, the same at every call, and what was done."""
    torch.manual_seed(0)
    encoder, head = nn.Linear(4, 5), nn.Linear(5, 1)
    network, x = nn.Sequential(encoder, nn.Tanh(), head), torch.randn(T, 6, 4)
    if way == "batched":
        batched = TaskBatched(network, T)
        with batched.record():
            losses = network(x).square().mean((1, 2))
        done = batched.backward(losses, combiner, insight=insight)
    else:
        z = encoder(x)
        losses = head(z.tanh()).square().mean((1, 2))
        done = gradients.backward(
            losses, combiner, shared=encoder, specific=head, representation=z if way == "z" else None, insight=insight
        )
    return [p.grad for p in network.parameters() if p.grad is not None], done


@pytest.mark.parametrize("insight", [False, True])
@pytest.mark.parametrize("way", ["shared", "z", "batched"])
def test_steps_between_two_solutions_keep_the_weights(way: str, insight: bool) -> None:
    combiner = combiners.make("mgda", T, every=3)
    expected, solved = step(way, combiners.make("mgda", T))
    for number in range(7):
        found, done = step(way, combiner, insight=insight)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(done.weights, solved.weights)
        assert (done.gramian is not None) == (insight or number % 3 == 0), number


def test_the_graph_is_walked_at_the_first_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a step without a Gramian does not look at the representation."""
    encoder, head = nn.Linear(4, 5), nn.Linear(5, 1)
    combiner, walks, reached = combiners.make("mgda", T, every=2), [], promises.reached

    def counted(*args: Any, **options: Any) -> list[int]:
        walks.append(1)
        return reached(*args, **options)

    monkeypatch.setattr(promises, "reached", counted)
    for number in range(6):
        z = encoder(torch.randn(T, 6, 4))
        losses = head(z.tanh()).square().mean((1, 2))
        gradients.backward(losses, combiner, shared=encoder, specific=head, representation=z)
        if number == 0:
            first = len(walks)
    assert len(walks) == first > 0
