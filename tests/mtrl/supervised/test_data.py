import gzip
import struct
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from mtrl.errors import InputError
from mtrl.supervised import Split, benchmarks
from mtrl.supervised.data.digit_attributes import ATTRIBUTES
from mtrl.supervised.data.multi_mnist import multi_mnist, read_idx
from mtrl.supervised.data.overlay import overlay


def make(*arguments: Any, **options: Any) -> Any:
    """A benchmark whose splits are all in memory."""
    return benchmarks.make(*arguments, **options)


def idx(array):
    return struct.pack(f">4B{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A data directory in torchvision's layout: 12 training and 5 test digits, half of the files gzipped."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, count in (("train", 12), ("t10k", 5)):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(random.integers(0, 256, (count, 28, 28))))
        (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count) % 10)))
    return tmp_path


def test_overlay_puts_the_digits_where_the_papers_do():
    left, right = torch.rand(2, 1, 28, 28)
    image = overlay(left, right, offset=6, canvas=36, size=36)[0]
    assert torch.equal(image[:6, :28], left[0, :6])
    assert torch.equal(image[28:34, 6:34], right[0, 22:])
    assert torch.equal(image[6:28, 6:28], torch.maximum(left[0, 6:, 6:], right[0, :22, :22]))
    assert not image[34:].any()
    assert not image[:, 34:].any()


def test_resampling_takes_the_nearest_pixel():
    # Of 36 pixels, the centres of 28 wider ones: (i + 0.5) * 36 / 28, rounded down.
    left, right = torch.rand(2, 1, 28, 28)
    canvas = overlay(left, right, offset=6, canvas=36, size=36)
    small = overlay(left, right, offset=6, canvas=36, size=28)
    rows = [int((i + 0.5) * 36 / 28) for i in range(28)]
    assert torch.equal(small[0], canvas[0][rows][:, rows])


def source_digits(benchmark):
    return {
        name: {image.numpy().tobytes() for task in ("RL", "RR") for image in getattr(benchmark, name).targets[task]}
        for name in ("train", "validation", "test")
    }


def test_no_digit_is_in_two_splits():
    digits = source_digits(make("multi_digits", pairs_per_digit=2))
    assert digits["train"].isdisjoint(digits["validation"] | digits["test"])
    assert digits["validation"].isdisjoint(digits["test"])


def test_every_digit_is_the_left_one_equally_often():
    benchmark = make("multi_digits", pairs_per_digit=3)
    assert len(benchmark.train) == 3 * 1078
    assert len(benchmark.train.inputs[0, 0]) == 10
    counts = {image.numpy().tobytes(): 0 for image in benchmark.train.targets["RL"]}
    for image in benchmark.train.targets["RL"]:
        counts[image.numpy().tobytes()] += 1
    assert set(counts.values()) == {3}


def test_the_image_shows_the_digits_of_its_targets():
    split = make("multi_digits", pairs_per_digit=1).validation
    again = overlay(split.targets["RL"], split.targets["RR"], offset=2, canvas=10, size=10)
    assert torch.equal(split.inputs[:, 0], again)


def test_data_do_not_depend_on_the_global_seed_but_on_their_own():
    torch.manual_seed(1)
    one = make("multi_digits", ["CL"], pairs_per_digit=1)
    torch.manual_seed(2)
    two = make("multi_digits", ["CL"], pairs_per_digit=1)
    other = make("multi_digits", ["CL"], pairs_per_digit=1, data_seed=1)
    assert torch.equal(one.train.inputs, two.train.inputs)
    assert not torch.equal(one.train.inputs, other.train.inputs)


@pytest.mark.parametrize("tasks", [["CL"], ["RR", "CL"], ["CL", "CR", "RL", "RR"]])
def test_any_combination_of_tasks(tasks):
    benchmark = make("multi_digits", tasks, pairs_per_digit=1, dropout=0.5)
    outputs = benchmark.model(benchmark.train.inputs[:3])
    assert list(outputs) == list(benchmark.tasks) == tasks
    for name, task in benchmark.tasks.items():
        assert task.loss(outputs[name], benchmark.train.targets[name][:3]).ndim == 0


