"""QM9 from files in qm9pack's layout, and its network against torch_geometric's layers."""

import csv
import importlib.util
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtrl import combiners
from mtrl.errors import InputError
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import read_metrics
from mtrl.supervised.data.qm9 import PROPERTIES, _fixed, _sizes, qm9
from mtrl.supervised.loading import Loader
from mtrl.supervised.loop import Schedule, Trainer, evaluate
from mtrl.supervised.message_passing import MessagePassing
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.updates import OptimizerOptions, Setup

CPU = torch.device("cpu")
METHANE = torch.tensor([0, 13.21, -10.5499, 3.1865, 35.3641, 1.2177, -17.1722, -17.2868, -17.3897, -16.1519, 6.469])
"""What torch_geometric's QM9 has for the first molecule: D, bohr3, eV, eV, bohr2, eV, four times eV, cal/mol/K."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The first 24 molecules of each of the package's own files."""
    package = importlib.util.find_spec("qm9pack")
    assert package is not None
    place = next(iter(package.submodule_search_locations or ()))
    made = tmp_path_factory.mktemp("qm9")
    for number in (1, 2, 3):
        name = f"qm9_part{number}.csv"
        with (Path(place) / "data" / name).open() as file:
            (made / name).write_text("".join(islice(file, 25)))
    return made


def make(folder, *arguments, **options) -> Any:
    return qm9(*arguments, data_dir=str(folder), **options)


def targets(split):
    return torch.cat([*split.targets.values()], 1)


def test_methane_has_torch_geometrics_values_in_its_units(folder):
    """Targets are normalised by the training split: differences, by the metrics' scales, are what they were."""
    made = make(folder)
    scales = torch.tensor([made.tasks[name].metrics[0].per_sample.args[0] for name in PROPERTIES])
    energies = torch.tensor([described.unit == "meV" for described in PROPERTIES.values()])
    scales = torch.where(energies, scales / 1000, scales)
    splits = (made.train, made.validation, made.test)
    found = {}
    for split in splits:
        for atoms, row in zip(split.inputs, targets(split), strict=True):
            found[tuple(atoms[:, 0].int().tolist())] = (atoms, row)
    pad = (0,) * 24
    (atoms, methane), (_, ammonia) = found[(6, 1, 1, 1, 1, *pad)], found[(7, 1, 1, 1, 0, *pad)]
    assert atoms[0, 1:].tolist() == pytest.approx([-0.0126981359, 1.0858041578, 0.0080009958])
    hartree = 27.211386246
    expected = torch.tensor(
        [1.6256, 9.46, -0.257 * hartree, 0.0829 * hartree, 26.1563, 0.034358 * hartree]
        + [(value - n - 3 * h) * hartree for value, n, h in [
            (-56.525887, -54.583861, -0.500273), (-56.523026, -54.582445, -0.498857),
            (-56.522082, -54.581501, -0.497912), (-56.544961, -54.598897, -0.510927)]]
        + [6.316]
    )  # fmt: skip
    torch.testing.assert_close((methane - ammonia) * scales, METHANE - expected, rtol=1e-3, atol=1e-3)


def test_the_literatures_splits(folder):
    assert [_sizes(split, 130_831) for split in ("navon", "dimenet", "cormorant")] == [
        [10_000, 10_000, 110_831],
        [10_831, 10_000, 110_000],
        [13_083, 17_748, 100_000],
    ]
    # torch_geometric's from_qm9_pretrained, and gen_splits_gdb9 as it was corrected since
    order = np.random.RandomState(seed=42).permutation(np.arange(130_831))
    theirs = order[120_000:], order[110_000:120_000], order[:110_000]
    assert all(np.array_equal(o, t) for o, t in zip(_fixed("dimenet", 130_831, 130_831), theirs, strict=True))
    train, valid, test, extra = np.split(np.random.RandomState(0).permutation(130_831), [100_000, 117_748, 130_831])
    ours = _fixed("cormorant", 130_831, 130_831)
    assert all(np.array_equal(o, t) for o, t in zip(ours, (test, valid, train), strict=True))
    assert not len(extra)
    for few, part in zip(_fixed("cormorant", 130_831, 10_000), ours, strict=True):
        assert np.array_equal(few, part[: len(few)])
    for split, sizes in {"dimenet": [60, 5, 7], "cormorant": [55, 9, 8]}.items():
        made = make(folder, split=split)
        assert [len(part) for part in (made.train, made.validation, made.test)] == sizes
    with pytest.raises(InputError, match=r"unknown benchmark.split 'navin': did you mean 'navon'"):
        make(folder, split="navin")
    with pytest.raises(InputError, match="data_seed: split=dimenet is always the same molecules"):
        make(folder, split="dimenet", data_seed=1)


