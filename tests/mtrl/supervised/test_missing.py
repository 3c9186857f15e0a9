"""Missing targets, against what the samples that have one give by themselves."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl import combiners
from mtrl.errors import InputError
from mtrl.gradients.shared_input import ByParameters
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import read_metrics
from mtrl.supervised import Benchmark, Metric, MultiTaskModel, Split, Task, classification, methods, regression
from mtrl.supervised.loading import Loader
from mtrl.supervised.loop import Schedule, Trainer, evaluate
from mtrl.supervised.tasks import MaskedTargets, task_losses
from mtrl.supervised.updates import OptimizerOptions, Setup, Wrt

CPU = torch.device("cpu")
N = 24
KINDS = ["label", "one", "many", "scalar", "own", "masked", "masked_label"]
"""An ignored label; NaN in targets of one entry, of some of five, without a dimension, of a task's own; two masks."""


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean()


def own_metric(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().squeeze(1)


TASKS = {
    "label": classification(),
    "one": regression(),
    "many": regression(),
    "scalar": regression(),
    "own": Task(own_loss, (Metric("absolute_error", False, own_metric),)),
    "masked": regression(),
    "masked_label": classification(ignore_index=-1),
}


def model_for(tasks: list[str], dtype: torch.dtype = torch.float64) -> MultiTaskModel:
    sizes = {"label": 4, "one": 1, "many": 5, "own": 1, "masked": 1, "masked_label": 3}
    heads: dict[str, nn.Module] = {
        task: nn.Linear(6, sizes[task]) if task in sizes else nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
        for task in tasks
    }
    return MultiTaskModel(nn.Sequential(nn.Linear(3, 6), nn.Tanh()), heads).to(dtype)


def data(there: Mapping[str, Tensor], seed: int, dtype: torch.dtype = torch.float64) -> Split:
    """Samples of which only some have a target; what stands in place of a masked one is nonsense."""
    generator = torch.Generator().manual_seed(seed)
    count = len(there["one"])

    def drawn(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=dtype)

    inputs = drawn(3)
    values = {
        "label": torch.randint(4, (count,), generator=generator),
        "one": drawn(1),
        "many": drawn(5),
        "scalar": drawn(),
        "own": drawn(1),
        "masked": drawn(1),
        "masked_label": torch.randint(3, (count,), generator=generator),
    }
    values["label"][~there["label"]] = -100
    for task in ("one", "scalar", "own"):
        values[task][~there[task]] = float("nan")
    values["many"][~there["many"], :] = float("nan")
    values["many"][::3, 1] = float("nan")  # some entries of others too
    values["masked"][~there["masked"]] = float("inf")
    values["masked_label"][~there["masked_label"]] = 77
    return Split(inputs, values, masks={task: there[task] for task in ("masked", "masked_label")})


def by_hand(task: str, outputs: Tensor, values: Tensor, there: Tensor) -> Tensor:
    """The loss of the samples that are there alone, sample by sample."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for output, value, known in zip(outputs, values, there.tolist(), strict=True):
        if not known:
            continue
        if "label" in task:
            total, count = total - output.log_softmax(0)[value], count + 1
            continue
        for o, v in zip(output.flatten(), value.flatten(), strict=True):
            if not bool(v.isnan()):
                total, count = total + ((o - v).abs() if task == "own" else (o - v) ** 2), count + 1
    return total / max(count, 1)


def patterns() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        found += [{task: torch.rand(N, generator=generator) < share for task in KINDS} for _ in range(3)]
    return found


@pytest.mark.parametrize("pattern", range(15))
def test_losses_and_jacobian_are_those_of_the_samples_that_are_there(pattern: int) -> None:
    there = patterns()[pattern]
    torch.manual_seed(pattern)
    split, model = data(there, pattern), model_for(KINDS)
    inputs, targets = split.batch(torch.arange(N))
    losses = task_losses(TASKS, model(inputs), targets)
    parameters = list(model.parameters())
    jacobian = ByParameters(losses, parameters, (), False, memory_limit=1 << 30).jacobian()
    outputs = model(inputs)
    for row, (loss, task) in enumerate(zip(losses, KINDS, strict=True)):
        expected = by_hand(task, outputs[task], split.targets[task], there[task])
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
        if not there[task].any():
            assert not jacobian[row].any()
            assert float(loss.detach()) == 0
            continue
        gradient = torch.autograd.grad(expected, parameters, retain_graph=True, materialize_grads=True)
        torch.testing.assert_close(jacobian[row], torch.cat([g.flatten() for g in gradient]), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("pattern", range(3, 15))
@pytest.mark.parametrize("size", [N, 1001])
def test_metrics_count_what_is_there(pattern: int, size: int) -> None:
    there = {task: mask.repeat(-(-size // N))[:size] for task, mask in patterns()[pattern].items()}
    split = data(there, pattern)
    model = model_for(KINDS)
    found = evaluated(Benchmark(TASKS, model, split, split, split), "test")
    outputs = model(split.inputs)
    for task in KINDS:
        known, values, made = there[task], split.targets[task], outputs[task].detach()
        if not known.any():
            assert found[task] != found[task]
            continue
        loss = float(by_hand(task, made, values, known))
        assert found[f"loss/{task}"] == pytest.approx(loss, rel=1e-5)
        accuracy = (made[known].argmax(-1) == values[known]).double().mean() if "label" in task else None
        assert found[task] == pytest.approx(loss if accuracy is None else float(accuracy), rel=1e-5)


def evaluated(benchmark: Benchmark, split: str) -> dict[str, float]:
    return evaluate(benchmark, Loader(benchmark, CPU).whole(split, benchmark.evaluation_batch))


def update_of(benchmark: Benchmark, method: str, combiner: str, wrt: Wrt) -> object:
    options: dict[str, Any] = {"fixed": {"weights": [1.0] * len(benchmark.tasks)}, "modo": {"halves": False}}
    made = combiners.make(combiner, len(benchmark.tasks), seed=3, **options.get(combiner, {}))
    return methods.make(method, Setup(benchmark, made, OptimizerOptions("sgd", learning_rate=0.05), wrt))


WAYS: list[tuple[str, str, Wrt]] = [
    *[("combined", name, wrt) for name in combiners.names() for wrt in ("shared", "representation")],
    *[("combined", name, "last") for name in combiners.names() if combiners.get(name).needs != "jacobian"],
    *[("rotograd", name, "representation") for name in ("unitary", "mgda", "nash_mtl", "gradnorm")],
    *[("maximum_roaming", name, "shared") for name in ("pcgrad", "famo", "moco")],
    *[(name, "unitary", "shared") for name in ("individual_steps", "individual_optimizers", "auto_lambda")],
]


@pytest.mark.parametrize(("method", "combiner", "wrt"), WAYS)
def test_every_method_trains_through_batches_without_a_target(method: str, combiner: str, wrt: Wrt) -> None:
    """Under every combiner: first nothing at all, then one task alone, then some of each; 0 moves nothing."""
    torch.manual_seed(0)
    tasks = {task: TASKS[task] for task in KINDS}
    complete = data({task: torch.ones(N, dtype=torch.bool) for task in KINDS}, 1)
    benchmark = Benchmark(tasks, model_for(KINDS), complete, complete, complete)
    update = update_of(benchmark, method, combiner, wrt)
    nothing = {task: torch.zeros(N, dtype=torch.bool) for task in KINDS}
    before = {name: tensor.clone() for name, tensor in update.model.named_parameters()}  # type: ignore[attr-defined]
    for number, there in enumerate([nothing, nothing | {"one": ~nothing["one"]}, *patterns()[3:9], nothing]):
        batch = data(there, number).batch(torch.arange(N))
        logged = update.step(batch, lambda batch=batch: batch, lambda: None)  # type: ignore[attr-defined]
        assert all(bool(value.isfinite().all()) for value in logged.values())
        for name, parameter in update.model.named_parameters():  # type: ignore[attr-defined]
            assert parameter.isfinite().all(), name
            if number == 0:
                torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-9)
        assert all(float(logged[f"loss/{task}"]) == 0 for task in KINDS if not there[task].any())


@pytest.mark.parametrize("name", ["unitary", "pcgrad", "db_mtl"])
def test_a_complete_task_is_not_touched_by_what_another_misses(name: str) -> None:
    """With its own head alone: its gradient is that of its own loss, bit for bit, whatever the others lack."""
    found = []
    for share in (1.0, 0.5):
        torch.manual_seed(0)
        there = {task: torch.rand(N, generator=torch.Generator().manual_seed(4)) < share for task in KINDS}
        there["label"] = torch.ones(N, dtype=torch.bool)
        split = data(there, 1)
        model = model_for(KINDS)
        inputs, targets = split.batch(torch.arange(N))
        task_losses(TASKS, model(inputs), targets)[0].backward()
        found.append(next(model.heads["label"].parameters()).grad)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def problem(change: Callable[[str, dict[str, Tensor]], None]) -> Benchmark:
    """Two tasks on three splits; ``change`` is shown every split's targets."""
    splits = []
    for number, name in enumerate(("training", "validation", "test")):
        whole = data({task: torch.ones(N, dtype=torch.bool) for task in KINDS}, number, torch.float32)
        targets = {"label": whole.targets["label"], "one": whole.targets["one"]}
        change(name, targets)
        splits.append(Split(whole.inputs, targets))
    torch.manual_seed(0)
    model = model_for(["label", "one"], torch.float32)
    return Benchmark({task: TASKS[task] for task in ("label", "one")}, model, *splits)


@pytest.mark.parametrize("split", ["training", "validation", "test"])
@pytest.mark.parametrize(("task", "value"), [("label", -100), ("one", float("nan"))])
def test_a_split_without_any_target_of_a_task_is_refused(split: str, task: str, value: float) -> None:
    def change(name: str, targets: dict[str, Tensor]) -> None:
        if name == split:
            targets[task].fill_(value)

    with pytest.raises(InputError, match=f"{split} split, task {task}: all 24 targets are missing"):
        problem(change).check(CPU)


def test_a_mask_is_refused_where_it_fits_nothing_or_leaves_nothing() -> None:
    inputs, targets = torch.zeros(4, 3), {"one": torch.zeros(4, 1)}
    for mask in (torch.ones(3, dtype=torch.bool), torch.ones(4), torch.ones(4, 1, dtype=torch.bool)):
        with pytest.raises(InputError, match=r"expected a mask \[4\] of type bool for one, got"):
            Split(inputs, targets, {"one": mask})
    with pytest.raises(InputError, match="unknown task of a mask 'two': valid: one"):
        Split(inputs, targets, {"two": torch.ones(4, dtype=torch.bool)})
    none = Split(inputs, targets, {"one": torch.zeros(4, dtype=torch.bool)})
    with pytest.raises(InputError, match="training split, task one: all 4 targets are missing"):
        Benchmark({"one": TASKS["one"]}, model_for(["one"], torch.float32), none, none, none).check(CPU)


def test_masked_nonsense_is_not_checked_and_the_rest_is_by_its_number() -> None:
    mask = torch.tensor([False, True, True, False])
    labels = torch.tensor([99, 0, 3, -7])
    split = Split(torch.zeros(4, 3), {"label": labels}, {"label": mask})
    benchmark = Benchmark({"label": classification()}, model_for(["label"], torch.float32), split, split, split)
    benchmark.check(CPU)
    labels[2] = 4
    with pytest.raises(InputError, match="training split, task label: record 2 has label 4"):
        benchmark.check(CPU)


def test_a_label_that_is_not_declared_as_missing_is_refused_as_ever() -> None:
    def change(name: str, targets: dict[str, Tensor]) -> None:
        targets["label"][5] = -1

    with pytest.raises(InputError, match="record 5 has label -1, expected 0 to 3, or -100 where there is none"):
        problem(change).check(CPU)
    ignoring = {"label": classification(ignore_index=-1), "one": regression()}
    dataclasses.replace(problem(change), tasks=ignoring).check(CPU)


def test_presence_of_a_wrong_shape_is_refused() -> None:
    task = dataclasses.replace(TASKS["one"], present=lambda targets: targets > 0)
    with pytest.raises(InputError, match=r"task one: present gives \[24, 1\], expected one entry for each of 24"):
        dataclasses.replace(problem(lambda *_: None), tasks={"label": TASKS["label"], "one": task}).check(CPU)


def test_what_is_missing_is_told() -> None:
    def change(name: str, targets: dict[str, Tensor]) -> None:
        targets["one"][: 3 if name == "training" else 0] = float("nan")

    assert problem(change).missing() == ["training split, task one: 3 of 24 targets are missing"]


def test_a_runs_training_loss_is_over_the_batches_that_had_a_target(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Sorted into batches with and without: an average over all batches would count those without as 0."""

    def change(name: str, targets: dict[str, Tensor]) -> None:
        if name == "training":
            targets["one"][1:] = float("nan")

    benchmark = problem(change)
    update = update_of(benchmark, "combined", "unitary", "shared")
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    schedule = Schedule(epochs=2, batch_size=6, learning_rate=0.0)
    update.optimizer.param_groups[0]["lr"] = 0.0  # type: ignore[attr-defined]
    trainer = Trainer(benchmark, update, run, schedule, seed=1, device=CPU, show_progress=False)  # type: ignore[arg-type]
    trainer.train()
    run.close()
    assert isinstance(benchmark.train, Split)
    outputs = benchmark.model(benchmark.train.inputs)["one"][0].detach()
    expected = float((outputs - benchmark.train.targets["one"][0]).square().mean())
    for entry in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert entry["train/loss/one"] == pytest.approx(expected, rel=1e-5)


def test_a_masked_batch_of_ones_own_split() -> None:
    """A split of another class gives masked targets as this module's does."""
    targets = MaskedTargets(torch.tensor([[1.0], [9.0]]), torch.tensor([True, False]))
    losses = task_losses({"one": TASKS["one"]}, {"one": torch.zeros(2, 1)}, {"one": targets})
    assert losses[0] == 1
