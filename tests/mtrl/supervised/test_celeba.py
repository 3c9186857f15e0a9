"""CelebA from files in its exact layouts, with faces that say by their colours which attributes they have."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mtrl import combiners
from mtrl.errors import InputError, Interrupted
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import read_metrics
from mtrl.supervised.data.celeba import celeba, read_image
from mtrl.supervised.loading import Loader, LoadingOptions
from mtrl.supervised.loop import Schedule, Trainer, evaluate
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.networks import Pixels, nine_layers, resnet18
from mtrl.supervised.scan import problems
from mtrl.supervised.updates import OptimizerOptions, Setup
from tests.mtrl.supervised.test_training import Interrupting

CPU = torch.device("cpu")
NAMES = ["5_o_Clock_Shadow", "Bald", "Male", "Young"]
COUNTS = (16, 6, 5)
ANNO, EVAL, IMAGES = "Anno/list_attr_celeba.txt", "Eval/list_eval_partition.txt", "Img/img_align_celeba"


def file(number):
    return f"{number + 1:06}.jpg"


def attributes(number):
    """Of face ``number``, by its binary digits: no two columns and no two splits are alike."""
    return [number >> column & 1 for column in range(4)]


def face(number):
    """178x218 pixels: red where it is bald, green where it is male, blue where it is young, brighter by its shadow."""
    shadow, *colours = attributes(number)
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[:] = [40 + 120 * colour + 60 * shadow for colour in colours]
    return Image.fromarray(pixels)


def write(folder, kind="authors", space="  "):
    """The data set in a layout: the authors' or torchvision's, with JPEGs, or the authors' with PNGs."""
    own = {
        "authors": "Img/img_align_celeba",
        "png": "Img/img_align_celeba_png",
        "torchvision": "celeba/img_align_celeba",
    }
    anno, part = ("celeba", "celeba") if kind == "torchvision" else ("Anno", "Eval")
    images = folder / own[kind]
    for place in (images, folder / anno, folder / part):
        place.mkdir(parents=True, exist_ok=True)
    total = sum(COUNTS)
    rows, parts = [], []
    for number in range(total):
        signs = space.join("1" if value else "-1" for value in attributes(number))
        rows.append(f"{file(number)}{space}{signs}")
        split = 0 if number < COUNTS[0] else 1 if number < COUNTS[0] + COUNTS[1] else 2
        parts.append(f"{file(number)} {split}")
        name = file(number) if kind != "png" else file(number).replace("jpg", "png")
        face(number).save(images / name, **({} if kind == "png" else {"quality": 95}))
    (folder / anno / "list_attr_celeba.txt").write_text("\n".join([str(total), " ".join(NAMES) + " ", *rows]))
    (folder / part / "list_eval_partition.txt").write_text("\n".join(reversed(parts)) + "\n")
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write(tmp_path_factory.mktemp("celeba"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "celeba")


def make(folder, **options) -> Any:
    return celeba(data_dir=str(folder), **options)


def small(made, features):
    """The benchmark with a network that takes no time."""
    torch.manual_seed(0)
    made.model.encoder[1] = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(48, features))
    return made


@pytest.mark.parametrize(("kind", "space"), [("authors", "  "), ("png", " "), ("torchvision", " ")])
def test_every_layout_gives_every_face_its_own_attributes(tmp_path, kind, space):
    """The partition's order is not the attributes' order; the last line may lack its newline."""
    made = make(write(tmp_path, kind, space))
    first = 0
    for split, count in zip((made.train, made.validation, made.test), COUNTS, strict=True):
        assert len(split) == count
        numbers = []
        for image, labels in (split[index] for index in range(count)):
            assert list(labels) == NAMES
            shadow, *colours = (int(label) for label in labels.values())
            expected = torch.tensor([40.0 + 120 * colour + 60 * shadow for colour in colours])
            assert (image.float().mean((1, 2)) - expected).abs().max() < 4
            numbers.append(sum(int(label) << column for column, label in enumerate(labels.values())))
        assert sorted(numbers) == sorted(number % 16 for number in range(first, first + count))
        first += count


def kaggles(folder, tmp_path):
    """The same faces as Kaggle has them: lists as tables, images in a folder of a folder."""
    made = tmp_path / "kaggle"
    shutil.copytree(folder / IMAGES, made / "img_align_celeba" / "img_align_celeba")
    _, names, *rows = (folder / ANNO).read_text().splitlines()
    table = [",".join(["image_id", *names.split()]), *(",".join(row.split()) for row in rows)]
    (made / "list_attr_celeba.csv").write_text("\n".join(table) + "\n")
    parts = [",".join(line.split()) for line in (folder / EVAL).read_text().splitlines()]
    (made / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *parts]) + "\n")
    return made


