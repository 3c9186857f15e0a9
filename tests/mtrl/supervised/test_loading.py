"""Data sets that are read by worker processes: nothing depends on how many there are, or on where a run was stopped."""

import dataclasses
import os
import signal
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import Dataset

from mtrl import combiners
from mtrl.errors import InputError, Interrupted, RunError
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import read_metrics
from mtrl.supervised import Benchmark, MaskedTargets, MultiTaskModel, Split, WholeSplit, classification, regression
from mtrl.supervised.cache import Cached
from mtrl.supervised.loading import Loader, LoadingOptions, Portion
from mtrl.supervised.loop import Schedule, Trainer, evaluate
from mtrl.supervised.methods.auto_lambda import AutoLambdaUpdate
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.methods.individual import IndividualSteps
from mtrl.supervised.methods.maximum_roaming import MaximumRoamingUpdate
from mtrl.supervised.methods.rotograd import RotoGradUpdate
from mtrl.supervised.scan import problems
from mtrl.supervised.updates import OptimizerOptions, Setup
from tests.mtrl.supervised.test_training import Interrupting

CPU = torch.device("cpu")


class Drawings(Dataset[Any]):
    """Images [1, 6, 6] of noise, a label, a number, and a target that only some have."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.rand(count, 1, 6, 6, generator=generator)
        self.read = torch.zeros(count, dtype=torch.int64).share_memory_()
        self.wrong = set()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.wrong:
            raise InputError(f"drawing {index} is torn")
        self.read[index] += 1
        image = self.images[index]
        half = MaskedTargets(image[:, 0, :2].mean(), torch.tensor(index % 2 == 0))
        return image, {"label": int(image.mean() > 0.5), "ink": image.mean().view(1), "some": half}


def shifted(image, targets):
    """Adds to a sample what is drawn for it: to its image and to the ink that is asked for."""
    amount = torch.rand(())
    return image + amount, targets | {"ink": targets["ink"] + amount}


def problem(augment=None, splits=None, seed=0):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.2))
    heads = {"label": nn.Linear(8, 2), "ink": nn.Linear(8, 1), "some": nn.Sequential(nn.Linear(8, 1), nn.Flatten(0))}
    tasks = {"label": classification(), "ink": regression(), "some": regression()}
    splits = splits or [Drawings(count, number) for number, count in enumerate((40, 14, 12))]
    return Benchmark(tasks, MultiTaskModel(encoder, heads), *splits, augment=augment, evaluation_batch=5)


def combined(benchmark, name="pcgrad"):
    return CombinedUpdate(setup(benchmark, name))


def setup(benchmark, name="unitary"):
    return Setup(benchmark, combiners.make(name, len(benchmark.tasks), seed=3), OptimizerOptions(learning_rate=0.01))


def workers():
    """The processes that read data."""
    return [child.pid or 0 for child in torch.multiprocessing.active_children()]


def trainer(path, benchmark, update, options):
    schedule = Schedule(epochs=3, batch_size=8, learning_rate=0.01, insight_every=2)
    run = RunDirectory(path, {"seed": 1, "epochs": 3})
    benchmark = dataclasses.replace(benchmark, model=update.model)
    return Trainer(benchmark, update, run, schedule, seed=1, device=CPU, loading=options, show_progress=False)


def outcome(one):
    entries = read_metrics(one.session.run.path / "metrics.jsonl")
    logged = [{k: v for k, v in e.items() if k not in ("time", "speed/epoch_seconds")} for e in entries]
    return logged, {k: v for k, v in one.summary().items() if "seconds" not in k and k != "counters"}


def whole(path, make=combined, options=None, augment=shifted):
    benchmark = problem(augment)
    one = trainer(path, benchmark, make(benchmark), options or LoadingOptions(workers=0))
    one.train()
    found = outcome(one)
    one.session.run.close()
    return found


@pytest.mark.parametrize("augment", [None, shifted])
@pytest.mark.parametrize("make", [combined, lambda b: AutoLambdaUpdate(setup(b))], ids=["pcgrad", "auto_lambda"])
def test_neither_workers_nor_cache_nor_a_stop_in_an_epoch_change_a_number(tmp_path, make, augment):
    expected = whole(tmp_path / "whole", make, augment=augment)
    benchmark = problem(augment)
    options = LoadingOptions(workers=2, cache=0.1)
    interrupted = Interrupting(make(benchmark), 7, signal.SIGINT, workers)  # a terminal sends it to all
    one = trainer(tmp_path / "run", benchmark, interrupted, options)
    with pytest.raises(Interrupted, match="SIGINT"):
        one.train()
    one.session.run.close()
    resumed = problem(augment, seed=99)
    one = trainer(tmp_path / "run", resumed, make(resumed), LoadingOptions(workers=1))
    one.train()
    assert outcome(one) == expected
    one.session.run.close()


def test_a_split_in_memory_gives_the_numbers_of_the_same_data_set_read_one_by_one():
    """Masks too; and the augmentation is drawn for the sample, wherever it is kept."""
    found = []
    drawings = Drawings(40, 0)
    images, targets = zip(*[drawings[i] for i in range(40)], strict=True)
    masks = {"some": torch.stack([t["some"].mask for t in targets])}
    values = {
        "label": torch.tensor([t["label"] for t in targets]),
        "ink": torch.stack([t["ink"] for t in targets]),
        "some": torch.stack([t["some"].values for t in targets]),
    }
    for split in (drawings, Split(torch.stack(images), values, masks)):
        for augment in (None, shifted):
            loader = Loader(problem(augment, [split] * 3), CPU, seed=4)
            found.append(next(loader.batches([[Portion("training", [5, 0, 39, 5], 2)]]))[0])
    for plain, other in ((0, 2), (1, 3)):
        torch.testing.assert_close(found[plain], found[other], rtol=0, atol=0)
    assert not torch.equal(found[0][0], found[1][0])


def test_augmentation_changes_targets_with_inputs_and_follows_from_seed_pass_and_sample():
    def batch(seed, drawn, indices, split="training"):
        loader = Loader(problem(shifted), CPU, seed=seed)
        return next(loader.batches([[Portion(split, indices, drawn)]]))[0]

    before = torch.get_rng_state()
    inputs, targets = batch(1, 0, [3, 4])
    assert torch.equal(before, torch.get_rng_state())
    plain, _ = batch(1, None, [3, 4])
    amounts = (inputs - plain).mean((1, 2, 3))
    torch.testing.assert_close(targets["ink"].squeeze(1) - plain.mean((1, 2, 3)), amounts)
    assert amounts[0] != amounts[1]
    assert torch.equal(batch(1, 0, [7, 4, 9])[0][1], inputs[1])
    assert not torch.equal(batch(1, 1, [3, 4])[0], inputs)
    assert not torch.equal(batch(2, 0, [3, 4])[0], inputs)


def test_validation_and_test_are_never_augmented():
    benchmark = problem(shifted)
    assert torch.equal(next(Loader(benchmark, CPU).whole("validation", 14))[0], benchmark.validation.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_reads_its_share_once_and_is_as_large_as_was_said(workers):
    benchmark: Any = problem()
    each = 1 + 36 * 4 + 8 + 4 + 4 + 1
    gib = (54 * each * 0.5) / (1 << 30)
    loader = Loader(benchmark, CPU, options=LoadingOptions(workers=workers, cache=gib))
    for _ in range(3):
        for split, size in (("training", 40), ("validation", 14), ("test", 12)):
            batches: Any = [*loader.whole(split, 4)]
            assert torch.equal(torch.cat([inputs for inputs, _ in batches]), benchmark.splits[split].images)
            labels = torch.cat([targets["label"] for _, targets in batches])
            assert torch.equal(labels, (benchmark.splits[split].images.mean((1, 2, 3)) > 0.5).long())
            assert torch.cat([t["some"].mask for _, t in batches]).tolist() == [i % 2 == 0 for i in range(size)]
    reads = benchmark.train.read.tolist()
    assert reads[:20] == [2, *[1] * 19]  # the first sample also says how large one is
    assert reads[20:] == [3] * 20
    assert benchmark.validation.read.tolist() == [2, *[1] * 6, *[3] * 7]
    assert benchmark.test.read.tolist() == [3] * 12


def test_a_cache_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr("mtrl.supervised.cache.shutil.disk_usage", lambda path: Disk())
    with pytest.raises(InputError, match=r"data\.cache: 0\.00 GiB do not fit into the 0\.00 GiB .*data\.workers=0"):
        Loader(problem(), CPU, options=LoadingOptions(workers=1, cache=0.1))


class Disk:
    free = 10


def test_samples_of_several_shapes_cannot_be_cached():
    class Growing(Drawings):
        def __getitem__(self, index):
            return torch.zeros(index + 1), {}

    cache = Cached(Growing(3, 0), 1 << 20)
    cache.allocate(shared=False)
    cache[0]
    with pytest.raises(InputError, match="sample 2 is of another shape"):
        cache[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_data_set_finds_wrong_is_one_line(tmp_path, workers):
    benchmark = problem()
    benchmark.train.wrong = {17}
    one = trainer(tmp_path, benchmark, combined(benchmark), LoadingOptions(workers=workers))
    with pytest.raises(InputError, match=r"^drawing 17 is torn$"):
        one.train()
    one.session.run.close()


def test_a_worker_that_dies_is_one_line():
    class Deadly(Drawings):
        def __getitem__(self, index):
            if index == 3 and torch.utils.data.get_worker_info():
                os._exit(9)
            return super().__getitem__(index)

    loader = Loader(problem(splits=[Deadly(8, 0)] * 3), CPU, options=LoadingOptions(workers=1))
    with pytest.raises(RunError, match="reading the data set failed: DataLoader worker") as caught:
        [*loader.whole("training", 4)]
    assert "\n" not in str(caught.value)


def test_a_scan_lists_everything_that_is_wrong():
    class Odd(Drawings):
        def __getitem__(self, index):
            image, targets = super().__getitem__(index)
            return image, targets | {"label": 2 if index == 70 else targets["label"]} if index != 5 else {}

    train, test = Odd(90, 0), Odd(8, 1)
    train.wrong, test.wrong = {3, 88}, {7}
    benchmark = problem(splits=[train, Drawings(6, 0), test])
    for workers in (0, 2):
        found = [*problems(benchmark, LoadingOptions(workers=workers))]
        assert [line.split(":")[0] for line in found] == [
            *[f"training split, sample {index}" for index in (3, 5, 70, 88)],
            *[f"test split, sample {index}" for index in (5, 7)],
        ]
        assert found[0].endswith("drawing 3 is torn")
        assert "it has no target of task label" in found[1]
        assert "task label: record 0 has label 2, expected 0 to 1" in found[2]
    assert not [*problems(problem())]


def test_the_first_sample_is_looked_at_before_training():
    class Wordy(Drawings):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], {"label": 9, "ink": torch.zeros(1), "some": torch.zeros(())}

    with pytest.raises(InputError, match="test split, task label: record 0 has label 9"):
        problem(splits=[Drawings(8, 0), Drawings(8, 0), Wordy(8, 0)]).check(CPU)

    class Single(Drawings):
        def __getitem__(self, index):
            return super().__getitem__(index)[0]

    with pytest.raises(InputError, match="Single: a sample is not a pair of an input and targets by task"):
        problem(splits=[Single(8, 0)] * 3).check(CPU)


def test_a_second_batch_is_announced(tmp_path):
    class Sly(CombinedUpdate):
        def step(self, batch, draw, moved):
            return super().step(draw(), draw, moved)

    benchmark = problem()
    one = trainer(tmp_path, benchmark, Sly(setup(benchmark)), LoadingOptions(workers=0))
    with pytest.raises(RunError, match="Sly draws a second batch: it has to say so, second_batch = True"):
        one.train()
    one.session.run.close()


def test_torchmetrics_metrics_are_over_the_whole_split():
    """F1 over a split is no mean of the F1s of its batches; samples without a target count for nothing."""
    f1 = WholeSplit("f1", torchmetrics.classification.BinaryF1Score, lambda outputs: outputs.argmax(1))
    benchmark = problem()
    label = dataclasses.replace(classification(), metrics=(*classification().metrics, f1))
    benchmark = dataclasses.replace(benchmark, tasks={**benchmark.tasks, "label": label})
    found = evaluate(benchmark, Loader(benchmark, CPU).whole("validation", 4))
    benchmark.model.eval()
    images = benchmark.validation.images
    predicted, labels = benchmark.model(images)["label"].argmax(1), (images.mean((1, 2, 3)) > 0.5).long()
    true = float((predicted & labels).sum())
    assert found["label/f1"] == pytest.approx(2 * true / float(predicted.sum() + labels.sum()))
    assert f1.higher_is_better is True
    even = torch.arange(14) % 2 == 0
    ink = images[even, 0, 0, :2].mean(1)
    error = (benchmark.model(images)["some"][even].detach() - ink).square().mean()
    assert found["some"] == pytest.approx(float(error), rel=1e-5)
    with pytest.raises(InputError, match="metric sum: its meter does not say"):
        _ = WholeSplit("sum", torchmetrics.SumMetric).higher_is_better


# --------------------------------------------------------------------------------------------------------- arithmetic

UPDATES = {
    "combined": combined,
    "representation": lambda b: CombinedUpdate(dataclasses.replace(setup(b, "mgda"), wrt="representation")),
    "individual_steps": lambda b: IndividualSteps(setup(b)),
    "auto_lambda": lambda b: AutoLambdaUpdate(setup(b)),
    "maximum_roaming": lambda b: MaximumRoamingUpdate(setup(b), share=0.5, roaming_updates=4),
    "rotograd": lambda b: RotoGradUpdate(setup(b)),
}


@pytest.mark.parametrize("name", UPDATES)
def test_bf16_products_and_images_by_pixels_train_every_method_with_float32_weights(tmp_path, name):
    types, layouts = set(), set()

    def seen(layer, inputs, output):
        types.add(output.dtype)
        layouts.add(output.is_contiguous(memory_format=torch.channels_last))

    benchmark = problem()
    benchmark.model.encoder.insert(1, nn.Conv2d(4, 4, 3, padding=1))  # of one channel, a kernel has one layout
    update = UPDATES[name](benchmark)
    update.model.compute("bf16", channels_last=True)
    update.model.encoder[0].register_forward_hook(seen)
    one = trainer(tmp_path, benchmark, update, LoadingOptions(workers=0))
    one.train()
    one.session.run.close()
    assert types == {torch.bfloat16}
    assert True in layouts  # auto_lambda looks ahead with weights in another layout too
    assert {tensor.dtype for tensor in update.model.parameters()} == {torch.float32}
    losses = [entry["train/loss/ink"] for entry in read_metrics(tmp_path / "metrics.jsonl") if "epoch" in entry]
    assert losses[-1] < losses[0]


def test_bf16_gradients_are_those_of_float32_but_for_rounding_and_losses_are_float32():
    gradients = []
    for precision in ("fp32", "bf16"):
        benchmark = problem()
        benchmark.model.eval().compute(precision, channels_last=False)
        inputs, targets = next(Loader(benchmark, CPU).whole("training", 40))
        assert isinstance(targets["label"], torch.Tensor)
        outputs = benchmark.model(inputs)
        assert {output.dtype for output in outputs.values()} == {torch.float32}
        nn.functional.cross_entropy(outputs["label"], targets["label"]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in benchmark.model.parameters() if p.grad is not None]))
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 1e-4 < error < 0.03