@pytest.mark.parametrize("saved", ["text", "torch"])
def test_an_order_of_ones_own(folder, tmp_path, saved):
    numbers = torch.arange(72).flip(0)
    if saved == "text":
        (tmp_path / "order").write_text("\n".join(map(str, numbers.tolist())))
    else:
        torch.save(numbers, tmp_path / "order")
    made = make(folder, order=str(tmp_path / "order"))
    assert len(made.train) == 58
    elements = made.train.inputs[-1, :, 0]  # the last number is 0, methane's
    assert elements[elements > 0].tolist() == [6, 1, 1, 1, 1]
    again = make(folder, order=str(tmp_path / "order"), data_seed=5)
    assert torch.equal(again.test.inputs, made.test.inputs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0\n1\n1\n", "has 3 numbers, one of them twice: expected 0 to 71, each once"),
        (b"0\n72\n", "has 2 numbers, 72 among them"),
        (b"1\nx\n", "has no numbers of molecules"),
        (b"PK", "has no numbers of molecules"),
        (b"", "has no numbers of molecules"),
        (torch.zeros(3), "is not one list of whole numbers"),
        ({"order": torch.arange(3)}, "is not one list of whole numbers"),
        (print, "has no numbers of molecules"),  # nothing is run
    ],
    ids=str,
)
def test_what_is_no_order_is_refused(folder, tmp_path, content, message):
    path = tmp_path / "order"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=message) as caught:
        make(folder, order=str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="order: "):
        make(folder, order=str(tmp_path / "nowhere"))


def test_training_statistics_normalise_and_splits_are_disjoint_and_fixed(folder):
    made, again, other = make(folder), make(folder), make(folder, data_seed=1)
    assert [len(split) for split in (made.train, made.validation, made.test)] == [58, 7, 7]
    torch.testing.assert_close(targets(made.train).mean(0), torch.zeros(11), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets(made.train).std(0), torch.ones(11), atol=1e-5, rtol=0)
    assert targets(made.test).mean(0).abs().max() > 0.1
    assert torch.equal(made.test.inputs, again.test.inputs)
    assert not torch.equal(made.test.inputs, other.test.inputs)
    keys = [{atoms.numpy().tobytes() for atoms in split.inputs} for split in (made.train, made.validation, made.test)]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 72
    fewer = make(folder, ["homo", "mu"], molecules=20)
    assert [len(split) for split in (fewer.train, fewer.validation, fewer.test)] == [16, 2, 2]
    assert list(fewer.tasks) == ["homo", "mu"]