def test_kaggles_layout_has_the_same_faces(folder, tmp_path):
    made, other = make(kaggles(folder, tmp_path)), make(folder)
    assert list(made.tasks) == NAMES
    for split, same in zip((made.train, made.test), (other.train, other.test), strict=True):
        assert split.files == same.files
        assert torch.equal(split.labels, same.labels)
        assert torch.equal(split[3][0], same[3][0])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("list_attr_celeba.csv", lambda lines: lines[1:], "expected a header that begins with image_id,"),
        ("list_attr_celeba.csv", lambda lines: lines[:-1], "has no line in list_attr_celeba"),
        ("list_attr_celeba.csv", lambda lines: [*lines[:5], lines[5] + ",1"], "line 6: expected a file's name and 4"),
        ("list_eval_partition.csv", lambda lines: lines[:-1], "has 26 images, but list_attr_celeba.txt has 27"),
        ("list_eval_partition.csv", lambda lines: [lines[0], "000001.jpg,3"], "line 2: expected a file's name and 0"),
    ],
)
def test_wrong_tables_are_named(folder, tmp_path, name, change, message):
    made = kaggles(folder, tmp_path)
    edited(made, name, change)
    with pytest.raises(InputError, match=message):
        make(made)


def test_torchvisions_folder_itself_will_do(tmp_path):
    assert len(make(write(tmp_path, "torchvision") / "celeba").train) == 16


def test_a_selection_of_attributes_in_its_own_order(folder):
    made = make(folder, tasks=["Young", "Bald"])
    assert list(made.tasks) == ["Young", "Bald"]
    whole = make(folder)
    for index in range(16):
        assert made.train[index][1] == {name: whole.train[index][1][name] for name in ("Young", "Bald")}


def test_pixels_are_kurins_or_famos(folder, tmp_path):
    # 178x218 to 64x64: each centre falls into a pixel, whose value it takes; the aspect changes.
    noise = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(noise).save(path)
    rows, columns = (((np.arange(64) + 0.5) * side / 64).astype(int) for side in (218, 178))
    assert np.array_equal(read_image(path, nearest=True).numpy(), noise[rows][:, columns].transpose(2, 0, 1))
    smooth = read_image(path, nearest=False).numpy()
    assert smooth.std() < 0.6 * noise.std()  # with antialiasing: a mean over about three by three pixels
    image = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1)
    found = make(folder).model.encoder[0](image).flatten().tolist()
    assert found == pytest.approx([(50 - 73.15835921) / 255, (100 - 82.90891754) / 255, (200 - 72.39239876) / 255])
    found = make(folder, pixels="famo").model.encoder[0](image).flatten().tolist()
    assert found == pytest.approx([200 / 255, 100 / 255, 50 / 255])
    assert make(folder).train.nearest
    assert not make(folder, pixels="famo").train.nearest


@pytest.mark.parametrize(("head", "network"), [("softmax", "resnet18"), ("logit", "nine_layers")])
def test_error_accuracy_and_f1_of_both_heads_by_hand(folder, head, network):
    made = small(make(folder, head=head, network=network, judged_by="f1"), 2048 if network == "resnet18" else 512)
    made.check(CPU)
    made.model.eval()
    found = evaluate(made, Loader(made, CPU, options=LoadingOptions(workers=0)).whole("training", 5))
    images = torch.stack([made.train[index][0] for index in range(16)])
    outputs = made.model(images)
    for name in NAMES:
        predicted = outputs[name].argmax(1) if head == "softmax" else outputs[name] > 0
        labels = torch.tensor([int(made.train[index][1][name]) for index in range(16)])
        true, wrong = int((predicted.long() & labels).sum()), int((predicted.long() != labels).sum())
        assert found[f"{name}/error"] == pytest.approx(wrong / 16)
        assert found[f"{name}/accuracy"] == pytest.approx(1 - wrong / 16)
        assert found[name] == pytest.approx(2 * true / max(int(predicted.sum() + labels.sum()), 1))
    directions = {metric.name: metric.higher_is_better for metric in made.tasks["Bald"].metrics}
    assert directions == {"f1": True, "accuracy": True, "error": False}


