"""Supervised training on a device that is not the host, by every method: the numbers of the CPU."""

from typing import Any

import pytest
import torch

from mtrl import combiners
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.problem import placed
from mtrl.supervised.updates import OptimizerOptions, Setup
from tests.disguised import AWAY, another_device, on_host, same, through_a_file  # noqa: F401
from tests.mtrl.supervised.test_training import problem

# As of the device whose name the disguise has, where nothing would be copied.
pytestmark = pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
CPU = torch.device("cpu")
DRAWN_THERE = ("graddrop", "sign_agnostic_drop")


def made(name, device, wrt):
    benchmark = problem(dropout=0.0)
    benchmark.model.to(device)
    given: dict[str, dict[str, Any]] = {"fixed": {"weights": [1.0, 2.0, 0.5]}, "modo": {"halves": False}}
    combiner = combiners.make(name, len(benchmark.tasks), seed=3, **given.get(name, {}))
    update = CombinedUpdate(Setup(benchmark, combiner, OptimizerOptions("sgd", momentum=0.9, learning_rate=0.05), wrt))

    def step(number):
        batch = placed(benchmark.train.batch(torch.arange(16) + 16 * number), device)
        return update.step(batch, lambda: batch, lambda: None)

    return benchmark.model, update, step


@pytest.mark.parametrize("wrt", ["shared", "representation"])
@pytest.mark.parametrize("name", combiners.names())
def test_training_there_is_training_here(name, wrt, another_device):  # noqa: F811
    here, there = made(name, CPU, wrt), made(name, AWAY, wrt)
    told = [[step(number) for number in range(2)] for _, _, step in (here, there)]
    if name not in DRAWN_THERE:
        assert same(*told)
        assert same(*(part.state_dict() for part in (here[0], there[0])))
    saved = through_a_file([part.state_dict() for part in there[:2]])
    there[2](3)
    for device in (AWAY, CPU) if name not in DRAWN_THERE else (AWAY,):
        resumed = made(name, device, wrt)
        for part, state in zip(resumed[:2], saved, strict=True):
            part.load_state_dict(state)
        resumed[2](3)
        assert same(on_host(resumed[0].state_dict()), on_host(there[0].state_dict()))
