import dataclasses
import os
import signal

import pytest
import torch
from torch import nn

from mtrl import combiners
from mtrl.errors import InputError, Interrupted, RunError
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import read_metrics
from mtrl.supervised import Benchmark, Metric, MultiTaskModel, Split, Task, classification, regression
from mtrl.supervised.loading import Loader
from mtrl.supervised.loop import Schedule, Trainer, criteria, evaluate, metrics_of, start_from
from mtrl.supervised.methods.auto_lambda import AutoLambdaUpdate
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.methods.individual import IndividualOptimizers, IndividualSteps
from mtrl.supervised.methods.maximum_roaming import MaximumRoamingUpdate, RoamingModel
from mtrl.supervised.methods.rotograd import Homogenized, RotoGradUpdate
from mtrl.supervised.updates import OptimizerOptions, Setup
from mtrl.task_groups import random_groups

CPU = torch.device("cpu")
SGD = OptimizerOptions("sgd", learning_rate=0.05)


class Forbidden(Split):
    """A split that nobody may look at yet."""

    locked = True

    def batch(self, indices):
        assert not self.locked, "the test split was read before the end"
        return super().batch(indices)


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


def setup(benchmark, name="unitary", wrt="shared", optimizer=OptimizerOptions(learning_rate=0.01), seed=0):  # noqa: B008
    return Setup(benchmark, combiners.make(name, len(benchmark.tasks), seed=3), optimizer, wrt, seed)


def combined(benchmark, *arguments, **options):
    return CombinedUpdate(setup(benchmark, *arguments, **options))


def rotograd(benchmark, name="unitary", wrt="representation", **options):
    return RotoGradUpdate(setup(benchmark, name, wrt), **options)


def maximum_roaming(benchmark, name="unitary", roaming_updates=16, share=0.5):
    made = setup(benchmark, name, optimizer=OptimizerOptions())
    return MaximumRoamingUpdate(made, share=share, roaming_updates=roaming_updates)


def trainer(path, benchmark, update, seed=1, **schedule):
    benchmark = dataclasses.replace(benchmark, model=update.model)
    defaults = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "insight_every": 2} | schedule
    run = RunDirectory(path, {"seed": seed, "epochs": defaults["epochs"]})
    try:
        return Trainer(benchmark, update, run, Schedule(**defaults), seed=seed, device=CPU, show_progress=False)
    except InputError:
        run.close()
        raise


def evaluated(benchmark, split):
    return evaluate(benchmark, Loader(benchmark, CPU).whole(split, benchmark.evaluation_batch))


def timeless(path):
    entries = [entry for file in ("metrics", "matrices") for entry in read_metrics(path / f"{file}.jsonl")]
    return [{k: v for k, v in e.items() if k not in ("time", "speed/epoch_seconds")} for e in entries]


def trained(path, benchmark, update, **schedule):
    one = trainer(path, benchmark, update, **schedule)
    try:
        one.train()
        return one, {k: v for k, v in one.summary().items() if "seconds" not in k}
    finally:
        one.session.run.close()


class Interrupting:
    """An update that asks its process, and others, to stop at one of its steps."""

    def __init__(self, update, at, how=signal.SIGTERM, others=list):
        self.update, self.left, self.how, self.others = update, at, how, others

    def step(self, *arguments):
        self.left -= 1
        if not self.left:
            for process in (os.getpid(), *self.others()):
                os.kill(process, self.how)
        return self.update.step(*arguments)

    def __getattr__(self, name):
        return getattr(self.update, name)


