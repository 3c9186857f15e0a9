"""Cityscapes in the exact layouts of its two releases, with streets that say by their colours what is in them."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from mtrl import combiners
from mtrl.errors import InputError, Interrupted
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import read_metrics
from mtrl.supervised import benchmarks
from mtrl.supervised.data.cityscapes import cityscapes
from mtrl.supervised.data.cityscapes_groups import cityscapes_groups
from mtrl.supervised.data.cityscapes_raw import GROUPS, centre_offsets, cityscapes_raw, disparity, label_table
from mtrl.supervised.dense_networks import Resized
from mtrl.supervised.loading import LoadingOptions
from mtrl.supervised.loop import Schedule, Trainer, evaluate
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.networks import Pixels
from mtrl.supervised.scan import problems
from mtrl.supervised.updates import OptimizerOptions, Setup
from tests.mtrl.supervised.test_training import Interrupting

CPU = torch.device("cpu")
HEIGHT, WIDTH = 32, 64

# ------------------------------------------------------------------------------------------- runs, of any data set


def small(made):
    """The benchmark with a network that takes no time; heads and their names stay."""
    torch.manual_seed(0)
    first = made.model.encoder[0]
    looks = [first] if isinstance(first, Pixels) else []
    made.model.encoder = nn.Sequential(*looks, nn.AvgPool2d(4), nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Dropout(0.1))
    for task, head in made.model.heads.items():
        channels = [module for module in head.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
        made.model.heads[task] = nn.Sequential(nn.Conv2d(16, channels, 1), Resized(head[-1].size))
    return made


def trainer(path, made, wrap=lambda update: update, epochs=3):
    update = CombinedUpdate(Setup(made, combiners.make("imtl", len(made.tasks)), OptimizerOptions(), "representation"))
    run = RunDirectory(path, {"seed": 1, "epochs": epochs})
    schedule = Schedule(epochs=epochs, batch_size=2, learning_rate=0.02)
    options = LoadingOptions(workers=0)
    return Trainer(made, wrap(update), run, schedule, seed=1, device=CPU, loading=options, show_progress=False)


def outcome(one):
    entries = read_metrics(one.session.run.path / "metrics.jsonl")
    logged = [{k: v for k, v in e.items() if k not in ("time", "speed/epoch_seconds")} for e in entries]
    return logged, {k: v for k, v in one.summary().items() if "seconds" not in k and k != "counters"}


def learns_and_goes_on_exactly(path, make):
    """A benchmark's run: all losses end below their start; stopped within an epoch it comes to the same numbers."""
    whole = trainer(path / "whole", small(make()))
    start = evaluate(whole.benchmark, whole.loader.whole("validation", 2))
    whole.train()
    logged, summary = outcome(whole)
    whole.session.run.close()
    for task in whole.benchmark.tasks:
        assert logged[-1][f"val/loss/{task}"] < start[f"loss/{task}"], task
    at = whole.batches + whole.batches // 2 + 1
    first = trainer(path / "run", small(make()), lambda update: Interrupting(update, at, signal.SIGTERM))
    with pytest.raises(Interrupted, match="SIGTERM"):
        first.train()
    first.session.run.close()
    again = trainer(path / "run", small(make()))
    again.train()
    assert outcome(again) == (logged, summary)
    again.session.run.close()
    return summary


# ------------------------------------------------------------------------------------------- pre-processed arrays