def test_multi_mnist_from_torchvisions_layout(mnist):
    benchmark: Any = multi_mnist(("CL", "RR"), data_dir=str(mnist), validation=4)
    assert [len(s) for s in (benchmark.train, benchmark.validation, benchmark.test)] == [8, 4, 5]
    assert benchmark.train.inputs.shape == (8, 1, 28, 28)
    assert benchmark.train.targets["CL"].tolist() == list(range(8))
    assert benchmark.validation.targets["CL"].tolist() == [8, 9, 0, 1]
    assert benchmark.model(benchmark.test.inputs)["RR"].shape == (5, 28, 28)
    assert benchmark.train.inputs.min() == pytest.approx(-0.1307 / 0.3081)


def test_the_folder_itself_will_do(mnist):
    assert len(multi_mnist(data_dir=str(mnist / "MNIST" / "raw"), validation=4).train) == 8


def test_a_missing_file_is_named_with_its_source(mnist):
    file = mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    file.unlink()
    with pytest.raises(InputError) as caught:
        multi_mnist(data_dir=str(mnist), validation=4)
    message = str(caught.value)
    for part in ("t10k-labels-idx1-ubyte", str(file.parent), "yann.lecun.com", "CC BY-SA 3.0"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"])
def test_a_half_copied_file_is_named(mnist, name):
    file = mnist / "MNIST" / "raw" / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"{name}.* partly copied"):
        multi_mnist(data_dir=str(mnist), validation=4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx(np.zeros((12, 28, 27))), "28x27 pixels, expected 28x28"),
        ("train-images-idx3-ubyte", idx(np.zeros((11, 28, 28))), "11 images, but .* 12 labels"),
        ("train-images-idx3-ubyte", idx(np.zeros((12, 28))), "not an IDX file of bytes in 3 dimensions"),
        ("train-images-idx3-ubyte", b"<html>not found</html>", "not an IDX file"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(np.array([1] * 11 + [12]))), "label 12 of record 11"),
        ("train-labels-idx1-ubyte.gz", b"not gzip at all", "damaged"),
    ],
    ids=["image size", "too few images", "dimensions", "html", "label", "not gzip"],
)
def test_a_wrong_file_is_named_with_what_is_wrong(mnist, name, content, message):
    (mnist / "MNIST" / "raw" / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        multi_mnist(data_dir=str(mnist), validation=4)
    assert name in str(caught.value)


def test_an_empty_set_is_refused(mnist):
    raw = mnist / "MNIST" / "raw"
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((0, 28, 28))))
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(0))))
    with pytest.raises(InputError, match="has no images"):
        multi_mnist(data_dir=str(mnist), validation=4)


def test_read_idx_gives_the_array(tmp_path):
    array = np.arange(24).reshape(2, 3, 4)
    (tmp_path / "a").write_bytes(idx(array))
    assert np.array_equal(read_idx(tmp_path / "a", 3), array)


def test_splits_are_checked():
    with pytest.raises(InputError, match="no samples"):
        Split(torch.zeros(0, 2), {})
    with pytest.raises(InputError, match="2 inputs, but 3 targets of CL"):
        Split(torch.zeros(2, 2), {"CL": torch.zeros(3)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "multi_digit"}, "did you mean 'multi_digits'"),
        ({"name": "multi_digits", "tasks": ["CK"]}, "unknown task 'CK'"),
        ({"name": "multi_digits", "tasks": ["CL", "CL"]}, "twice"),
        ({"name": "multi_digits", "tasks": []}, "no task"),
        ({"name": "multi_digits", "dropout": 1.0}, "dropout"),
        ({"name": "multi_digits", "pairs": 1}, "unknown option of multi_digits 'pairs'"),
        ({"name": "multi_digits", "pairs_per_digit": 0}, "pairs_per_digit: expected an integer of at least 1"),
        ({"name": "multi_mnist"}, "data_dir"),
        ({"name": "custom", "file": "/nowhere.py"}, "no Python file"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        make(**arguments)


def test_a_benchmark_of_ones_own(tmp_path):
    benchmark = make("custom", ["ink"], file="mtrl/supervised/data/example.py")
    assert list(benchmark.tasks) == ["ink"]
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match="make_benchmark"):
        make("custom", file=str(tmp_path / "empty.py"))