METHODS = {
    "famo": lambda b: combined(b, "famo"),
    "pcgrad": lambda b: combined(b, "pcgrad"),
    "mgda_ub": lambda b: combined(b, "mgda", "representation"),
    "gradnorm-last": lambda b: combined(b, "gradnorm", "last"),
    "rotograd": rotograd,
    "rotograd-famo": lambda b: rotograd(b, "famo", homogenize=False),
    "maximum_roaming": maximum_roaming,
    "io": lambda b: IndividualOptimizers(setup(b, optimizer=OptimizerOptions()), groups=2),
    "auto_lambda": lambda b: AutoLambdaUpdate(setup(b, optimizer=OptimizerOptions())),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("at", [6, 9])
def test_an_interrupted_run_goes_on_exactly(tmp_path, name, at):
    make = METHODS[name]
    whole = problem()
    _, expected = trained(tmp_path / "whole", whole, make(whole))

    broken = problem()
    first = trainer(tmp_path / "broken", broken, Interrupting(make(broken), at))
    with pytest.raises(Interrupted, match="SIGTERM"):
        first.train()
    first.session.run.close()
    resumed = problem(seed=99)
    _, found = trained(tmp_path / "broken", resumed, make(resumed))

    assert found.pop("counters")["resumes"] == 1
    assert not any(expected.pop("counters").values())
    assert found == expected
    assert timeless(tmp_path / "broken") == timeless(tmp_path / "whole")
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_was_dropped_or_repaired_is_counted(tmp_path):
    broken = problem()
    first = trainer(tmp_path, broken, Interrupting(combined(broken, "pcgrad"), 12))
    with pytest.raises(Interrupted):
        first.train()
    first.session.run.close()
    newest = max((tmp_path / "checkpoints").glob("*.pt"), key=lambda file: file.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[1:]))
    resumed = problem()
    with pytest.warns(UserWarning, match="checksum"):
        _, found = trained(tmp_path, resumed, combined(resumed, "pcgrad"))
    assert found["counters"] == {
        "resumes": 1,
        "checkpoints_passed_over": 1,
        "metrics_dropped": 1,
        "metrics_missing": 1,
    }


def test_runs_are_deterministic_and_seeds_differ(tmp_path):
    def run(name, seed):
        benchmark = problem()
        return trained(tmp_path / name, benchmark, combined(benchmark), seed=seed)[1]

    assert run("a", 1) == run("b", 1)
    assert run("c", 2) != run("a2", 1)


def test_training_improves_and_logs_every_epoch(tmp_path):
    benchmark = problem(dropout=0.0)
    before = evaluated(benchmark, "validation")
    _, summary = trained(tmp_path, benchmark, combined(benchmark), epochs=10)
    assert summary["validation"]["accuracy_mean"] > (before["a"] + before["b"]) / 2 + 0.1
    assert summary["validation"]["c"] < 0.8 * before["c"]
    epochs = [entry for entry in read_metrics(tmp_path / "metrics.jsonl") if "epoch" in entry]
    assert [entry["step"] for entry in epochs] == [6 * epoch for epoch in range(1, 11)]
    expected = {"val/a", "val/accuracy_mean", "val/squared_error_mean", "val/loss/c", "train/loss/b", "train/weight/a"}
    assert expected <= epochs[-1].keys()
    assert epochs[-1]["train/loss/c"] < epochs[0]["train/loss/c"]
    measured = [entry for entry in epochs if "conflict/shared/summed_gradient_norm" in entry]
    assert [entry["epoch"] for entry in measured] == [2, 4, 6, 8, 10]
    assert -1 <= measured[0]["conflict/shared/cosine_to_average/a"] <= 1
    matrices = read_metrics(tmp_path / "matrices.jsonl")
    assert [entry["step"] for entry in matrices] == [entry["step"] for entry in measured]
    assert len(matrices[0]["conflict/shared/cosines"]) == 3


def test_insight_does_not_change_training(tmp_path):
    with_insight, without = problem(), problem()
    found = trained(tmp_path / "a", with_insight, combined(with_insight), insight_every=1)[1]
    assert found == trained(tmp_path / "b", without, combined(without), insight_every=0)[1]


def test_the_test_split_is_read_only_by_the_summary(tmp_path):
    benchmark = problem(split=Forbidden)
    one = trainer(tmp_path, benchmark, combined(benchmark))
    one.train()
    assert "test" not in one.summary(test=False)
    with pytest.raises(AssertionError, match="before the end"):
        one.summary()
    Forbidden.locked = False
    try:
        assert set(one.summary()["test"]) == {"a", "b", "c", "accuracy_mean", "squared_error_mean"}
    finally:
        Forbidden.locked = True
        one.session.run.close()


