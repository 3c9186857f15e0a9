"""Damaged files: metrics, checkpoints and data sets are read right, or refused in one line."""

import gzip
import io
import json
import shutil
import struct
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.io import savemat

from mtrl.errors import InputError, RunError
from mtrl.linear import data as regression_data
from mtrl.report.runs import load_runs
from mtrl.run.checkpoints import Checkpoints
from mtrl.run.metrics import MetricsWriter, read_metrics
from mtrl.supervised.data.multi_mnist import read_idx
from tests.reliability.runs import damage, fuzzed, refused

CONFIG = """
seed: 1
tasks: [reach-v3, push-v3]
benchmark: {name: mt10}
combiner: {name: unitary}
agent: {}
eval: {episodes: 2}
"""
ENTRIES: list[dict[str, Any]] = [
    entry
    for step in (100, 200, 300)
    for entry in (
        {"step": step, "time": step / 10, "train/critic_loss": 0.25, "speed/updates_per_s": 12.5},
        {"step": step, "time": step / 10, "conflict/critic/cosines": [[1.0, None], [-0.5, 1.0]]},
        {
            "step": step,
            "time": step / 10,
            "eval/success_mean": 0.5,
            "eval/success/reach-v3": 1.0,
            "eval/success/push-v3": 0.0,
        },
    )
]
METRICS = "".join(json.dumps(entry) + "\n" for entry in ENTRIES).encode()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "time", "x"]), inner),
    max_leaves=6,
)


@fuzzed
@given(
    damage(METRICS)
    | st.binary(max_size=200)
    | st.lists(JSON, max_size=4).map(lambda lines: "".join(json.dumps(line) + "\n" for line in lines).encode())
    | st.integers(1, 20_000).map(lambda depth: METRICS + b"[" * depth + b"\n")
)
def test_metrics(folder: Path, content: bytes) -> None:
    file = folder / "metrics.jsonl"
    file.write_bytes(content)
    lines = content.split(b"\n")
    try:
        entries = read_metrics(file)
    except InputError as error:
        refused(error)
        return
    wanted = [json.loads(line) for line in lines[:-1] if line.strip()]
    assert repr(entries[: len(wanted)]) == repr(wanted)
    assert len(entries) - len(wanted) <= 1
    assert all(type(entry["step"]) is int for entry in entries)


@fuzzed
@given(damage(METRICS))
@example(METRICS + b"[" * 20_000)
def test_metrics_of_a_run_that_goes_on_or_is_compared(folder: Path, content: bytes) -> None:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(CONFIG)
    (run / "metrics.jsonl").write_bytes(content)
    try:
        runs, _ = load_runs(folder, "eval/success_mean", "eval/success/")
    except InputError as error:
        refused(error)
    else:
        assert runs[0].metrics.task_scores.shape == (len(runs[0].metrics.steps), 2)
    try:
        writer = MetricsWriter(run, 200)
    except InputError as error:
        refused(error)
        assert (run / "metrics.jsonl").read_bytes() == content
    else:
        writer.close()
        assert [len(read_metrics(run / "metrics.jsonl")), 0] == writer.entries


