"""scikit-image's stereo picture, from files of the same kind: a scene whose views differ by known disparities."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtrl import combiners
from mtrl.errors import InputError
from mtrl.run.directory import RunDirectory
from mtrl.run.metrics import read_metrics
from mtrl.supervised import Split
from mtrl.supervised.data.motorcycle import motorcycle
from mtrl.supervised.loop import Schedule, Trainer
from mtrl.supervised.methods.combined import CombinedUpdate
from mtrl.supervised.updates import OptimizerOptions, Setup

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """140x741 pixels; red says the column, green the row; the disparity grows by rows and lacks in a corner."""
    rows, columns = np.mgrid[:140, :741]
    left = np.stack([columns // 3, rows, np.full_like(rows, 90)], 2).astype(np.uint8)
    Image.fromarray(left).save(tmp_path / "motorcycle_left.png")
    Image.fromarray(np.roll(left, -5, 1)).save(tmp_path / "motorcycle_right.png")
    disparity = rows.astype(np.float32)
    disparity[:10, :20], disparity[:10, 20:30] = np.nan, np.inf
    np.savez_compressed(tmp_path / "motorcycle_disp.npz", disparity)
    return tmp_path


def test_patches_are_where_they_were_and_no_split_has_anothers_columns(folder: Path) -> None:
    made = motorcycle(data_dir=str(folder))
    splits = [split for split in (made.train, made.validation, made.test) if isinstance(split, Split)]
    assert [len(split) for split in splits] == [14, 4, 4]
    starts = [(split.inputs[:, 0, 0, 0] * 255 * 3).round().int().tolist() for split in splits]
    assert starts[0] == [3 * (64 * column // 3) for column in range(7)] * 2
    assert min(starts[1]) >= 64 * 7 - 2
    assert min(starts[2]) >= 64 * 9 - 2
    patch = splits[0].targets["disparity"][7]  # the first of the second row
    torch.testing.assert_close(patch[0, :, 3], torch.arange(64, 128) / 64)
    first = splits[0].targets["disparity"][0, 0]
    assert int(first.isnan().sum()) == 10 * 30
    right = splits[0].targets["right"][1]
    torch.testing.assert_close(right[0, 0] * 255, ((torch.arange(64, 128) + 5) // 3).float())
    outputs = made.model(splits[2].inputs)
    assert {task: tuple(output.shape) for task, output in outputs.items()} == {
        "disparity": (4, 1, 64, 64),
        "right": (4, 3, 64, 64),
    }


def test_it_learns(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = motorcycle(data_dir=str(folder))
    update = CombinedUpdate(Setup(made, combiners.make("pcgrad", 2), OptimizerOptions(), "representation"))
    run = RunDirectory(tmp_path / "run", {"seed": 1})
    Trainer(made, update, run, Schedule(6, 7, 0.003), seed=1, device=CPU, show_progress=False).train()
    run.close()
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for task in made.tasks:
        assert entries[-1][f"train/loss/{task}"] < 0.8 * entries[0][f"train/loss/{task}"]


def test_what_is_not_scikit_images_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown task 'depth'"):
        motorcycle(["depth"], data_dir=str(folder))
    Image.new("RGB", (741, 100)).save(folder / "motorcycle_right.png")
    with pytest.raises(InputError, match="of different sizes"):
        motorcycle(data_dir=str(folder))
    np.savez(folder / "motorcycle_disp.npz", np.zeros(3))
    with pytest.raises(InputError, match=r"motorcycle_disp.npz is of shape \(3,\)"):
        motorcycle(data_dir=str(folder))
    for content in (b"PK\x03\x04", b""):
        (folder / "motorcycle_disp.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"motorcycle_disp.npz is missing or damaged \(.*scikit-image"):
            motorcycle(data_dir=str(folder))
    (folder / "motorcycle_left.png").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"motorcycle_left.png is missing or damaged"):
        motorcycle(data_dir=str(folder))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install scikit-image, or data_dir=DIR with motorcycle_left\.png"):
        motorcycle()
