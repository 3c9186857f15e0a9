"""Every method on another device, moved between devices in the middle, or in a model that is cast, finds the same."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl import combiners
from mtrl.combiners import Combiner
from tests.disguised import AWAY, AnotherDevice, Away

T, P, CALLS = 3, 7, 6
CPU = torch.device("cpu")


def made(name: str, **wrapping: Any) -> Combiner:
    options = {"weights": [1.0, 2.0, 0.5]} if name == "fixed" else {}
    return combiners.make(name, T, seed=5, **options, **wrapping)


def problem(call: int) -> tuple[Tensor, Tensor]:
    """Positive losses and a Jacobian of full rank, new at every call."""
    generator = torch.Generator().manual_seed(call)
    return torch.rand(T, generator=generator) + 0.5, torch.randn(T, P, generator=generator)


def host(value: Tensor) -> Tensor:
    return value.inner if isinstance(value, Away) else value


def directions(name: str, devices: Sequence[torch.device], *, moved: bool) -> list[Tensor]:
    """What a method finds at each call, on these devices; where one changes, it is restored from what it had there.

    ``moved``: the method itself is moved to the device, as the agent does; else it stays where it was made.
    """
    found, combiner, before = [], made(name), devices[0]
    for call, device in enumerate(devices):
        if device != before:
            state = {
                key: host(value) if isinstance(value, Tensor) else value for key, value in combiner.state_dict().items()
            }
            combiner = made(name)
            combiner.load_state_dict(state)
            if moved:
                combiner.to(device)
        before = device
        losses, jacobian = (value.to(device) for value in problem(call))
        direction = combiner.combine(losses, jacobian)
        combiner.after_step(losses * 0.9)
        assert direction.device == device
        found.append(host(direction).clone())
    return found


# What draws masks elsewhere draws them from a generator of that device, which the disguise has none of.
NAMES = [name for name in combiners.names() if name not in ("graddrop", "sign_agnostic_drop")]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_the_same_wherever_its_gradients_are(name: str) -> None:
    expected = directions(name, [CPU] * CALLS, moved=False)
    with AnotherDevice():
        for devices in (
            [AWAY] * CALLS,
            [AWAY] * 3 + [CPU] * 3,
            [CPU] * 2 + [AWAY] * 2 + [CPU] * 2,
            [CPU] * 3 + [AWAY] * 3,
        ):
            # Gramian methods and those of losses work on the host; the agent moves those of the Jacobian alone.
            for moved in {False, combiners.get(name).needs == "jacobian"}:
                for found, right in zip(directions(name, devices, moved=moved), expected, strict=True):
                    assert torch.equal(found, right)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", combiners.names())
def test_a_model_that_is_cast_leaves_its_method_as_it_is(name: str, kind: torch.dtype) -> None:
    alone, held = made(name), made(name)
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), held])
    for call in range(CALLS):
        if call % 2:
            model.to(kind)
        losses, jacobian = problem(call)
        assert torch.equal(alone.combine(losses, jacobian.clone()), held.combine(losses, jacobian))
        for combiner in (alone, held):
            combiner.after_step(losses * 0.9)
    assert model[0].weight.dtype == kind


@pytest.mark.parametrize("wrapping", [{}, {"every": 2, "smooth": 0.5}], ids=["plain", "wrapped"])
@pytest.mark.parametrize("name", combiners.names())
def test_a_default_device_changes_nothing(name: str, wrapping: dict[str, Any]) -> None:
    """On ``meta``, what a method made without a device would hold no numbers."""
    options = wrapping if combiners.get(name).needs != "jacobian" else {}

    def found() -> list[Tensor]:
        combiner = made(name, **options)
        with torch.device("cpu"):
            given = [problem(call) for call in range(CALLS)]
        directions = []
        for losses, jacobian in given:
            directions.append(combiner.combine(losses, jacobian))
            combiner.after_step(losses * 0.9)
        return directions

    expected = found()
    with torch.device("meta"):
        assert all(map(torch.equal, found(), expected))
