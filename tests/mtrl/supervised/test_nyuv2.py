"""NYUv2 in MTAN's arrays and in the original file, with rooms that say by their colours what is in them."""

import shutil
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from mtrl.errors import InputError
from mtrl.supervised.data.nyuv2 import nyuv2
from mtrl.supervised.loading import LoadingOptions
from mtrl.supervised.scan import problems
from tests.mtrl.supervised.test_cityscapes import learns_and_goes_on_exactly, pixel, saved, torn

HEIGHT, WIDTH = 32, 64


def make(folder, **options) -> Any:
    return nyuv2(data_dir=str(folder), **{"network": "unet", **options})


# --------------------------------------------------------------------------------------------------- MTAN's arrays


def labels_of(number):
    labels = (np.arange(WIDTH)[None] // 4 + np.arange(HEIGHT)[:, None] // 8 + number) % 13
    labels[3], labels[:, 5] = -1, -1
    return labels


def depth_of(number):
    """0.7 to 9.9 metres."""
    depth = 0.7 + ((np.arange(HEIGHT)[:, None] * WIDTH + np.arange(WIDTH)[None]) * 7 + 100 * number) % 9200 / 1000
    depth[4] = 0
    return depth[..., None]


def normal_of(number):
    """x grows to the right, y downwards; one whose components add up to 0, and a row without any."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, HEIGHT), np.linspace(-1, 1, WIDTH), indexing="ij")
    normal = np.stack([columns, rows, 0.3 + 0 * rows + number / 20], -1)
    normal[0, 0] = 1, -1, 0
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal[6] = 0
    return normal


def image_of(number):
    labels = np.maximum(labels_of(number), 0)
    planes = [labels / 13, np.arange(WIDTH)[None] / WIDTH + 0 * labels, number / 32 + 0 * labels]
    return np.stack(planes, -1)


MADE = {"image": image_of, "label": labels_of, "depth": depth_of, "normal": normal_of}


def write_arrays(folder):
    """Validation images are numbered from 20 on where they say their number."""
    for split, first, count in (("train", 0, 12), ("val", 20, 4)):
        for name, of in MADE.items():
            (folder / split / name).mkdir(parents=True)
            for place in range(count):
                np.save(folder / split / name / f"{place}.npy", of(first + place).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def original_arrays(tmp_path_factory):
    return write_arrays(tmp_path_factory.mktemp("arrays") / "nyuv2")


@pytest.fixture
def arrays(original_arrays, tmp_path):
    return shutil.copytree(original_arrays, tmp_path / "nyuv2")


def test_every_array_is_its_own_sample_s(original_arrays):
    made = make(original_arrays)
    assert len(made.train) == 12
    assert made.validation is made.test  # as the literature has it
    for number, (image, targets) in zip([*range(12), 20, 21, 22, 23], [*made.train, *made.test], strict=True):
        assert np.allclose(image.numpy(), image_of(number).transpose(2, 0, 1))
        assert np.array_equal(targets["segmentation"].numpy(), labels_of(number))
        depth, normal = depth_of(number)[..., 0], normal_of(number).transpose(2, 0, 1)
        assert np.array_equal(targets["depth"][0].isnan().numpy(), depth == 0)
        assert np.allclose(targets["depth"][0].nan_to_num().numpy(), depth)
        missing = targets["normals"].isnan()
        assert bool(missing[:, 6].all())
        assert int(missing.sum()) == 3 * WIDTH
        assert np.allclose(targets["normals"].nan_to_num().numpy(), normal, atol=1e-6)
    held = make(original_arrays, held_out=0.25)
    assert [len(split) for split in (held.train, held.validation, held.test)] == [9, 3, 4]
    assert torch.equal(held.validation[0][0], made.train[9][0])


def test_rooms_train_and_go_on(original_arrays, tmp_path):
    summary = learns_and_goes_on_exactly(tmp_path, lambda: make(original_arrays))
    names = [metric["name"] for key, metric in summary["metrics"].items() if key.startswith("normals")]
    assert names == [
        "angle_mean",
        "angle_median",
        "angle_batch_median",
        "within_11_25",
        "within_22_5",
        "within_30",
    ]


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("image/3", torn, "is damaged or only partly copied"),
        ("label/3", saved(pixel(13)), "row 5, column 7: 13, expected a label from 0 to 12, or -1 where there is none"),
        ("depth/3", saved(lambda a: a * 1000), r"row 0, column 0: .*, expected 0 to 20, metres"),
        ("depth/3", saved(lambda a: a / 65535), "the largest depth is .* metres, expected at least 0.5"),
        ("depth/3", saved(pixel(np.nan)), "row 5, column 7: nan, expected 0 to 20"),
        ("normal/3", saved(lambda a: (a + 1) / 2), "expected at most 1"),
        ("normal/3", saved(lambda a: (127.5 * (a + 1)).astype(np.uint8)), "the length of a normal, expected at most 1"),
        ("normal/3", saved(pixel(np.nan)), "row 5, column 7: nan, the length"),
        ("normal/3", saved(lambda a: a[..., :2]), r"of shape \[32, 64, 2\], expected \[H, W, 3\]"),
    ],
)
def test_wrong_arrays_are_named(arrays, name, edit, message):
    path = arrays / "train" / f"{name}.npy"
    edit(path)
    with pytest.raises(InputError, match=message) as caught:
        make(arrays).train[3]
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    found = [*problems(make(arrays), LoadingOptions(workers=0))]
    assert len(found) == 1
    assert found[0].startswith(f"training split, sample 3: {path}")


def test_missing_arrays_are_named(arrays):
    (arrays / "val" / "normal" / "2.npy").unlink()
    with pytest.raises(InputError, match=r"val/normal lacks 1 file, the first is 2.npy"):
        make(arrays)
    make(arrays, tasks=["segmentation", "depth"])
    with pytest.raises(InputError, match=r"needs data_dir=DIR with train and val, or nyu_depth_v2_labeled\.mat"):
        nyuv2()


# ----------------------------------------------------------------------------------------------- the original file

COUNT, TALL, LONG = 7, 40, 60
TRAIN, TEST = [2, 7, 5, 1], [6, 3]  # from 1, as MATLAB counts; the fourth is in neither
TO_40 = np.array([3, 1, 40, 2, 5, 4])  # of labels 1 to 6
TO_13 = (np.arange(1, 41) * 5) % 13 + 1  # of classes 1 to 40


def mat_image(number):
    """Red says the row, green the column, blue the number; number counts from 0."""
    rows, columns = np.meshgrid(np.arange(TALL), np.arange(LONG), indexing="ij")
    return np.stack([4 * rows, 4 * columns, 0 * rows + 30 * number], -1).astype(np.uint8)


def mat_labels(number):
    return ((np.arange(TALL)[:, None] // 3 + np.arange(LONG)[None] // 5 + number) % 7).astype(np.uint16)


def mat_depth(number):
    return (0.8 + np.arange(TALL)[:, None] / 10 + np.arange(LONG)[None] / 50 + number / 9).astype(np.float32)


def mat_normal(number):
    rows, columns = np.meshgrid(np.linspace(-1, 1, TALL), np.linspace(-1, 1, LONG), indexing="ij")
    normal = np.stack([columns, rows, 1 + 0 * rows + number / 5], -1)
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)


def write_original(folder):
    """MATLAB 7.3 is HDF5 behind 512 bytes; its arrays lie the other way round than they are indexed there."""
    folder.mkdir()
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for name, of in (("images", mat_image), ("depths", mat_depth), ("labels", mat_labels)):
            whole = np.stack([of(number) for number in range(COUNT)], -1)  # [H, W, (3,) N]
            file.create_dataset(name, data=whole.T, chunks=True, compression="gzip")
    with (folder / "nyu_depth_v2_labeled.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file")
    savemat(folder / "splits.mat", {"trainNdxs": np.array(TRAIN)[:, None], "testNdxs": np.array(TEST)[:, None]})
    savemat(
        folder / "classMapping40.mat",
        {"mapClass": TO_40[None].astype(float), "className": np.array(["a", "b"], object)},
    )
    mapping = {"labels13": TO_13[None].astype(np.uint8), "className": np.array(["bed", "books"], object)}
    savemat(folder / "class13Mapping.mat", {"classMapping13": mapping})
    for split, rows in (("train", TRAIN), ("test", TEST)):
        (folder / "nyu_normals_gt" / split).mkdir(parents=True)
        for row in rows:
            encoded = np.round(127.5 * (mat_normal(row - 1) + 1)).astype(np.uint8)
            encoded[:10] = 128  # none
            encoded[10:20, :9] = 0  # none either
            Image.fromarray(encoded).save(folder / "nyu_normals_gt" / split / f"{row:05}.png")
    return folder


@pytest.fixture(scope="module")
def original_mat(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("mat") / "nyuv2")


@pytest.fixture
def mat(original_mat, tmp_path):
    return shutil.copytree(original_mat, tmp_path / "nyuv2")


def test_every_room_of_the_original_is_its_own(original_mat):
    made = make(original_mat)
    height, width = TALL * 3 // 5, LONG * 3 // 5
    rows, columns = (((np.arange(new) + 0.5) / 0.6).astype(int) for new in (height, width))
    for split, numbers in ((made.train, TRAIN), (made.test, TEST)):
        assert len(split) == len(numbers)
        for row, (image, targets) in zip(numbers, split, strict=True):
            number = row - 1
            assert image.shape == (3, height, width)
            assert np.allclose(255 * image[2].numpy(), 30 * number)
            assert np.abs(255 * image[0].numpy() / 4 - rows[:, None]).max() < 1
            assert np.abs(255 * image[1].numpy() / 4 - columns[None]).max() < 1
            labels = mat_labels(number)[rows][:, columns]
            expected = np.array([-1, *(TO_13[TO_40 - 1] - 1)])[labels]
            assert np.array_equal(targets["segmentation"].numpy(), expected)
            assert np.array_equal(targets["depth"][0].numpy(), mat_depth(number)[rows][:, columns])
            there = (rows[:, None] >= 10) & ((rows[:, None] >= 20) | (columns[None] >= 9))
            assert np.array_equal(~targets["normals"].isnan().any(0).numpy(), there)
            normal = mat_normal(number)[rows][:, columns].transpose(2, 0, 1)
            assert np.abs(targets["normals"].numpy() - normal)[:, there].max() < 0.01


def test_the_real_size_comes_to_288_by_384(tmp_path):
    folder = write_original(tmp_path / "nyuv2")
    path = folder / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w") as file:
        for name, shape in (("images", (7, 3, 640, 480)), ("depths", (7, 640, 480)), ("labels", (7, 640, 480))):
            file.create_dataset(name, shape, "u1" if name == "images" else "f4", chunks=True)
    assert make(folder, tasks=["depth"]).train[0][0].shape == (3, 288, 384)


def rewritten(name, change):
    def edit(folder):
        with h5py.File(folder / "nyu_depth_v2_labeled.mat", "r+") as file:
            array = change(file[name][:])
            del file[name]
            if array is not None:
                file[name] = array

    return edit


def splits(train, test):
    return lambda folder: savemat(folder / "splits.mat", {"trainNdxs": train, "testNdxs": test})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda folder: torn(folder / "nyu_depth_v2_labeled.mat"),
            "labeled.mat is damaged or not nyu_depth_v2_labeled",
        ),
        (lambda folder: (folder / "splits.mat").unlink(), r"splits.mat cannot be read .*nothing is downloaded"),
        (
            lambda folder: (folder / "class13Mapping.mat").write_bytes(b"<html>" * 90),
            "class13Mapping.mat cannot be read",
        ),
        (lambda folder: savemat(folder / "classMapping40.mat", {"a": 1}), "classMapping40.mat has no mapClass"),
        (
            lambda folder: savemat(folder / "classMapping40.mat", {"mapClass": [[41]]}),
            "are no maps to 40 and 13 classes",
        ),
        (rewritten("labels", lambda a: None), "damaged or not nyu_depth_v2_labeled.mat"),
        (rewritten("depths", lambda a: a[:-1]), r"depths are of shape \(6, 60, 40\), expected \(7, 60, 40\)"),
        (rewritten("images", lambda a: a.T), r"depths are of shape \(7, 60, 40\), expected \(40, 3, 7\) as images"),
        (splits([0, 1], [2]), "trainNdxs are not numbers from 1 to 7"),
        (splits([1, 2], [8]), "testNdxs are not numbers from 1 to 7"),
        (splits([1, 2], [3, 2]), "image 2 is in both splits"),
    ],
)
def test_a_wrong_original_is_named(mat, edit, message):
    edit(mat)
    with pytest.raises(InputError, match=message) as caught:
        make(mat)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rewritten("labels", lambda a: np.where(a == 6, 7, a)), "image 5: label 7, but classMapping40.mat ends at 6"),
        (rewritten("depths", lambda a: a * 1000), "image 5, row 0, column 0: .*, expected 0 to 20, metres"),
        (rewritten("images", lambda a: a / 255), "image 5: its images are of type float64, expected uint8"),
        (lambda folder: torn(folder / "nyu_normals_gt/train/00005.png"), "00005.png is damaged"),
        (lambda folder: (folder / "nyu_normals_gt/train/00005.png").unlink(), "00005.png is damaged .*No such file"),
    ],
)
def test_wrong_rooms_are_named(mat, edit, message):
    edit(mat)
    with pytest.raises(InputError, match=message):
        make(mat).train[2]