def test_the_selected_model_is_the_one_that_is_tested(tmp_path):
    benchmark = problem()
    one, summary = trained(tmp_path, benchmark, combined(benchmark), epochs=8)
    epochs = [entry for entry in read_metrics(tmp_path / "metrics.jsonl") if "epoch" in entry]
    for key, best in (("a", max), ("b", max), ("c", min)):
        values = [entry[f"val/{key}"] for entry in epochs]
        assert summary["validation"][key] == best(values)
        assert abs(summary["selection"]["scores"][key]) == best(values)
        assert summary["selection"]["epochs"][key] == 1 + values.index(best(values))
        benchmark.model.load_state_dict(one.chosen[key]["model"])
        assert summary["test"][key] == evaluated(benchmark, "test")[key]


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


def test_learning_rate_decays_after_several_epochs_and_stays_at_its_least(tmp_path):
    benchmark = problem()
    update = combined(benchmark)
    rates: list[float] = []
    update.set_learning_rate = rates.append
    every = {"learning_rate_decay": 0.5, "learning_rate_decay_every": 2, "least_learning_rate": 0.003}
    trained(tmp_path, benchmark, update, epochs=7, learning_rate=0.01, **every)
    assert rates == [0.01, 0.01, 0.005, 0.005, 0.003, 0.003, 0.003]


def test_learning_rate_with_patience_is_torchs_on_a_plateau(tmp_path, monkeypatch):
    """Also of a run that goes on in the middle of its waiting."""
    scores = [5.0, 4.0, 6.0, 5.0, 4.5, 4.2, 3.0, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5]
    metrics = {"a": 0.5, "b": 0.5, "c": 0.5}
    monkeypatch.setattr("mtrl.supervised.loop.criteria", lambda *_: ("mean", {"mean": lambda found: -found["score"]}))

    def rates(number, epochs):
        benchmark = problem()
        update = combined(benchmark)
        found: list[float] = []
        update.set_learning_rate = found.append
        patient = {"learning_rate_decay": 0.5, "learning_rate_patience": 2}
        one = trainer(tmp_path / number, benchmark, update, epochs=epochs, learning_rate=0.01, **patient)
        monkeypatch.setattr(one, "_evaluate", lambda split: metrics | {"score": scores[one.epoch - 1]})
        one.train()
        one.session.run.close()
        return found

    whole = rates("whole", len(scores))
    torchs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.01)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torchs, "min", 0.5, patience=2, threshold=0.0)
    expected = []
    for score in scores:
        expected.append(torchs.param_groups[0]["lr"])
        plateau.step(score)
    assert whole == expected
    assert len(set(whole)) == 3
    assert rates("parts", 4) + rates("parts", len(scores)) == whole


def test_divergence_is_an_error_with_its_task(tmp_path):
    benchmark = problem()
    one = trainer(tmp_path, benchmark, combined(benchmark))
    benchmark.train.targets["c"][:] = float("inf")
    with pytest.raises(RunError, match="non-finite loss of task c in epoch 1, update 1: "):
        one.train()
    one.session.run.close()


LOSSES_OF_0 = [
    "cdtt",
    "db_mtl",
    "dwa",
    "famo",
    "geometric_mean",
    "gradnorm",
    "imtl",
    "imtl_l",
    "scale_invariant",
    "stch",
]


def shifted(amount):
    """A regression whose loss is its own or, by so much less, 0 and below."""
    plain = regression()
    return dataclasses.replace(plain, loss=lambda output, target: plain.loss(output, target) * 0 - amount)


@pytest.mark.parametrize("name", LOSSES_OF_0)
def test_a_task_learnt_perfectly_does_not_end_the_run(tmp_path, name):
    benchmark = problem()
    benchmark.tasks["c"] = shifted(0.0)
    _, found = trained(tmp_path, benchmark, combined(benchmark, name))
    assert found["epochs"] == 3


@pytest.mark.parametrize("name", LOSSES_OF_0)
def test_a_negative_loss_is_an_error_with_its_task(tmp_path, name):
    benchmark = problem()
    benchmark.tasks["c"] = shifted(0.25)
    one = trainer(tmp_path, benchmark, combined(benchmark, name))
    message = f"^{name} needs positive losses, but task 'c' has -0.25 in epoch 1, update 1$"
    with pytest.raises(InputError, match=message):
        one.train()
    one.session.run.close()