def test_attributes_of_digits_follow_from_the_digit():
    benchmark = make("digit_attributes")
    assert list(benchmark.tasks) == list(ATTRIBUTES)
    assert [len(split) for split in (benchmark.train, benchmark.validation, benchmark.test)] == [1078, 359, 360]
    source = load_digits()
    images = source.images.astype(np.float32)
    known = {image.tobytes(): digit for image, digit in zip(images, source.target, strict=True)}
    rows = zip(benchmark.test.inputs[:, 0] * 16, *benchmark.test.targets.values(), strict=True)
    for image, *attributes in rows:
        digit = known[image.numpy().tobytes()]
        assert attributes == [digit in digits for digits in ATTRIBUTES.values()]
    of_numbers = [ATTRIBUTES[name] for name in ("even", "large", "prime", "square")]
    prime = [number for number in range(2, 10) if all(number % other for other in range(2, number))]
    assert of_numbers == [tuple(range(0, 10, 2)), tuple(range(5, 10)), tuple(prime), (0, 1, 4, 9)]
    of_one_side = {tuple((digit in digits) == (0 in digits) for digit in range(10)) for digits in ATTRIBUTES.values()}
    assert len(of_one_side) == len(ATTRIBUTES)  # no two are alike, nor each other's opposite
    assert benchmark.model(benchmark.test.inputs)["prime"].shape == (360,)
    with pytest.raises(InputError, match="unknown task 'odd'"):
        make("digit_attributes", ["odd"])


def test_multi_fashion_is_lin_et_als(mnist):
    benchmark = make("multi_fashion", ["CL", "CR", "RL", "RR"], data_dir=str(mnist), validation=4, pairs_per_digit=6)
    split = benchmark.train
    assert split.inputs.shape == (48, 1, 36, 36)
    images = split.inputs[:, 0] * 0.3530 + 0.2860
    apart = F.pad(split.targets["RL"], (0, 8, 0, 8)).maximum(F.pad(split.targets["RR"], (8, 0, 8, 0)))
    torch.testing.assert_close(images, apart)
    assert split.targets["CL"].tolist() == [*range(8)] * 6
    assert not bool((split.targets["CL"] == split.targets["CR"]).any())  # "with different digits"
    assert set(split.targets["CR"].tolist()) == set(range(8))
    assert benchmark.model(split.inputs[:3])["RR"].shape == (3, 28, 28)
    sizes = [tuple(p.shape) for p in benchmark.model.parameters() if p.ndim > 1][:5]
    assert sizes == [(10, 1, 9, 9), (20, 10, 5, 5), (50, 500), (10, 50), (10, 50)]  # the authors' model_lenet.py
    raw = mnist / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.full(5, 3))))
    with pytest.raises(InputError, match="all 5 images of a split have label 3"):
        make("multi_fashion", data_dir=str(mnist), validation=4)
    with pytest.raises(InputError, match=r"there is no train-images.*dataset-fashion-mnist"):
        make("multi_fashion", data_dir="/nowhere")


def test_multi_fashion_and_mnist_has_the_digit_on_the_left(mnist, tmp_path):
    other = tmp_path / "fashion"
    other.mkdir()
    for name, count in (("train", 9), ("t10k", 6)):
        (other / f"{name}-images-idx3-ubyte").write_bytes(idx(np.full((count, 28, 28), 51)))
        (other / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.full(count, 7)))
    where = {"data_dir": str(other), "mnist_dir": str(mnist)}
    benchmark = make("multi_fashion_and_mnist", ["CL", "CR", "RR"], validation=3, **where)
    assert [len(split) for split in (benchmark.train, benchmark.validation, benchmark.test)] == [18, 6, 10]
    assert set(benchmark.train.targets["CR"].tolist()) == {7}
    assert torch.equal(benchmark.test.targets["RR"], torch.full((10, 28, 28), 51 / 255))
    assert benchmark.test.targets["CL"].tolist() == [0, 1, 2, 3, 4] * 2
    with pytest.raises(InputError, match=r"needs benchmark.mnist_dir=DIR. MNIST is published"):
        make("multi_fashion_and_mnist", data_dir=str(other))