def test_errors_are_in_the_papers_units(folder):
    """Predictions of the training mean: the mean absolute error is that of the values themselves, in meV."""
    made = make(folder, ["homo"])
    made.model.heads["homo"].weight.data.zero_()
    made.model.heads["homo"].bias.data.zero_()
    found = evaluate(made, Loader(made, CPU).whole("test", 4))
    values = []
    for number in (1, 2, 3):
        with (folder / f"qm9_part{number}.csv").open(newline="") as file:
            values += [float(row["HOMO_au"]) for row in csv.DictReader(file)]
    order = torch.randperm(72, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = torch.tensor(values, dtype=torch.float64)[order] * 27211.386246
    expected = (shuffled[:7] - shuffled[14:].mean()).abs().mean()
    assert found["homo"] == pytest.approx(float(expected), rel=1e-4)
    assert made.tasks["homo"].metrics[0].name == "mae_meV"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch_geometric's, with newer Pythons and torches
def test_the_network_gives_the_numbers_of_torch_geometrics_layers(folder):
    from torch_geometric.nn import NNConv, Set2Set

    torch.manual_seed(0)
    width, own = 8, MessagePassing(8).double()
    pair = torch.nn.Sequential(own.pair, torch.nn.ReLU(), own.matrices)
    convolution, pooling = NNConv(width, width, pair, aggr="mean").double(), Set2Set(width, 3).double()
    convolution.lin.weight, convolution.bias = own.root.weight, own.root.bias
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(pooling.lstm, f"{name}_l0", getattr(own.attention, name))
    molecules = make(folder).train.inputs[:9].double()
    there = molecules[..., 0] > 0
    atoms, pairs = own.described(molecules, there)
    edges = torch.stack([torch.arange(29).repeat(29), torch.arange(29).repeat_interleave(29)])  # from, to
    for number in range(9):
        kept = there[number, edges[0]] & there[number, edges[1]] & (edges[0] != edges[1])
        edge, described = edges[:, kept], pairs[number, edges[1, kept], edges[0, kept]]
        count = int(there[number].sum())
        x = hidden = torch.relu(own.lift(atoms[number, :count]))
        for _ in range(3):
            hidden = own.update(torch.relu(convolution(x, edge, described)), hidden)
            x = hidden
        pooled = pooling(x, torch.zeros(count, dtype=torch.int64))
        torch.testing.assert_close(own(molecules)[number], torch.relu(own.last(pooled))[0], rtol=1e-9, atol=1e-12)


def test_bonds_and_hydrogens_of_methane_and_no_sense_of_place(folder):
    own = MessagePassing(8)
    methane = make(folder).train.inputs
    methane = methane[(methane[..., 0] > 0).sum(1) == 5][:1]
    atoms, pairs = own.described(methane, methane[..., 0] > 0)
    assert pairs[0, :5, :5, 1].sum() == 8
    assert atoms[0, 0].tolist() == [0, 1, 0, 0, 0, 6, 4]
    assert atoms[0, 1].tolist() == [1, 0, 0, 0, 0, 1, 0]
    turned = methane.clone()
    rotation, _ = torch.linalg.qr(torch.randn(3, 3))
    turned[0, :5, 1:] = methane[0, [0, 2, 1, 4, 3], 1:] @ rotation + 1.0
    torch.testing.assert_close(own(methane), own(turned), rtol=1e-4, atol=1e-5)


def test_distances_are_not_rounded_in_bf16(folder):
    own, molecules = MessagePassing(8), make(folder).train.inputs[:3]
    there = molecules[..., 0] > 0
    _, pairs = own.described(molecules, there)
    apart = there[:, :, None] & there[:, None, :]
    with torch.autocast("cpu", torch.bfloat16):
        units = own.weights(pairs, apart, torch.bfloat16)
    assert units.any()
    assert torch.equal(units, own.weights(pairs, apart, torch.float32).bfloat16())


def test_it_learns(folder, tmp_path):
    torch.manual_seed(0)
    made = make(folder, ["mu", "U0", "Cv"], width=16)
    update = CombinedUpdate(Setup(made, combiners.make("nash_mtl", 3), OptimizerOptions()))
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    one = Trainer(made, update, run, Schedule(4, 12, 0.003), seed=1, device=CPU, show_progress=False)
    one.train()
    run.close()
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for task in made.tasks:
        assert entries[-1][f"train/loss/{task}"] < 0.9 * entries[0][f"train/loss/{task}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("HOMO_au", "HOMO"), r"qm9_part2.csv has no column HOMO_au: it is not qm9pack's"),
        (lambda text: text.replace("'C'", "'Xx'", 1), r"qm9_part2.csv, line 2: these are no elements.*Xx"),
        (lambda text: text.replace("[[", "[[0.5,", 1), "line 2: these are no elements, coordinates"),
        (lambda text: text[: len(text) * 2 // 3], "qm9_part2.csv, line .*these are no elements"),
        (lambda text: re.sub(r"\[\[[-.0-9]+", "[[nan", text, count=1), "line 2: a number is not finite"),
    ],
    ids=["column", "element", "coordinates", "half copied", "nan"],
)
def test_wrong_files_are_named(folder, tmp_path, change, message):
    for number in (1, 2, 3):
        text = (folder / f"qm9_part{number}.csv").read_text()
        (tmp_path / f"qm9_part{number}.csv").write_text(change(text) if number == 2 else text)
    with pytest.raises(InputError, match=message) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path, folder, monkeypatch):
    with pytest.raises(InputError, match=r"qm9_part1.csv cannot be read .*pip install qm9pack"):
        make(tmp_path)
    for split in ("navon", "dimenet"):
        with pytest.raises(InputError, match="molecules: 9 are too few for three splits"):
            make(folder, molecules=9, split=split)
    with pytest.raises(InputError, match="unknown task 'gap'"):
        make(folder, ["gap"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="benchmark=qm9: the package qm9pack has the files"):
        qm9()
