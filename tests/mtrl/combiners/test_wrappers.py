"""Wrappers against their definitions, step by step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl import combiners
from mtrl.errors import InputError

TASKS = 3


def problem(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    jacobian = torch.randn(TASKS, 6, dtype=torch.float64, generator=generator)
    return torch.rand(TASKS, dtype=torch.float64, generator=generator) + 0.1, jacobian @ jacobian.T


def weights(steps: int, name: str = "cagrad", **options: Any) -> list[Tensor]:
    combiner = combiners.make(name, TASKS, **options)
    return [combiner.weights(*problem(step)) for step in range(steps)]


def test_weights_are_found_every_third_step_and_kept_in_between() -> None:
    found, plain = weights(8, every=3), weights(8)
    assert all(torch.equal(found[step], plain[step - step % 3]) for step in range(8))


def test_no_gramian_is_needed_in_between() -> None:
    combiner = combiners.make("mgda", TASKS, every=2)
    for step in range(6):
        losses, gramian = problem(step)
        assert combiner.needs == ("losses" if step % 2 else "gramian")
        combiner.weights(losses, None if step % 2 else gramian)


def test_smoothed_weights_are_an_exponential_average() -> None:
    average, found = None, weights(6, smooth=0.8)
    for step, plain in enumerate(weights(6)):
        average = plain if average is None else 0.8 * average + 0.2 * plain
        torch.testing.assert_close(found[step], average)


def test_gradients_of_logarithms() -> None:
    """By autograd: the update is the method's on the gradients of ``log l``."""
    parameter = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    losses = torch.stack([parameter.square().sum() + 0.1, (parameter - 1).square().sum(), parameter.exp().sum()])

    def jacobian(values: Tensor) -> Tensor:
        return torch.stack([torch.autograd.grad(value, parameter, retain_graph=True)[0] for value in values])

    update = combiners.make("upgrad", TASKS, log=True).combine(losses, jacobian(losses))
    expected = combiners.make("upgrad", TASKS).combine(losses, jacobian(losses.log()))
    torch.testing.assert_close(update, expected)


def test_they_compose_and_are_rescaled_once_at_last() -> None:
    found = weights(5, "mgda", every=2, smooth=0.5, log=True, rescale=True)
    logarithms = combiners.make("mgda", TASKS, log=True)
    average = None
    for step in range(5):
        if step % 2 == 0:
            plain = logarithms.weights(*problem(step))
            average = plain if average is None else (average + plain) / 2
        assert average is not None
        torch.testing.assert_close(found[step], TASKS * average / average.sum())


def test_options_that_wrap_nothing_leave_the_method_as_it_is() -> None:
    assert type(combiners.make("cagrad", TASKS, every=1, smooth=0.0, log=False)) is combiners.get("cagrad")


def test_what_looks_after_the_step_still_does() -> None:
    wrapped, plain = combiners.make("famo", TASKS, every=2), combiners.make("famo", TASKS)
    assert wrapped.needs_losses_after_step
    losses = torch.rand(TASKS) + 0.5
    for combiner in (wrapped, plain):
        combiner.weights(losses)
        combiner.after_step(losses / 2)
    wrapped.weights(losses)
    assert torch.equal(wrapped.weights(losses), plain.weights(losses))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("graddrop", {"every": 2}, "graddrop has no task weights for 'every': it combines the gradients' entries"),
        ("moco", {"smooth": 0.5}, "moco has no task weights for 'smooth'"),
        ("famo", {"log": True}, "famo looks at losses, not at gradients"),
        ("mgda", {"every": 0}, r"every of mgda: expected an integer of at least 1, got 0"),
        ("mgda", {"smooth": 1.0}, r"smooth of mgda: expected a number in \[0, 1\), got 1.0"),
        ("mgda", {"log": "yes"}, "log of mgda: expected true or false, got 'yes'"),
        ("mgda", {"every": 2, "evry": 3}, "unknown option of mgda 'evry'"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        combiners.make(name, TASKS, **options)


def test_a_logarithm_needs_a_loss_that_is_not_negative() -> None:
    losses, gramian = problem(0)
    losses[1] = -1
    with pytest.raises(InputError, match="cagrad needs positive losses, but task 1 has -1"):
        combiners.make("cagrad", TASKS, log=True).weights(losses, gramian)
    losses[1] = 0
    assert combiners.make("cagrad", TASKS, log=True).weights(losses, gramian)[1] == 0