def test_arrivals_are_counted_and_said_once(tmp_path, caplog):
    benchmark = problem(dropout=0.0)
    for name, sign in (("a", 1), ("b", -1)):
        benchmark.tasks[name] = dataclasses.replace(
            benchmark.tasks[name], loss=lambda output, target, sign=sign: sign * output.sum()
        )
    with torch.no_grad():
        benchmark.model.heads["b"].weight.copy_(benchmark.model.heads["a"].weight)
    optimizer = OptimizerOptions("sgd", learning_rate=0.0)
    update = CombinedUpdate(setup(benchmark, "fairgrad", optimizer=optimizer))
    _, found = trained(tmp_path, benchmark, update, learning_rate=0.0)
    assert found["counters"]["stationary"] == found["updates"] == 18
    assert len([record for record in caplog.records if "fairgrad makes no update" in record.getMessage()]) == 1


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
    for reference in ({"a": 1.0}, {"a": 1.0, "c": 0.0}):
        with pytest.raises(InputError, match=r"reference\.c"):
            criteria(mixed, "gain", reference)
    with pytest.raises(InputError, match="unknown selection"):
        criteria(mixed, "best", None)


def test_further_metrics_have_keys_of_their_own():
    first, second = (Metric(name, True, lambda o, t: o[:, 0]) for name in ("miou", "accuracy"))
    task = Task(nn.functional.mse_loss, (first, second))
    assert metrics_of({"s": task}) == {"s": ("s", first), "s/accuracy": ("s", second)}


# ---------------------------------------------------------------------------------------------- the methods' identities


def stepped(update, benchmark, steps=5):
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        indices = torch.randint(96, (16,), generator=generator)
        update.step(benchmark.train.batch(indices), lambda: None, lambda: None)
    return torch.cat([p.detach().flatten() for p in benchmark.model.parameters()])


@pytest.mark.parametrize("optimizer", [SGD, OptimizerOptions(weight_decay=0.01)])
def test_individual_steps_of_one_group_are_unitary(optimizer):
    one, other = problem(dropout=0.0), problem(dropout=0.0)
    found = stepped(IndividualSteps(setup(one, optimizer=optimizer), groups=1), one)
    assert torch.allclose(found, stepped(combined(other, optimizer=optimizer), other), atol=1e-6)


@pytest.mark.parametrize("same", [True, False])
def test_individual_optimizers_are_individual_steps_without_memory(same):
    optimizer = SGD if same else OptimizerOptions("sgd", learning_rate=0.05, momentum=0.9)
    one, other = problem(dropout=0.0), problem(dropout=0.0)
    found = stepped(IndividualOptimizers(setup(one, optimizer=optimizer), groups=2), one)
    expected = stepped(IndividualSteps(setup(other, optimizer=optimizer), groups=2), other)
    assert torch.allclose(found, expected, atol=1e-6) == same


def test_individual_steps_follow_equation_4():
    one, other = problem(dropout=0.0), problem(dropout=0.0)
    found = stepped(IndividualSteps(setup(one, optimizer=SGD)), one, steps=1)
    indices = torch.randint(96, (16,), generator=torch.Generator().manual_seed(7))
    inputs, targets = other.train.batch(indices)
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
    update = AutoLambdaUpdate(setup(benchmark, optimizer=OptimizerOptions("sgd", learning_rate=rate)))

    def batch(start):
        inputs, targets = benchmark.train.batch(torch.arange(start, start + 16))
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


@pytest.mark.parametrize("wrt", ["representation", "shared"])
@pytest.mark.parametrize("name", ["unitary", "mgda", "graddrop", "famo"])
def test_rotograd_with_identity_rotations_is_its_inner_combiner(name, wrt):
    one, other = problem(dropout=0.0), problem(dropout=0.0)
    update = rotograd(one, name, wrt, learning_rate_scale=0.0, homogenize=False)
    stepped(update, one)
    expected = stepped(combined(other, name, wrt), other)
    found = torch.cat([p.flatten() for p in [*update.shared, *update.specific]])
    assert torch.allclose(found.detach(), expected, atol=1e-6)