def test_the_networks_are_the_papers():
    """Their numbers of parameters, by the layers that the authors' code has."""
    blocks = sum(
        9 * i * o + 9 * o * o + (i * o + 2 * o if i != o else 0) + 4 * o
        for i, o in [(64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    )
    assert sum(p.numel() for p in resnet18().parameters()) == 27 * 64 + 128 + blocks
    convolutions = [(3, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    expected = sum(9 * i * o + 2 * o for i, o in convolutions) + 2 * (512 * 512 + 1024)
    assert sum(p.numel() for p in nine_layers().parameters()) == expected
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert resnet18(0.5).eval()(Pixels()(images)).shape == (2, 2048)
    assert nine_layers().eval()(Pixels()(images)).shape == (2, 512)


def test_it_learns(folder, tmp_path):
    made = small(make(folder, tasks=["Bald", "Male"], network="nine_layers", pixels="famo", head="logit"), 512)
    update = CombinedUpdate(Setup(made, combiners.make("mgda", 2), OptimizerOptions(), "representation"))
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    schedule = Schedule(epochs=4, batch_size=8, learning_rate=0.001)
    options = LoadingOptions(workers=1, cache=0.01)
    one = Trainer(made, update, run, schedule, seed=1, device=CPU, loading=options, show_progress=False)
    one.train()
    run.close()
    losses = [entry["train/loss/Bald"] for entry in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]


def edited(folder, name, change):
    path = folder / name
    path.write_text("\n".join(change(path.read_text().splitlines())))


def test_a_run_goes_on_within_an_epoch_bit_for_bit(folder, tmp_path):
    """By another number of workers, and without the cache: neither changes a number."""

    def trained(name, options, stop=0):
        torch.manual_seed(0)
        made = small(make(folder, tasks=["Bald", "Male"], network="nine_layers", head="logit"), 512)
        made.model.encoder.append(nn.Dropout(0.3))
        update = CombinedUpdate(Setup(made, combiners.make("graddrop", 2), OptimizerOptions(), "representation"))
        run = RunDirectory(tmp_path / name, {"seed": 1})
        schedule = Schedule(epochs=2, batch_size=4, learning_rate=0.001)
        updates: Any = Interrupting(update, stop)
        one = Trainer(made, updates, run, schedule, seed=1, device=CPU, loading=options, show_progress=False)
        try:
            one.train()
        finally:
            run.close()
        return made.model.state_dict()

    whole = trained("whole", LoadingOptions(workers=0))
    with pytest.raises(Interrupted):
        trained("parts", LoadingOptions(workers=1, cache=0.01), stop=6)
    resumed = trained("parts", LoadingOptions(workers=0))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (ANNO, lambda lines: lines[:-1], "announces 27 images, but has 26: only partly copied"),
        (ANNO, lambda lines: ["26", *lines[1:-1]], r"000027.jpg has no line in list_attr_celeba.txt"),
        (ANNO, lambda lines: [*lines[:5], lines[5].replace("-1", "0", 1), *lines[6:]], "line 6: .* 4 times -1 or 1"),
        (ANNO, lambda lines: [*lines[:5], lines[5] + " 1", *lines[6:]], "line 6: expected a file's name and 4 times"),
        (ANNO, lambda lines: [*lines[:5], lines[4], *lines[6:]], "line 6: 000003.jpg comes a second time"),
        (ANNO, lambda lines: [*lines[:5], "", *lines[6:]], "line 6: expected a file's name"),
        (ANNO, lambda lines: ["<html>"], "expected a count, a line of names"),
        (EVAL, lambda lines: lines[1:], "has 26 images, but list_attr_celeba.txt has 27: only partly copied"),
        (EVAL, lambda lines: ["000001.jpg 3", *lines[1:]], "line 1: expected a file's name and 0, 1 or 2, got '000001"),
        (EVAL, lambda lines: [line.replace(" 1", " 0") for line in lines], "a split has no images"),
    ],
)  # fmt: skip
def test_wrong_annotations_are_named(folder, name, change, message):
    edited(folder, name, change)
    with pytest.raises(InputError, match=message) as caught:
        make(folder)
    assert name.split("/")[1] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named_with_their_source(folder):
    (folder / IMAGES / file(20)).unlink()
    (folder / IMAGES / file(18)).unlink()
    with pytest.raises(InputError, match=r"img_align_celeba lacks 2 images of .*, the first is .*non-commercial"):
        make(folder)
    shutil.rmtree(folder / "Img")
    with pytest.raises(InputError, match="has none of the folders celeba/img_align_celeba, "):
        make(folder)
    (folder / EVAL).unlink()
    with pytest.raises(InputError, match=r"there is none of .*Eval/list_eval_partition.txt"):
        make(folder)
    with pytest.raises(InputError, match="needs data_dir=DIR"):
        celeba()
    with pytest.raises(InputError, match="unknown task 'Yuong': did you mean 'Young'"):
        make(write(folder), tasks=["Yuong"])


def test_damaged_images_are_all_found_by_a_scan(folder):
    torn, other = folder / IMAGES / file(3), folder / IMAGES / file(25)
    torn.write_bytes(torn.read_bytes()[:-200])
    other.write_bytes(b"<html>not found</html>")
    found = [*problems(make(folder), LoadingOptions(workers=0))]
    assert len(found) == 2
    assert found[0].startswith("training split, sample ")
    assert f"{torn} is damaged or only partly copied (" in found[0]
    assert f"{other} is damaged" in found[1]
