"""Registration by decorator: what it gives a class, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl import combiners
from mtrl.combiners import Combiner
from mtrl.errors import InputError
from mtrl.ranges import Positive

FOLDER = Path(combiners.__file__).parent


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    combiners.names()  # all are loaded
    monkeypatch.setattr(combiners.register, "_entries", dict(combiners.register._entries))


class Scaled(Combiner):
    needs = "losses"

    def _setup(self, *, factor: Positive, squared: bool = False) -> None:
        self.factor, self.squared = factor, squared

    def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
        return torch.full_like(losses, self.factor)


def test_every_method_is_in_the_file_of_its_name() -> None:
    assert combiners.names() == sorted(combiners.names())
    for name in combiners.names():
        assert combiners.get(name).__module__ == f"mtrl.combiners.{name}"
        assert (FOLDER / f"{name}.py").exists()


def test_which_methods_weigh_the_heads() -> None:
    """By paper, else by the authors' code; the sources stand beside the values."""
    weighing = {
        "dwa",
        "famo",
        "fixed",
        "geometric_mean",
        "go4align",
        "gradnorm",
        "imtl_l",
        "nash_mtl",
        "random_grad_drop",
        "rlw_dirichlet",
        "rlw_normal",
        "scale_invariant",
        "stch",
        "uncertainty",
        "unitary",
        "uw_so",
    }
    plain = {
        "aligned_mtl",
        "cagrad",
        "cdtt",
        "conflict_free",
        "db_mtl",
        "dualproj",
        "edm",
        "excess_mtl",
        "fairgrad",
        "graddrop",
        "gradvac",
        "imtl",
        "imtl_g",
        "mgda",
        "moco",
        "modo",
        "pcgrad",
        "sdmgrad",
        "sign_agnostic_drop",
        "upgrad",
    }
    assert weighing | plain == set(combiners.names())
    assert {name for name in combiners.names() if combiners.get(name).weights_specific} == weighing


def test_a_registered_class_is_made_by_name() -> None:
    assert Scaled.name == "Scaled"
    assert combiners.register("scaled")(Scaled) is Scaled
    assert "scaled" in combiners.names()
    combiner = combiners.make("scaled", 2, factor=3.0)
    assert (combiner.name, Scaled.name) == ("scaled", "scaled")
    assert combiner.weights(torch.ones(2)).tolist() == [3.0, 3.0]
    counted = combiners.make("scaled", np.int64(2), seed=np.int64(5), factor=np.float32(3.0))  # type: ignore[arg-type]
    assert counted.weights(torch.ones(2)).tolist() == [3.0, 3.0]


def test_a_subclass_is_known_by_its_own_name() -> None:
    class Own(combiners.get("cagrad")):  # type: ignore[misc]
        pass

    assert Own(2, c=0.5).name == "Own"
    assert combiners.make("cagrad", 2).name == "cagrad"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "scaled needs its option factor"),
        ({"factor": 0.0}, r"factor of scaled: expected a number in \(0, inf\), got 0.0"),
        ({"factor": 1.0, "squared": 1}, "squared of scaled: expected true or false, got 1"),
        ({"faktor": 1.0}, "unknown option of scaled 'faktor': did you mean 'factor'\\?"),
        ({"factor": 1.0, "rescale": "no"}, "rescale: expected true or false, got 'no'"),
        ({"num_tasks": 0, "factor": 1.0}, "num_tasks: expected an integer of at least 1, got 0"),
        ({"seed": 1.5, "factor": 1.0}, "seed: expected an integer of at least 0 and below 2,147,483,648, got 1.5"),
    ],
)
def test_the_constructor_checks_whoever_calls_it(options: dict[str, Any], message: str) -> None:
    combiners.register("scaled")(Scaled)
    arguments: dict[str, Any] = {"num_tasks": 2} | options
    for make in (Scaled, lambda **given: combiners.make("scaled", **given)):
        with pytest.raises(InputError, match=f"^{message}$"):
            make(**arguments)


@pytest.mark.parametrize(
    ("name", "needs", "message"),
    [
        ("cagrad", "losses", r"combiner 'cagrad' is registered twice: mtrl\.combiners\.cagrad has it"),
        ("my method", "losses", "combiner 'my method': expected a name of letters, digits and underscores"),
        ("mine", "gradients", "unknown needs of combiner mine 'gradients': .*"),
        ("mine", None, "unknown needs of combiner mine 'None': .*"),
    ],
)
def test_registration_refuses(name: str, needs: str | None, message: str) -> None:
    class Mine(Combiner):
        pass

    Mine.needs = needs  # type: ignore[assignment]
    with pytest.raises(InputError, match=f"^{message}$"):
        combiners.register(name)(Mine)


@pytest.mark.parametrize(
    ("found", "got"),
    [(torch.ones(3, 1), r"\(3, 1\)"), (torch.tensor(1.0), r"\(\)"), ([1.0] * 3, "list"), (None, "NoneType")],
)
def test_what_a_method_returns_has_to_fit(found: Any, got: str) -> None:
    class Weighs(Combiner):
        needs = "gramian"

        def _weights(self, losses: Tensor, gramian: Tensor | None) -> Tensor:
            return found  # type: ignore[no-any-return]

    class Combines(Combiner):
        needs = "jacobian"

        def _combine(self, losses: Tensor, jacobian: Tensor) -> Tensor:
            return found  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=rf"^Weighs\._weights returned {got}, expected a tensor of shape \(3,\)$"):
        Weighs(3).weights(torch.ones(3), torch.eye(3))
    with pytest.raises(InputError, match=rf"^Combines\._combine returned {got}, expected a tensor of shape \(5,\)$"):
        Combines(3).combine(torch.ones(3), torch.eye(3, 5))