def test_rotations_stay_rotations_and_bring_gradients_together():
    benchmark = problem(dropout=0.0)
    update = rotograd(benchmark)
    update.optimizer.param_groups[0]["lr"] = 0.0
    batch = benchmark.train.batch(torch.arange(64))
    before, *_, after = [update.step(batch, lambda: None, lambda: None) for _ in range(40)]
    for task in benchmark.tasks:
        assert -1 < after[f"rotation_loss/{task}"] < before[f"rotation_loss/{task}"] - 0.02
    for rotation in update.rotations:
        assert torch.allclose(rotation.weight @ rotation.weight.T, torch.eye(16), atol=1e-4)
        assert float(torch.linalg.det(rotation.weight.detach())) == pytest.approx(1.0, abs=1e-4)
        assert not torch.allclose(rotation.weight, torch.eye(16), atol=1e-2)


def test_the_rotation_loss_by_hand():
    # One sample, z = (z_1, z_2), losses z_1 and z_2: unit gradients along the axes, their mean (1/2, 1/2).
    class Coordinate(nn.Module):
        def __init__(self, index):
            super().__init__()
            self.index, self.unused = index, nn.Parameter(torch.zeros(1))

        def forward(self, z):
            return z[:, self.index]

    heads = {"a": Coordinate(0), "b": Coordinate(1)}
    tasks = {name: Task(lambda o, t: o.sum(), regression().metrics) for name in heads}
    model = MultiTaskModel(nn.Linear(2, 2), heads)
    inputs = torch.ones(1, 2)
    split = Split(torch.ones(2, 2), {})
    update = rotograd(Benchmark(tasks, model, split, split, split), learning_rate_scale=1.0)
    logged = update.step((inputs, {"a": inputs, "b": inputs}), lambda: None, lambda: None)
    assert logged["rotation_loss/a"] == pytest.approx(-0.5)
    # The gradient (1, 0) at r of task a turns towards the mean at z = R^T r: the rotation is by a positive angle.
    assert update.rotations[0].weight[0, 1] > 0
    assert update.rotations[1].weight[1, 0] > 0


def test_homogenized_gradients_by_hand():
    # Norms 3 and 4 at first: both half converged, so the length is 3.5. Then 6 and 2: ratios 2 and 1/2, length 5.2.
    combiner = Homogenized(combiners.make("unitary", 2), burn_in=20)
    losses = torch.ones(2)
    assert combiner.weights(losses, torch.tensor([[9.0, 0.0], [0.0, 16.0]])).tolist() == pytest.approx(
        [3.5 / 3, 3.5 / 4]
    )
    assert combiner.weights(losses, torch.tensor([[36.0, 0.0], [0.0, 4.0]])).tolist() == pytest.approx(
        [5.2 / 6, 5.2 / 2]
    )
    with pytest.raises(InputError, match="not graddrop"):
        Homogenized(combiners.make("graddrop", 2), burn_in=20)


def test_rotograd_needs_a_vector_per_sample():
    model = MultiTaskModel(nn.Conv2d(1, 2, 1), {"a": nn.Flatten()})
    split = Split(torch.zeros(2, 1, 4, 4), {})
    with pytest.raises(InputError, match=r"shape \(2, 2, 4, 4\)"):
        rotograd(Benchmark({"a": regression()}, model, split, split, split))


def test_maximum_roaming_visits_every_unit_and_keeps_the_share():
    benchmark = problem()
    update = maximum_roaming(benchmark, roaming_updates=16, share=0.5)
    model = update.model
    (name,) = model.masks
    seen = model.get_buffer(name).clone()
    assert seen.sum(1).tolist() == [8, 8, 8]
    assert (seen.sum(0) > 0).all()
    for count in range(1, 17):
        before = model.get_buffer(name).clone()
        stepped(update, benchmark, steps=1)
        mask = model.get_buffer(name)
        assert (mask != before).sum(1).tolist() == ([2, 2, 2] if count % 2 == 0 else [0, 0, 0])
        assert mask.sum(1).tolist() == [8, 8, 8]
        seen += mask
    assert (seen > 0).all()
    before = model.get_buffer(name).clone()
    stepped(update, benchmark, steps=4)
    assert torch.equal(model.get_buffer(name), before)


