"""Fixed weights from a run's logged ones, by hand."""

import json
from pathlib import Path

import pytest

from mtrl.errors import InputError
from mtrl.run.extracted_weights import extracted_weights, weights_of_run

INTERVALS = [[1.0, 0.0], [2.0, 1.0], [4.0, 0.0]]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [7 / 3, 1 / 3]),
        ("ema", [0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4, 0.9 * 0.1]),
        ("last", [4.0, 0.0]),
    ],
)
def test_the_ways(how: str, expected: list[float]) -> None:
    assert extracted_weights(INTERVALS, how) == pytest.approx(expected, rel=1e-15)
    assert extracted_weights(INTERVALS[-1:], how) == [4.0, 0.0]


def make_run(directory: Path, finished: bool = True) -> Path:
    directory.mkdir()
    (directory / "config.yaml").write_text("tasks: [a, b]\n")
    entries = [{"step": 0, "train/loss": 1.0}, {"step": 1, "weight/a": None, "weight/b": 3.0}]
    entries += [{"step": i, "weight/a": a, "weight/b": b} for i, (a, b) in enumerate(INTERVALS, 2)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    if finished:
        (directory / "summary.json").write_text("{}")
    return directory


def test_weights_go_to_their_tasks_and_zero_is_a_weight(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert weights_of_run(run, ["b", "a"], "weight", "last") == [0.0, 4.0]
    assert weights_of_run(run, ["a", "b"], "weight", "mean") == pytest.approx([7 / 3, 1 / 3])
    assert weights_of_run(run, ["a", "b"], "conflict/actor/weight", "mean") is None


def test_what_cannot_be_extracted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run directory"):
        weights_of_run(tmp_path, ["a"], "weight", "ema")
    run = make_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"is of \['a', 'b'\], not of \['a', 'c'\]"):
        weights_of_run(run, ["a", "c"], "weight", "ema")
    with pytest.raises(InputError, match="unknown weights_how 'emma': did you mean 'ema'"):
        weights_of_run(run, ["a", "b"], "weight", "emma")
    with pytest.raises(InputError, match="is not finished"):
        weights_of_run(make_run(tmp_path / "half", finished=False), ["a", "b"], "weight", "ema")
