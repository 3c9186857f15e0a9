"""Supervised updates as graphs: those of the update as it is, and nothing that a GPU's graph could not hold."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from mtrl import combiners
from mtrl.gradients.graphs import WARM_UP
from mtrl.supervised import benchmarks, methods
from mtrl.supervised.problem import placed
from mtrl.supervised.updates import OptimizerOptions, Setup
from tests.agents.test_graphs import graphs  # noqa: F401
from tests.disguised import AWAY, AnotherDevice, another_device, on_host  # noqa: F401

OPTIONS: dict[str, dict[str, Any]] = {"fixed": {"weights": [1.0, 0.5]}, "modo": {"halves": False}}
BATCH = 8


def digits(tasks=("CL", "RR"), **options):
    return benchmarks.make(name="multi_digits", tasks=list(tasks), pairs_per_digit=1, **options)


def made(benchmark, name="pcgrad", wrt="shared", method="combined", **options):
    combiner = combiners.make(name, len(benchmark.tasks), seed=3, **OPTIONS.get(name, {}), **options)
    setup = Setup(benchmark, combiner, OptimizerOptions("adam", 1e-2), wrt)
    return methods.make(setup=setup, name=method)


def batch_of(benchmark, number, device="cpu"):
    return placed(benchmark.train.batch(range(number * BATCH, (number + 1) * BATCH)), torch.device(device))


def updates(name, wrt, method="combined", *, as_graphs=False):
    torch.manual_seed(1)
    benchmark = digits(dropout=0.2)
    update, moves = made(benchmark, name, wrt, method), itertools.count()
    if as_graphs:
        update.graphs, update.pieces = True, update.graphed_pieces()
    logged = []
    for number in range(WARM_UP + 4):
        told = update.step(batch_of(benchmark, number), list, lambda: next(moves))
        logged.append({key: value.clone() for key, value in told.items()})
        if as_graphs:
            held = [getattr(piece, "graph", None) is not None for piece in update.pieces[:2]]
            assert held == [number >= WARM_UP] * 2
    return logged, on_host(update.model.state_dict()), on_host(update.state_dict())


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(
    ("name", "wrt"),
    [
        (name, wrt)
        for name, wrt in itertools.product(combiners.names(), ["shared", "last", "representation"])
        if wrt != "last" or combiners.get(name).needs != "jacobian"
    ],
)
def test_the_captured_update_is_the_update(name, wrt):
    torch.testing.assert_close(updates(name, wrt, as_graphs=True), updates(name, wrt), rtol=0, atol=0)


@pytest.mark.usefixtures("graphs")
def test_masks_that_change_are_seen_by_graphs():
    torch.testing.assert_close(
        *(updates("pcgrad", "shared", "maximum_roaming", as_graphs=one) for one in (True, False)), rtol=0, atol=0
    )


@pytest.mark.parametrize("wrt", ["shared", "representation"])
@pytest.mark.parametrize("name", combiners.names())
def test_what_a_graph_holds_leaves_the_host_alone(name, wrt, another_device: AnotherDevice):  # noqa: F811
    benchmark = digits()
    benchmark.model.to(AWAY)
    update = made(benchmark, name, wrt)
    batches = [batch_of(benchmark, number, AWAY) for number in range(2)]
    update.step(batches[0], list, lambda: None)  # promises are checked once
    with another_device.alone():
        told = update.pieces.look(*batches[1])
    found = torch.ones(2) if update.combiner.needs != "jacobian" else told.seen[0]
    found = found.to(AWAY)
    with another_device.alone():
        update.pieces.combine(found)
        update.pieces.losses_after()


@pytest.mark.parametrize(("name", "copies"), [("unitary", 1), ("pcgrad", 2), ("famo", 2)])
def test_an_update_waits_for_what_the_combiner_sees_and_for_a_norm(name, copies, another_device):  # noqa: F811
    benchmark = digits()
    benchmark.model.to(AWAY)
    update = made(benchmark, name)
    update.step(batch_of(benchmark, 0, AWAY), list, lambda: None)
    batch = batch_of(benchmark, 1, AWAY)
    another_device.waits.clear()
    update.step(batch, list, lambda: None)
    assert sorted(another_device.waits) == ["aten._local_scalar_dense.default"] + ["aten._to_copy.default"] * copies


@pytest.mark.parametrize("change", [None, "missing", "masked", "not capturable", "rotograd"])
def test_what_graphs_could_not_hold_is_not_captured(change):
    benchmark = digits()
    if change == "missing":
        benchmark.train.targets["RR"][3, 0] = torch.nan
    if change == "masked":
        benchmark.train.masks["CL"] = torch.arange(len(benchmark.train)) > 0
    if change == "not capturable":
        benchmark = dataclasses.replace(benchmark, capturable=False)
    update = made(benchmark, "mgda", method="rotograd" if change == "rotograd" else "combined")
    assert update.capturable == (change is None)
    assert not update.graphs  # on a CPU
    assert update.pieces == update.plain_pieces()


def test_a_combiner_that_does_not_look_every_time_is_not_captured():
    update = made(digits(), "mgda", every=3)
    with pytest.warns(UserWarning, match="'mgda' does not look at the same in every update"):
        assert update.graphed_pieces() == update.plain_pieces()