def test_maximum_roaming_of_all_units_is_its_combiner():
    one, other = problem(dropout=0.0), problem(dropout=0.0)
    found = stepped(maximum_roaming(one, "mgda", share=1.0), one)
    expected = stepped(combined(other, "mgda", optimizer=OptimizerOptions()), other)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_task_neither_sees_nor_trains_the_units_of_others():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6))
    model = RoamingModel(MultiTaskModel(encoder, {"a": nn.Linear(6, 1), "b": nn.Linear(6, 1)}), share=0.5, seed=0)
    first, last = (model.get_buffer(name) for name in model.masks)
    assert first.sum(0).tolist() == [1] * 4
    for task, z in enumerate(model.representations(torch.randn(5, 1, 4, 4))):
        assert torch.equal(z != 0, (last[task] == 1).expand_as(z))
        model.zero_grad()
        z.square().sum().backward()
        assert torch.equal(encoder[0].weight.grad.flatten(1).abs().sum(1) > 0, first[task] == 1)
        assert torch.equal(encoder[4].weight.grad.abs().sum(1) > 0, last[task] == 1)


def test_maximum_roaming_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="use shared or last"):
        MaximumRoamingUpdate(setup(problem(), "mgda", "representation"))
    with pytest.raises(InputError, match="share"):
        RoamingModel(problem().model, share=0.0, seed=0)
    with pytest.raises(InputError, match="encoder has none"):
        RoamingModel(MultiTaskModel(nn.Flatten(), {}), share=0.5, seed=0)


def test_gradients_by_the_representation_are_those_by_parameters_where_its_jacobian_is_orthogonal():
    # One sample and z = W x with |x| = 1: the gradient by W is dL/dz x^T, so both Gramians are the same.
    def one_sample(wrt):
        torch.manual_seed(0)
        encoder = nn.Linear(4, 6, bias=False)
        model = MultiTaskModel(encoder, {"a": nn.Linear(6, 1), "b": nn.Linear(6, 1)})
        tasks = {"a": regression(), "b": regression()}
        inputs = torch.tensor([[0.5, -0.5, 0.5, 0.5]])
        targets = {"a": torch.tensor([[3.0]]), "b": torch.tensor([[-1.0]])}
        split = Split(inputs, targets)
        update = combined(Benchmark(tasks, model, split, split, split), "mgda", wrt, SGD)
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


@pytest.mark.parametrize(
    ("split", "task", "targets", "message"),
    [
        (
            "train",
            "a",
            lambda old: old.index_fill(0, torch.tensor(7), 2),
            "training split, task a: record 7 has label 2",
        ),
        ("test", "b", lambda old: old - 1, "test split, task b: record .* has label -1, expected 0 to 1"),
        ("validation", "a", lambda old: old.float(), "expected labels .N. of type int64"),
        ("test", "c", lambda old: old.squeeze(1), r"task c: the head gives \[1\] per sample, but a target is \[\]"),
    ],
)
def test_targets_that_no_head_fits_are_refused(tmp_path, split, task, targets, message):
    benchmark = problem()
    old = getattr(benchmark, split)
    changed = dataclasses.replace(old, targets=old.targets | {task: targets(old.targets[task])})
    benchmark = dataclasses.replace(benchmark, **{split: changed})
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, benchmark, combined(benchmark))


def test_targets_of_every_task_are_needed(tmp_path):
    benchmark = problem()
    fewer = {task: benchmark.test.targets[task] for task in ("a", "b")}
    benchmark = dataclasses.replace(benchmark, test=dataclasses.replace(benchmark.test, targets=fewer))
    with pytest.raises(InputError, match="the test split has no targets of task c; there are a, b"):
        trainer(tmp_path, benchmark, combined(benchmark))


def test_a_whole_checkpoint_of_something_else_is_refused_in_one_line(tmp_path):
    benchmark = problem()
    trained(tmp_path / "run", benchmark, combined(benchmark))
    other = problem()
    one = trainer(tmp_path / "run", other, maximum_roaming(other))
    with pytest.raises(RunError, match="is not one of this run") as caught:
        one.train()
    one.session.run.close()
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- life after a run