def labels_of(number, classes):
    """Stripes of classes, from another one on in every image, and a row and a column that have none."""
    labels = (np.arange(WIDTH)[None] // 4 + np.arange(HEIGHT)[:, None] // 8 + number) % classes
    labels[3], labels[:, 5] = -1, -1
    return labels


def depth_of(number):
    depth = ((np.arange(HEIGHT)[:, None] * WIDTH + np.arange(WIDTH)[None]) * 7 + 257 * number) % 32258 / 65535
    depth[4] = 0
    return depth[..., None]


def image_of(number, classes=7):
    """Red says the class, green the column, blue the number of the image."""
    labels = labels_of(number, classes)
    planes = [np.maximum(labels, 0) / classes, np.arange(WIDTH)[None] / WIDTH + 0 * labels, number / 32 + 0 * labels]
    return np.stack(planes, -1)


def write_arrays(folder, labels=("label_7",), classes=7, counts=(10, 3), depth=np.float64):
    """MTAN's layout; validation images are numbered from 20 on where they say their number."""
    for split, first, count in (("train", 0, counts[0]), ("val", 20, counts[1])):
        for name in ("image", "depth", *labels):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for place in range(count):
            number = first + place
            np.save(folder / split / "image" / f"{place}.npy", image_of(number, classes).astype(np.float32))
            np.save(folder / split / "depth" / f"{place}.npy", depth_of(number).astype(depth))
            for name in labels:
                np.save(folder / split / name / f"{place}.npy", labels_of(number, classes).astype(np.float64))
    return folder


@pytest.fixture(scope="module")
def original_arrays(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("arrays"))


@pytest.fixture
def arrays(original_arrays, tmp_path):
    return shutil.copytree(original_arrays, tmp_path / "arrays")


def make_arrays(folder, **options) -> Any:
    return cityscapes(data_dir=str(folder), **{"network": "resnet18", **options})


@pytest.mark.parametrize(
    ("folders", "classes"),
    [(["label_7"], 7), (["label"], 7), (["label_7", "label"], 7), (["label_19"], 19), (["label_2"], 2)],
)
def test_every_array_is_its_own_sample_s(tmp_path, folders, classes):
    write_arrays(tmp_path, folders[:1], classes)
    for split in ("train", "val") if len(folders) > 1 else ():  # the first one is read
        shutil.copytree(tmp_path / split / "depth", tmp_path / split / folders[1])
    made = make_arrays(tmp_path, classes=classes)
    assert [len(split) for split in (made.train, made.validation, made.test)] == [8, 2, 3]
    numbers = [*range(8), 8, 9, 20, 21, 22]
    samples = [*made.train, *made.validation, *made.test]
    for number, (image, targets) in zip(numbers, samples, strict=True):
        assert image.dtype == torch.float32
        assert np.array_equal(image.numpy(), image_of(number, classes).transpose(2, 0, 1).astype(np.float32))
        assert targets["segmentation"].dtype == torch.int64
        assert np.array_equal(targets["segmentation"].numpy(), labels_of(number, classes))
        depth = depth_of(number)[..., 0]
        assert targets["depth"].shape == (1, HEIGHT, WIDTH)
        assert np.array_equal(targets["depth"][0].isnan().numpy(), depth == 0)
        assert np.allclose(targets["depth"][0].nan_to_num().numpy(), depth)
    made.model.eval()
    assert made.model.heads["segmentation"](made.model.encode(samples[0][0][None])).shape == (1, classes, HEIGHT, WIDTH)


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    """Not of their names, where 10 comes before 2; the first 80% are for training, as in Kurin et al.'s code."""
    made = make_arrays(write_arrays(tmp_path, counts=(15, 2)), tasks=["depth"])
    for index, (_, targets) in enumerate([*made.train, *made.validation]):
        assert np.allclose(targets["depth"][0].nan_to_num().numpy(), depth_of(index)[..., 0])
    assert len(made.train) == 12
    whole = make_arrays(tmp_path, held_out=0)
    assert len(whole.train) == 15
    assert whole.validation is whole.test
    assert len(whole.test) == 2
    with pytest.raises(InputError, match=r"held_out=0.99 of 15 samples leaves a split without any"):
        make_arrays(tmp_path, held_out=0.99)


def test_arrays_train_and_go_on(arrays, tmp_path):
    summary = learns_and_goes_on_exactly(tmp_path, lambda: make_arrays(arrays, augment=True))
    directions = {key: metric["higher_is_better"] for key, metric in summary["metrics"].items()}
    assert directions == {
        "segmentation": True,
        "segmentation/pixel_accuracy": True,
        "depth": False,
        "depth/rel_error": False,
    }
    assert summary["selection"]["by"] == "per_metric"


def saved(change):
    """Of what a file holds, something else."""

    def edit(path):
        np.save(path, change(np.load(path)))

    return edit


def torn(path):
    path.write_bytes(path.read_bytes()[:-100])


def pixel(value):
    def change(array):
        array[5, 7] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("image/3", torn, "is damaged or only partly copied"),
        ("image/3", lambda path: path.write_bytes(b""), "is damaged"),
        ("image/3", saved(lambda a: (a * 255).astype(np.uint8)), "is of type uint8, expected float, from 0 to 1"),
        ("image/3", saved(lambda a: a * 255), r"row 0, column 0: 109.286, expected 0 to 1; 5,745 such values"),
        ("image/3", saved(pixel(np.nan)), "row 5, column 7: nan, expected 0 to 1; 3 such values"),
        ("image/3", saved(lambda a: a.transpose(2, 0, 1)), r"is of shape \[3, 32, 64\], expected \[H, W, 3\]"),
        ("image/3", saved(lambda a: a[:16]), "is of 16x64 pixels, expected 32x64"),
        ("label_7/3", saved(pixel(7)), "row 5, column 7: 7, expected a label from 0 to 6, or -1 where there is none"),
        ("label_7/3", saved(pixel(255)), "row 5, column 7: 255, expected a label"),
        ("label_7/3", saved(pixel(-2)), "row 5, column 7: -2, expected a label"),
        ("label_7/3", saved(pixel(0.5)), "row 5, column 7: 0.5, expected a label"),
        ("label_7/3", saved(pixel(np.nan)), "row 5, column 7: nan, expected a label"),
        ("label_7/3", saved(lambda a: a[:, :32]), "is of 32x32 pixels, expected 32x64"),
        ("depth/3", saved(lambda a: a * 65535 / 256), "expected 0 to 1, disparities divided by 65,535"),
        ("depth/3", saved(pixel(-0.1)), "row 5, column 7: -0.1, expected 0 to 1"),
        ("depth/3", saved(pixel(np.inf)), "row 5, column 7: inf, expected 0 to 1"),
        ("depth/3", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "allow_pickle=False"),
        ("depth/3", lambda path: np.save(path, np.full((32, 64, 1), "a")), "is of type <U1, expected numbers"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_named(arrays, name, edit, message):
    path = arrays / "train" / f"{name}.npy"
    edit(path)
    made = make_arrays(arrays)
    with pytest.raises(InputError, match=message) as caught:
        made.train[3]
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    made.train[2]


def test_other_numbers_of_another_machine_are_read(arrays):
    path = arrays / "train" / "depth" / "3.npy"
    np.save(path, np.load(path).astype(">f4"))
    path = arrays / "train" / "label_7" / "3.npy"
    np.save(path, np.asfortranarray(np.load(path).astype(np.int16)))
    _, targets = make_arrays(arrays).train[3]
    assert np.array_equal(targets["segmentation"].numpy(), labels_of(3, 7))
    assert np.allclose(targets["depth"][0].nan_to_num().numpy(), depth_of(3)[..., 0])


def test_missing_arrays_are_named(arrays):
    (arrays / "val" / "label_7" / "1.npy").unlink()
    with pytest.raises(InputError, match=r"val/label_7 lacks 1 file, the first is 1.npy"):
        make_arrays(arrays)
    for name in ("image", "depth", "label_7"):
        (arrays / "val" / name / "1.npy").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"val lacks 1.npy, but has a later one: only partly copied"):
        make_arrays(arrays)
    shutil.rmtree(arrays / "train" / "label_7")
    with pytest.raises(InputError, match=r"train has no folder label_7 or label\. .*non-commercial"):
        make_arrays(arrays)
    with pytest.raises(InputError, match=r"train has no folder label_19\."):
        make_arrays(arrays, classes=19)
    with pytest.raises(InputError, match="needs data_dir=DIR with train and val"):
        cityscapes()
    with pytest.raises(InputError, match="unknown task 'depht': did you mean 'depth'"):
        make_arrays(arrays, tasks=["depht"])
    with pytest.raises(InputError, match=r"unknown benchmark.classes '8': .*7"):
        benchmarks.make("cityscapes", data_dir=str(arrays), classes=8)


def test_a_scan_finds_everything_that_is_wrong(arrays):
    for name, edit in (
        ("train/image/3", torn),
        ("train/label_7/5", saved(pixel(9))),
        ("val/depth/2", saved(pixel(-1))),
    ):
        edit(arrays / f"{name}.npy")
    found = [*problems(make_arrays(arrays), LoadingOptions(workers=0))]
    assert [line.split(":")[0] for line in found] == [
        "training split, sample 3",
        "training split, sample 5",
        "test split, sample 2",
    ]
    for line, name in zip(found, ("image/3", "label_7/5", "depth/2"), strict=True):
        assert f"{name}.npy" in line


# --------------------------------------------------------------------------------------------------- the raw files

NINETEEN = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9,
    23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
"""The benchmark's own ids, spelt out once more."""
SEVEN = [[7, 8], [11, 12, 13], [17, 19, 20], [21, 22], [23], [24, 25], [26, 27, 28, 31, 32, 33]]
STREETS = {
    "train": [("zurich", 2), ("aachen", 119), ("aachen", 2), ("ulm", 0), ("bochum", 0)],
    "val": [("munster", 1), ("lindau", 4)],
}
TALL, LONG = 256, 512


def name_of(street):
    city, sequence = street
    return f"{city}_{sequence:06}_000019"


def ids_of(number):
    """Blocks of all ids from 0 to 33, and of licence plates, from another one on in every image."""
    blocks = (np.arange(LONG)[None] // 16 + 7 * (np.arange(TALL)[:, None] // 32) + number) % 35
    return np.where(blocks == 34, 255, blocks).astype(np.uint8)


def instances_of(number):
    """Of every thing's block two halves, two instances, but of riders: a group that nobody told apart."""
    ids = ids_of(number).astype(np.int32)
    lower = (np.arange(TALL)[:, None] // 16 % 2) * np.ones_like(ids)
    things = np.isin(ids, [24, 26, 27, 28, 29, 30, 31, 32, 33])
    return np.where(things, 1000 * ids + lower, np.where(ids == 255, 0, ids)).astype(np.uint16)


def disparity_of(number):
    found = (np.arange(TALL)[:, None] * 130 + np.arange(LONG)[None] * 3 + number).astype(np.uint16)
    found[:, :32] = 0
    return found


def street_of(number):
    """Red says the id, green the row, blue the number."""
    ids = ids_of(number)
    return np.stack([ids, np.arange(TALL)[:, None] // 2 + 0 * ids, 0 * ids + 30 * number], -1).astype(np.uint8)


def write_raw(folder):
    number = 0
    for split, streets in STREETS.items():
        for street in streets:
            stem = name_of(street)
            for place, kind, array in (
                ("leftImg8bit", "leftImg8bit", street_of(number)),
                ("gtFine", "gtFine_labelIds", ids_of(number)),
                ("gtFine", "gtFine_instanceIds", instances_of(number)),
                ("disparity", "disparity", disparity_of(number)),
            ):
                path = folder / place / split / street[0] / f"{stem}_{kind}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
            color = folder / "gtFine" / split / street[0] / f"{stem}_gtFine_color.png"
            Image.new("RGBA", (8, 4)).save(color)
            color.with_name(f"{stem}_gtFine_polygons.json").write_text("{}")
            number += 1
    return folder


@pytest.fixture(scope="module")
def original_raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def raw(original_raw, tmp_path):
    return shutil.copytree(original_raw, tmp_path / "raw")


def make_raw(folder, **options) -> Any:
    return cityscapes_raw(data_dir=str(folder), **options)


def make_groups(folder, **options) -> Any:
    return cityscapes_groups(data_dir=str(folder), **{"network": "resnet18", **options})


IN_ORDER = {"train": [2, 1, 4, 3, 0], "val": [6, 5]}
"""By city and name; the numbers are those that images say."""


def test_tables_are_cityscapes_own():
    expected = np.full(256, -2)
    expected[:34], expected[255] = -1, -1
    expected[list(NINETEEN)] = list(NINETEEN.values())
    assert np.array_equal(label_table([[number] for number in NINETEEN]), expected)
    for label, ids in enumerate(SEVEN):
        expected[ids] = label
    assert np.array_equal(label_table([*GROUPS.values()]), expected)
    assert list(GROUPS) == ["flat", "construction", "object", "nature", "sky", "human", "vehicle"]


@pytest.mark.parametrize(("height", "stride", "classes"), [(256, 1, 19), (128, 1, 7), (256, 8, 19)])
def test_every_png_is_its_own_street_s(original_raw, height, stride, classes):
    made = make_raw(original_raw, height=height, target_stride=stride, classes=classes, held_out=0)
    for split, numbers in ((made.train, IN_ORDER["train"]), (made.test, IN_ORDER["val"])):
        assert len(split) == len(numbers)
        for number, (image, targets) in zip(numbers, split, strict=True):
            step = TALL // height
            assert image.shape == (3, height, 2 * height)
            assert image.dtype == torch.uint8
            assert bool((image[2] == 30 * number).all())
            rows = torch.arange(height)[:, None] * step // 2
            assert (image[1].int() - rows).abs().max() <= 1
            inside = image[0, 20 // step : 28 // step, 5 // step : 11 // step]  # of a block
            assert bool((inside == ids_of(number)[20, 8]).all())
            step *= stride
            places = slice(step // 2, None, step)
            ids = ids_of(number)[places, places]
            table = NINETEEN if classes == 19 else {i: label for label, group in enumerate(SEVEN) for i in group}
            labels = np.vectorize(lambda i, table=table: table.get(int(i), -1))(ids)
            assert np.array_equal(targets["segmentation"].numpy(), labels)
            values = disparity_of(number)[places, places].astype(float)
            pixels = targets["disparity"][0].numpy() * 2729.0680031169923 / 256
            assert np.array_equal(np.isnan(pixels), values == 0)
            assert np.allclose(pixels[values > 0], (values[values > 0] - 1) / 256, atol=1e-4)
            assert targets["instances"].shape == (2, *labels.shape)
            things = np.isin(ids, [24, 26, 27, 28, 31, 32, 33])  # no riders' group, no caravans, no trailers
            assert np.array_equal(~targets["instances"].isnan().numpy(), np.stack([things, things]))


def test_the_steps_of_the_complexity_study_add_up():
    """Gama & Grassi, 2025, section 3.3: a smaller network, a task, a resolution, more classes."""
    folder = Path(__file__).parents[3] / "configs" / "supervised" / "complexity"
    steps = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in folder.iterdir()}
    expected: dict[str, Any] = {
        "tasks": ["segmentation", "disparity"],
        "benchmark": {"classes": 7, "height": 128, "network": "resnet50"},
    }
    for step, change in (
        ("r50", {}),
        ("r18", {"network": "resnet18"}),
        ("inst", {}),
        ("hr", {"height": 256}),
        ("19c", {"classes": 19}),
    ):
        expected["benchmark"] |= change
        expected["tasks"] += ["instances"] if step == "inst" else []
        assert steps.pop(step) == expected
    assert not steps


def test_disparities_are_pixels():
    found = disparity(np.array([[0, 1, 257, 65535]]))
    assert np.isnan(found[0, 0])
    assert found[0, 1:].tolist() == [0, 1, 65534 / 256]


def test_offsets_are_from_the_centre_of_mass_in_pixels_of_the_original(tmp_path):
    ids = np.full((12, 1030), 7)
    ids[2:4, 1:1002] = 26000  # 501 to the left of its centre, 501 to the right
    ids[5:9, 10:12], ids[9, 10] = 24001, 24001
    ids[10, 700:710] = 24  # a group
    ids[11, 700:710] = 29004  # a caravan, which is void
    found = centre_offsets(tmp_path, ids)
    columns = np.arange(1, 1002) - 501
    assert np.array_equal(found[1, 2, 1:1002], columns)
    assert 250 in found[1, 2]
    assert np.array_equal(found[0, 2:4, 500], [-0.5, 0.5])
    rows = [5, 5, 6, 6, 7, 7, 8, 8, 9]
    assert found[0, 5, 10] == pytest.approx(5 - np.mean(rows))
    assert found[1, 9, 10] == pytest.approx(10 - (10 * 5 + 11 * 4) / 9)
    assert np.array_equal(~np.isnan(found[0]), np.isin(ids, [26000, 24001]))
    with pytest.raises(InputError, match="40001 is no instance id of Cityscapes"):
        centre_offsets(tmp_path, np.where(ids == 29004, 40001, ids))


def test_masks_are_those_of_the_groups(original_raw):
    made = make_groups(original_raw)
    assert list(made.tasks) == list(GROUPS)
    assert made.validation is made.test  # Pascal et al. have no third split
    for number, (image, targets) in zip(IN_ORDER["train"], made.train, strict=True):
        assert image.shape == (3, 128, 256)
        ids = ids_of(number)[1::2, 1::2]
        for (name, target), group in zip(targets.items(), SEVEN, strict=True):
            assert name in GROUPS
            assert np.array_equal(target[0].numpy(), np.isin(ids, group).astype(np.float32))
    chosen = make_groups(original_raw, tasks=["sky", "flat"])
    _, some = chosen.train[1]
    assert list(some) == ["sky", "flat"]
    assert torch.equal(some["sky"], made.train[1][1]["sky"])


def test_pixels_are_rgb_or_sener_s(original_raw):
    image = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1)
    plain = make_raw(original_raw).model.encoder[0](image).flatten().tolist()
    assert plain == pytest.approx([200 / 255, 100 / 255, 50 / 255])
    made = make_raw(original_raw, pixels="sener").model.encoder[0](image).flatten().tolist()
    assert made == pytest.approx([(50 - 123.675) / 255, (100 - 116.28) / 255, (200 - 103.53) / 255])


@pytest.mark.parametrize("kind", ["raw", "augmented", "groups"])
def test_raw_files_train_and_go_on(original_raw, tmp_path, kind):
    makers = {
        "raw": lambda: make_raw(original_raw, height=128, classes=7, target_stride=8),
        # Nothing in these images says whether they are flipped, and where an instance's centre is then.
        "augmented": lambda: make_raw(
            original_raw, height=128, classes=7, augment=True, tasks=["segmentation", "disparity"]
        ),
        "groups": lambda: make_groups(original_raw, augment=True),
    }
    summary = learns_and_goes_on_exactly(tmp_path, makers[kind])
    if kind == "groups":
        assert summary["metrics"]["human/image_iou"]["higher_is_better"]
        assert "iou_mean" in summary["test"]
    if kind == "raw":
        names = {key: metric["name"] for key, metric in summary["metrics"].items()}
        assert names["disparity"] == "abs_error_px"
        assert names["instances"] == "offset_error"
        assert not summary["metrics"]["instances"]["higher_is_better"]


def image_at(folder, street, kind="leftImg8bit", place="leftImg8bit"):
    return folder / place / "train" / street[0] / f"{name_of(street)}_{kind}.png"


FIRST, OTHER = ("aachen", 2), ("ulm", 0)


def drawn(change):
    def edit(path):
        with Image.open(path) as image:
            array = np.array(image)
        Image.fromarray(change(array)).save(path)

    return edit


@pytest.mark.parametrize(
    ("place", "kind", "edit", "message"),
    [
        ("leftImg8bit", "leftImg8bit", torn, "is damaged or only partly copied"),
        ("leftImg8bit", "leftImg8bit", lambda path: path.write_bytes(b"<html>"), "is damaged or only partly copied"),
        ("leftImg8bit", "leftImg8bit", drawn(lambda a: a[..., 0]), "has pixels of kind L, expected RGB"),
        ("gtFine", "gtFine_labelIds", drawn(pixel(34)), ": 34 is no label id of Cityscapes, which are 0 to 33"),
        ("gtFine", "gtFine_labelIds", drawn(lambda a: np.stack([a] * 3, -1)), "of kind RGB, expected 8-bit grey"),
        ("gtFine", "gtFine_labelIds", drawn(lambda a: a[::2]), "is of 128x512 pixels, expected 256x512 as its image"),
        ("gtFine", "gtFine_instanceIds", drawn(pixel(40000)), ": 40000 is no instance id of Cityscapes"),
        ("gtFine", "gtFine_instanceIds", drawn(lambda a: a.astype(np.uint8)), "of kind L, expected 16-bit grey"),
        ("disparity", "disparity", drawn(lambda a: (a // 256).astype(np.uint8)), "of kind L, expected 16-bit grey"),
        ("disparity", "disparity", torn, "is damaged or only partly copied"),
    ],
)
def test_wrong_pngs_are_named(raw, place, kind, edit, message):
    path = image_at(raw, OTHER, kind, place)
    edit(path)
    made = small(make_raw(raw, held_out=0))
    with pytest.raises(InputError, match=message) as caught:
        made.train[3]
    assert str(caught.value).startswith(str(path))
    found = [*problems(made, LoadingOptions(workers=0))]
    assert len(found) == 1
    assert found[0].startswith(f"training split, sample 3: {path}")


def test_missing_pngs_are_named(raw):
    path = image_at(raw, OTHER, "disparity", "disparity")
    path.unlink()
    with pytest.raises(InputError, match=f"has 1 image without such a file, the first is {path}. .*non-commercial"):
        make_raw(raw)
    make_raw(raw, tasks=["segmentation"])  # which needs none
    image_at(raw, FIRST).unlink()
    with pytest.raises(InputError, match=f"lacks 1 image, the first is {image_at(raw, FIRST)}"):
        make_raw(raw, tasks=["segmentation"])
    shutil.rmtree(raw / "gtFine")
    with pytest.raises(InputError, match=r"gtFine/train has no files CITY/\*_gtFine_labelIds.png"):
        make_groups(raw)
    for make in (cityscapes_raw, cityscapes_groups):
        with pytest.raises(InputError, match="needs data_dir=DIR with leftImg8bit and gtFine"):
            make()
    with pytest.raises(InputError, match=r"augment needs benchmark\.target_stride=1"):
        make_raw(raw, target_stride=8, augment=True)