class Ring:
    """The simplest stream: numbers in a ring."""

    def __init__(self) -> None:
        self.capacity, self.added = 8, 0
        self.values = torch.full((8,), -1)

    def slice(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return {"values": self.values[torch.arange(start, stop) % 8]}

    def restore(self, start: int, entries: dict[str, torch.Tensor]) -> None:
        values = entries["values"]
        self.values[torch.arange(start, start + len(values)) % 8] = values

    def clear(self) -> None:
        self.added = 0


@pytest.fixture(scope="module")
def store(folder: Path) -> dict[str, bytes]:
    """The files of two checkpoints with a stream."""
    store, ring = Checkpoints(folder / "made"), Ring()
    for step in (10, 20):
        for _ in range(step // 4):
            ring.values[ring.added % 8] = ring.added
            ring.added += 1
        store.save(step, {"step": step, "weights": torch.arange(5.0) + step}, ring)
    return {file.name: file.read_bytes() for file in (folder / "made").iterdir()}


@fuzzed
@given(st.data())
def test_checkpoints(folder: Path, store: dict[str, bytes], data: st.DataObject) -> None:
    """What is loaded is one of the two, whole; or it is said that there is none."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    (folder / "store").mkdir()
    for name, content in store.items():
        (folder / "store" / name).write_bytes(content)
    for name in data.draw(st.lists(st.sampled_from(sorted(store)), min_size=1, max_size=2, unique=True)):
        if data.draw(st.booleans()):
            (folder / "store" / name).write_bytes(data.draw(damage(store[name])))
        else:
            (folder / "store" / name).unlink()
    ring = Ring()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            loaded = Checkpoints(folder / "store").load(ring)
        except RunError as error:
            refused(error)
            return
    if loaded is None:
        assert not list((folder / "store").glob("*.json"))
        return
    step, state = loaded
    assert state["step"] == step
    assert torch.equal(state["weights"], torch.arange(5.0) + step)
    assert ring.values.tolist() == {10: [0, 1, -1, -1, -1, -1, -1, -1], 20: [0, 1, 2, 3, 4, 5, 6, -1]}[step]
    assert bool(said) == (step == 10 and (folder / "store" / "step-20.json").exists())


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
IDX = bytes([0, 0, 8, 3]) + np.array(IMAGES.shape, ">i4").tobytes() + IMAGES.tobytes()


@fuzzed
@given(
    damage(IDX)
    | damage(gzip.compress(IDX, mtime=0))
    | st.tuples(*[st.integers(0, 2**31 - 1) | st.sampled_from([0, 1, 24])] * 3).map(
        lambda shape: bytes([0, 0, 8, 3]) + np.array(shape, ">i4").tobytes() + IMAGES.tobytes()
    ),
    st.sampled_from([".gz", ""]),
)
def test_idx(folder: Path, content: bytes, suffix: str) -> None:
    file = folder / f"images{suffix}"
    file.write_bytes(content)
    try:
        images = read_idx(file, 3)
    except InputError as error:
        refused(error)
        return
    plain = gzip.decompress(content) if suffix else content
    assert images.dtype == np.uint8
    assert images.tobytes() == plain[16:]
    assert list(images.shape) == np.frombuffer(plain, ">i4", 3, 4).tolist()


NUMBERS = np.array([[1.5, -2.0, 3.25], [4.0, 5.5, -6.0], [7.0, 8.0, 9.5]])
CSV = "a,b,c\n" + "".join(",".join(map(str, row)) + "\n" for row in NUMBERS.tolist())


@fuzzed
@given(damage(CSV.encode()) | st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_csv(folder: Path, content: bytes) -> None:
    file = folder / "table.csv"
    file.write_bytes(content)
    try:
        inputs, targets = regression_data.load(str(file), 1)
    except InputError as error:
        refused(error)
        return
    table = np.hstack([inputs, targets])
    assert np.isfinite(table).all()
    last = [line for line in content.decode().splitlines() if line.strip()][-1]
    assert table[-1].tolist() == [float(cell) for cell in last.replace('"', "").split(",")]


def matlab() -> bytes:
    file = io.BytesIO()
    savemat(file, {"table": NUMBERS})
    return file.getvalue()


@fuzzed
@given(damage(matlab()) | st.binary(max_size=300))
def test_matlab(folder: Path, content: bytes) -> None:
    """Some of the damage crashes SciPy itself; a number is only ever one that stands in the file."""
    file = folder / "table.mat"
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's, about names that are there twice
        try:
            inputs, targets = regression_data.load(str(file), 1)
        except InputError as error:
            refused(error)
            return
    for number in np.hstack([inputs, targets]).ravel():
        assert struct.pack("<d", number) in content