def finished(path, make, epochs, seed=0, **schedule):
    """A run that ends by itself, in a process of its own so to say; what it came to."""
    benchmark = problem(seed=seed)
    update = make(benchmark)
    one = trainer(path, benchmark, update, epochs=epochs, **schedule)
    try:
        one.train()
        summary = {k: v for k, v in one.summary().items() if "seconds" not in k and k != "counters"}
        one.session.run.finish(summary)
        return update, summary
    finally:
        one.session.run.close()


@pytest.mark.parametrize("name", METHODS)
def test_a_finished_run_of_more_epochs_is_as_if_it_had_always_had_them(tmp_path, name):
    make = METHODS[name]
    whole, expected = finished(tmp_path / "whole", make, 3, learning_rate_decay=0.9)
    finished(tmp_path / "run", make, 1, learning_rate_decay=0.9)
    resumed, found = finished(tmp_path / "run", make, 3, seed=99, learning_rate_decay=0.9)
    assert found == expected
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_more_epochs_change_nothing_where_patience_has_ended_the_run(tmp_path):
    def make(benchmark):
        return combined(benchmark, optimizer=OptimizerOptions("sgd", learning_rate=0.0))

    stopped = {"learning_rate": 0.0, "patience": 3, "checkpoint_every": 10}
    _, expected = finished(tmp_path / "run", make, 20, **stopped)
    assert expected["epochs"] == 4
    assert finished(tmp_path / "run", make, 30, **stopped)[1] == expected


def test_a_state_of_a_gpu_is_gone_on_from_here(tmp_path):
    """With what a CUDA run saves: the state of that device's generator, sixteen bytes, beside the CPU's."""
    expected = problem()
    trained(tmp_path / "whole", expected, combined(expected, "moco"))
    broken = problem()
    first = trainer(tmp_path / "run", broken, Interrupting(combined(broken, "moco"), 8))
    with pytest.raises(Interrupted):
        first.train()
    store = first.session.run.checkpoints
    step, state = store.load()
    store.save(step, state | {"random_device": torch.arange(16, dtype=torch.uint8), "device": "cuda"})
    first.session.run.close()
    resumed = problem(seed=99)
    trained(tmp_path / "run", resumed, combined(resumed, "moco"))
    for one, other in zip(expected.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)  # dropout was drawn here on both sides of it


@pytest.mark.parametrize("name", ["pcgrad", "maximum_roaming", "auto_lambda"])
def test_a_model_that_starts_from_another_takes_over_encoder_and_heads(name):
    source, benchmark = problem(seed=1), problem(seed=2)
    stepped(combined(source), source)
    update = METHODS[name](benchmark)
    added = {key: value.clone() for key, value in update.model.state_dict().items() if "mask" in key}
    start_from(update.model, source.model.state_dict())
    for one, other in zip(source.model.parameters(), update.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for key, value in added.items():
        assert torch.equal(update.model.state_dict()[key], value)
    stepped(combined(benchmark), benchmark)


def test_a_model_of_another_shape_is_refused_by_name_and_nothing_is_taken():
    source, benchmark = problem(seed=1), problem(seed=2)
    before = {key: value.clone() for key, value in benchmark.model.state_dict().items()}
    source.model.heads["c"] = nn.Linear(16, 2)
    with pytest.raises(InputError, match=r"init_from: model 'heads.c.weight' has shape \[1, 16\] here, .*\[2, 16\]"):
        start_from(benchmark.model, source.model.state_dict())
    del source.model.heads["c"]
    with pytest.raises(
        InputError, match=r"init_from: model 'heads.c.weight' has shape \[1, 16\] here, .*it is missing"
    ):
        start_from(benchmark.model, source.model.state_dict())
    del benchmark.model.heads["b"], benchmark.model.heads["c"]
    with pytest.raises(InputError, match=r"that run's model has 'heads.b.weight', which there is not here"):
        start_from(benchmark.model, source.model.state_dict())
    for key, value in benchmark.model.state_dict().items():
        assert torch.equal(value, before[key])
