import os
import signal

import pytest
import torch
from torch import nn

from mtrl import combiners
from mtrl.errors import InputError, Interrupted, RunError
from mtrl.experiment.metrics import read_metrics
from mtrl.experiment.run_directory import RunDirectory
from mtrl.supervised import Benchmark, Metric, MultiTaskModel, Split, Task, classification, regression
from mtrl.supervised.auto_lambda import AutoLambdaUpdate
from mtrl.supervised.training import Schedule, Trainer, criteria, evaluate, metric_keys
from mtrl.supervised.updates import CombinedUpdate, IndividualUpdates, OptimizerOptions, random_groups

CPU = torch.device("cpu")
SGD = OptimizerOptions("sgd", learning_rate=0.05)


class Forbidden(Split):
    """A split that nobody may look at yet."""

    locked = True

    def batch(self, indices, device):
        assert not self.locked, "the test split was read before the end"
        return super().batch(indices, device)


def problem(seed=0, dropout=0.2, split=Split):
    """Two related classification tasks and one regression on 8 inputs."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(160, 8, generator=generator)
    truth = torch.randn(8, 3, generator=generator)
    scores = inputs @ truth
    targets = {"a": (scores[:, 0] > 0).long(), "b": (scores[:, 1] > 0).long(), "c": scores[:, 2:]}
    parts = [slice(0, 96), slice(96, 128), slice(128, 160)]
    kinds = [Split, Split, split]
    splits = [kind(inputs[p], {n: t[p] for n, t in targets.items()}) for kind, p in zip(kinds, parts, strict=True)]
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout))
    heads = {"a": nn.Linear(16, 2), "b": nn.Linear(16, 2), "c": nn.Linear(16, 1)}
    tasks = {"a": classification(), "b": classification(), "c": regression()}
    return Benchmark(tasks, MultiTaskModel(encoder, heads), *splits)


def combined(benchmark, name="unitary", wrt="shared", optimizer=OptimizerOptions(learning_rate=0.01)):  # noqa: B008
    combiner = combiners.make(name, len(benchmark.tasks), seed=3)
    return CombinedUpdate(benchmark.model, benchmark.tasks, combiner, optimizer, wrt)


def trainer(path, benchmark, update, seed=1, **schedule):
    defaults = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "insight_every": 4} | schedule
    run = RunDirectory(path, {"seed": seed})
    try:
        return Trainer(benchmark, update, run, Schedule(**defaults), seed=seed, device=CPU, show_progress=False)
    except InputError:
        run.close()
        raise


def timeless(path):
    entries = read_metrics(path / "metrics.jsonl")
    return [{k: v for k, v in e.items() if k not in ("time", "speed/epoch_seconds")} for e in entries]


def trained(path, benchmark, update, **schedule):
    one = trainer(path, benchmark, update, **schedule)
    try:
        one.train()
        return one, {k: v for k, v in one.summary().items() if "seconds" not in k}
    finally:
        one.run.close()


class Interrupting:
    """An update that asks the process to stop at one of its steps."""

    def __init__(self, update, at):
        self.update, self.left = update, at

    def step(self, *arguments):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.update.step(*arguments)

    def __getattr__(self, name):
        return getattr(self.update, name)


METHODS = [
    pytest.param(lambda b: combined(b, "famo"), id="famo"),
    pytest.param(lambda b: combined(b, "pcgrad"), id="pcgrad"),
    pytest.param(lambda b: combined(b, "mgda", "representation"), id="mgda_ub"),
    pytest.param(lambda b: combined(b, "gradnorm", "last"), id="gradnorm-last"),
    pytest.param(
        lambda b: IndividualUpdates(
            b.model, b.tasks, random_groups(list(b.tasks), 2, 0), OptimizerOptions(), individual_optimizers=True
        ),
        id="io",
    ),
    pytest.param(lambda b: AutoLambdaUpdate(b.model, b.tasks, OptimizerOptions()), id="auto_lambda"),
]


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("at", [6, 9])
def test_an_interrupted_run_goes_on_exactly(tmp_path, make, at):
    whole = problem()
    _, expected = trained(tmp_path / "whole", whole, make(whole))

    broken = problem()
    first = trainer(tmp_path / "broken", broken, Interrupting(make(broken), at))
    with pytest.raises(Interrupted, match="SIGTERM"):
        first.train()
    first.run.close()
    resumed = problem(seed=99)
    _, found = trained(tmp_path / "broken", resumed, make(resumed))

    assert found == expected
    assert timeless(tmp_path / "broken") == timeless(tmp_path / "whole")
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_runs_are_deterministic_and_seeds_differ(tmp_path):
    def run(name, seed):
        benchmark = problem()
        return trained(tmp_path / name, benchmark, combined(benchmark), seed=seed)[1]

    assert run("a", 1) == run("b", 1)
    assert run("c", 2) != run("a2", 1)


def test_training_improves_and_logs_every_epoch(tmp_path):
    benchmark = problem(dropout=0.0)
    before = evaluate(benchmark.model, benchmark.tasks, benchmark.validation, CPU)
    _, summary = trained(tmp_path, benchmark, combined(benchmark), epochs=10)
    assert summary["validation"]["accuracy_mean"] > (before["a"] + before["b"]) / 2 + 0.1
    assert summary["validation"]["c"] < 0.8 * before["c"]
    epochs = [entry for entry in read_metrics(tmp_path / "metrics.jsonl") if "epoch" in entry]
    assert [entry["step"] for entry in epochs] == [6 * epoch for epoch in range(1, 11)]
    expected = {"val/a", "val/accuracy_mean", "val/squared_error_mean", "val/loss/c", "train/loss/b", "train/weight/a"}
    assert expected <= epochs[-1].keys()
    assert epochs[-1]["train/loss/c"] < epochs[0]["train/loss/c"]
    insights = [e for e in read_metrics(tmp_path / "metrics.jsonl") if "insight/summed_gradient_norm" in e]
    assert [e["step"] for e in insights] == list(range(1, 61, 4))
    assert -1 <= insights[0]["insight/cosine_to_average/a"] <= 1


def test_insight_does_not_change_training(tmp_path):
    with_insight, without = problem(), problem()
    found = trained(tmp_path / "a", with_insight, combined(with_insight), insight_every=1)[1]
    assert found == trained(tmp_path / "b", without, combined(without), insight_every=0)[1]


def test_the_test_split_is_read_only_by_the_summary(tmp_path):
    benchmark = problem(split=Forbidden)
    one = trainer(tmp_path, benchmark, combined(benchmark))
    one.train()
    with pytest.raises(AssertionError, match="before the end"):
        one.summary()
    Forbidden.locked = False
    try:
        assert set(one.summary()["test"]) == {"a", "b", "c", "accuracy_mean", "squared_error_mean"}
    finally:
        Forbidden.locked = True
        one.run.close()


def test_the_selected_model_is_the_one_that_is_tested(tmp_path):
    benchmark = problem()
    one, summary = trained(tmp_path, benchmark, combined(benchmark), epochs=8)
    epochs = [entry for entry in read_metrics(tmp_path / "metrics.jsonl") if "epoch" in entry]
    for key, best in (("a", max), ("b", max), ("c", min)):
        values = [entry[f"val/{key}"] for entry in epochs]
        assert summary["validation"][key] == best(values)
        assert summary["selection"]["epochs"][key] == 1 + values.index(best(values))
        benchmark.model.load_state_dict(one.chosen[key]["model"])
        assert summary["test"][key] == evaluate(benchmark.model, benchmark.tasks, benchmark.test, CPU)[key]


def test_patience_ends_a_run_without_progress(tmp_path):
    benchmark = problem(dropout=0.0)
    update = combined(benchmark, optimizer=OptimizerOptions("sgd", learning_rate=0.0))
    one, summary = trained(tmp_path, benchmark, update, epochs=50, learning_rate=0.0, patience=3)
    assert summary["epochs"] == 4
    assert set(summary["selection"]["epochs"].values()) == {1}
    assert one.distance.measures() == {"total": 0.0, "shortest": 0.0, "ratio": 1.0}


def test_learning_rate_decays_by_the_epoch(tmp_path):
    benchmark = problem()
    update = combined(benchmark)
    trained(tmp_path, benchmark, update, epochs=3, learning_rate=0.01, learning_rate_decay=0.5)
    assert update.optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)


def test_divergence_is_an_error_with_its_task(tmp_path):
    benchmark = problem()
    one = trainer(tmp_path, benchmark, combined(benchmark))
    benchmark.train.targets["c"][:] = float("nan")
    with pytest.raises(RunError, match="non-finite loss of task c in epoch 1, update 1: "):
        one.train()
    one.run.close()


def test_criteria_follow_the_metrics():
    both = {"a": classification(), "b": classification()}
    mixed = {"a": classification(), "c": regression()}
    name, scores = criteria(both, None, None)
    assert name == "mean"
    assert scores["mean"]({"a": 0.5, "b": 0.7}) == pytest.approx(0.6)
    name, scores = criteria(mixed, None, None)
    assert name == "per_metric"
    assert {key: score({"a": 0.5, "c": 0.2}) for key, score in scores.items()} == {"a": 0.5, "c": -0.2}
    gain = criteria(mixed, "gain", {"a": 0.5, "c": 0.1})[1]["gain"]
    assert gain({"a": 0.6, "c": 0.2}) == pytest.approx((0.2 - 1.0) / 2)
    with pytest.raises(InputError, match="cannot be averaged"):
        criteria(mixed, "mean", None)
    with pytest.raises(InputError, match=r"reference\.c"):
        criteria(mixed, "gain", {"a": 1.0})
    with pytest.raises(InputError, match="unknown selection"):
        criteria(mixed, "best", None)


def test_further_metrics_have_keys_of_their_own():
    first, second = (Metric(name, True, lambda o, t: o[:, 0]) for name in ("miou", "accuracy"))
    task = Task(nn.functional.mse_loss, (first, second))
    assert metric_keys({"s": task}) == {"s": ("s", 0), "s/accuracy": ("s", 1)}


# ---------------------------------------------------------------------------------------------- the methods' identities


def stepped(update, benchmark, steps=5):
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        indices = torch.randint(96, (16,), generator=generator)
        update.step(benchmark.train.batch(indices, CPU), lambda: None, lambda: None)
    return torch.cat([p.detach().flatten() for p in benchmark.model.parameters()])


def individual(benchmark, groups, optimizer, individual_optimizers):
    return IndividualUpdates(
        benchmark.model, benchmark.tasks, groups, optimizer, individual_optimizers=individual_optimizers
    )


@pytest.mark.parametrize("optimizer", [SGD, OptimizerOptions(weight_decay=0.01)])
def test_individual_steps_of_one_group_are_unitary(optimizer):
    one, other = problem(dropout=0.0), problem(dropout=0.0)
    groups = [list(one.tasks)]
    found = stepped(individual(one, groups, optimizer, False), one)
    assert torch.allclose(found, stepped(combined(other, optimizer=optimizer), other), atol=1e-6)


@pytest.mark.parametrize("same", [True, False])
def test_individual_optimizers_are_individual_steps_without_memory(same):
    optimizer = SGD if same else OptimizerOptions("sgd", learning_rate=0.05, momentum=0.9)
    one, other = problem(dropout=0.0), problem(dropout=0.0)
    groups = [["a"], ["b", "c"]]
    found = stepped(individual(one, groups, optimizer, True), one)
    expected = stepped(individual(other, groups, optimizer, False), other)
    assert torch.allclose(found, expected, atol=1e-6) == same


def test_individual_steps_follow_equation_4():
    one, other = problem(dropout=0.0), problem(dropout=0.0)
    found = stepped(individual(one, [["a"], ["b"], ["c"]], SGD, False), one, steps=1)
    indices = torch.randint(96, (16,), generator=torch.Generator().manual_seed(7))
    inputs, targets = other.train.batch(indices, CPU)
    for name, task in other.tasks.items():
        other.model.zero_grad()
        task.loss(other.model(inputs)[name], targets[name]).backward()
        with torch.no_grad():
            for parameter in other.model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
    expected = torch.cat([p.detach().flatten() for p in other.model.parameters()])
    assert torch.allclose(found, expected, atol=1e-6)


def test_auto_lambda_looks_ahead_along_the_exact_gradient():
    benchmark = problem(dropout=0.0)
    benchmark.model.double()
    rate = 0.05
    update = AutoLambdaUpdate(benchmark.model, benchmark.tasks, OptimizerOptions("sgd", learning_rate=rate))

    def batch(start):
        inputs, targets = benchmark.train.batch(torch.arange(start, start + 16), CPU)
        return inputs.double(), {name: t.double() if t.is_floating_point() else t for name, t in targets.items()}

    def losses(model, data):
        outputs = model(data[0])
        return [task.loss(outputs[name], data[1][name]) for name, task in benchmark.tasks.items()]

    found = update._look_ahead(batch(0), batch(32))
    parameters = list(benchmark.model.parameters())
    rows = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)]
        )
        for loss in losses(benchmark.model, batch(0))
    ]
    vector = nn.utils.parameters_to_vector(parameters).detach()
    nn.utils.vector_to_parameters(vector - rate * 0.1 * torch.stack(rows).sum(0), parameters)
    ahead = torch.autograd.grad(sum(losses(benchmark.model, batch(32))), parameters)
    expected = -rate * torch.stack(rows) @ torch.cat([g.flatten() for g in ahead])
    assert torch.allclose(found, expected.to(found), rtol=1e-3)


def test_gradients_by_the_representation_are_those_by_parameters_where_its_jacobian_is_orthogonal():
    # One sample and z = W x with |x| = 1: the gradient by W is dL/dz x^T, so both Gramians are the same.
    def one_sample(wrt):
        torch.manual_seed(0)
        encoder = nn.Linear(4, 6, bias=False)
        model = MultiTaskModel(encoder, {"a": nn.Linear(6, 1), "b": nn.Linear(6, 1)})
        tasks = {"a": regression(), "b": regression()}
        inputs = torch.tensor([[0.5, -0.5, 0.5, 0.5]])
        targets = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[-1.0]])}
        update = CombinedUpdate(model, tasks, combiners.make("mgda", 2), SGD, wrt)
        logged = update.step((inputs, targets), lambda: None, lambda: None)
        return encoder.weight.detach(), logged["weight/a"]

    by_parameters, by_representation = one_sample("shared"), one_sample("representation")
    assert 0 < by_parameters[1] < 1
    assert torch.allclose(by_parameters[1], by_representation[1], atol=1e-6)
    assert torch.allclose(by_parameters[0], by_representation[0], atol=1e-6)


def test_wrt_last_measures_the_encoders_last_layer():
    benchmark = problem(dropout=0.0)
    last = benchmark.model.last_shared_layer()
    assert [parameter.shape for parameter in last] == [(16, 8), (16,)]
    with pytest.raises(InputError, match="wrt=last: graddrop"):
        combined(benchmark, "graddrop", "last")
    with pytest.raises(InputError, match="did you mean 'shared'"):
        combined(benchmark, "mgda", "share")


def test_random_groups_are_equal_seeded_and_complete():
    names = [f"t{i}" for i in range(10)]
    groups = random_groups(names, 4, seed=1)
    assert sorted(len(group) for group in groups) == [2, 2, 3, 3]
    assert sorted(name for group in groups for name in group) == names
    assert groups == random_groups(names, 4, seed=1)
    assert groups != random_groups(names, 4, seed=2)
    assert random_groups(names, None, seed=1) == [[name] for name in names]
    with pytest.raises(InputError, match="1 to 10"):
        random_groups(names, 11, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adm"}, "did you mean 'adam'"),
        ({"momentum": 0.9}, r"optimizer\.momentum"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"name": "sgd", "momentum": 1.0}, "momentum"),
    ],
)
def test_bad_optimizers_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        OptimizerOptions(**options)


def test_too_large_a_batch_is_refused(tmp_path):
    benchmark = problem()
    with pytest.raises(InputError, match="batch_size=97, but there are 96"):
        trainer(tmp_path, benchmark, combined(benchmark), batch_size=97)
