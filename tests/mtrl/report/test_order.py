"""What is one benchmark: the same tasks in any order; two of a user's own are two."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mtrl.errors import InputError
from mtrl.report.runs import Run, load_runs
from mtrl.report.supervised import SupervisedComparison, compare_supervised, supervised_tables
from mtrl.report.training import compare_training, training_tables
from tests.mtrl.report.synthetic_runs import TASKS, write_run, write_supervised_sweep, write_sweep


def load(folder: Path) -> tuple[list[Run], list[str]]:
    return load_runs(folder, "eval/success_mean", "eval/success/")


def reorder(directory: Path) -> None:
    """The same run with its tasks the other way round, as if they had been named so."""
    config = yaml.safe_load((directory / "config.yaml").read_text())
    config["tasks"] = config["tasks"][::-1]
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    matrices = directory / "matrices.jsonl"
    turned = []
    for line in matrices.read_text().splitlines():
        entry = json.loads(line)
        turned.append({key: [row[::-1] for row in value[::-1]] if isinstance(value, list) else value
                       for key, value in entry.items()})  # fmt: skip
    matrices.write_text("".join(json.dumps(entry) + "\n" for entry in turned))
    if (directory / "summary.json").exists():
        summary = json.loads((directory / "summary.json").read_text())
        for key in ("metrics", "test", "validation"):
            if key in summary:
                summary[key] = dict(reversed(summary[key].items()))
        (directory / "summary.json").write_text(json.dumps(summary))


def test_the_order_of_tasks_changes_nothing(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"unitary": 0.3, "pcgrad": 0.8}, range(3))

    def found() -> tuple[list[str], list[str], list[Any]]:
        runs, left_out = load(tmp_path)
        assert all(run.tasks == TASKS for run in runs)
        comparison = compare_training(
            runs, metric="eval/success_mean", baseline="unitary", seed=0, last_k=3, left_out=left_out
        )
        cosines = [values for run in runs for values in run.metrics.cosines.values()]
        return [table.csv() for table in training_tables(comparison)], comparison.warnings, cosines

    before = found()
    for name in ("pcgrad-1", "unitary-2"):
        reorder(tmp_path / name)
    after = found()
    assert after[:2] == before[:2]
    np.testing.assert_array_equal(after[2], before[2])


def test_the_order_of_supervised_tasks_changes_nothing(tmp_path: Path) -> None:
    write_supervised_sweep(tmp_path, {"unitary": 0.9, "mgda": 0.97}, range(3))

    def found() -> SupervisedComparison:
        runs, left_out = load_runs(tmp_path, "", "")
        (comparison,) = compare_supervised(runs, baseline="unitary", seed=0, left_out=left_out)
        return comparison

    before = found()
    for name in ("CL-RR-mgda-1", "CL-RR-unitary-2"):
        reorder(tmp_path / name)
    after = found()
    assert [table.csv() for table in supervised_tables(after)] == [table.csv() for table in supervised_tables(before)]
    assert after.warnings == before.warnings


@pytest.mark.parametrize(
    "other",
    [{"tasks": ["reach-v3"]}, {"tasks": ["reach-v3", "push-v3", "door-open-v3"]}],
    ids=["fewer", "another"],
)
def test_lists_of_other_tasks_are_other_benchmarks(tmp_path: Path, other: dict[str, Any]) -> None:
    own = {"benchmark": {"name": "custom"}}
    write_run(tmp_path / "a", config=own)
    write_run(tmp_path / "b", config=own, **other)
    with pytest.raises(InputError, match=r"different benchmarks .*different tasks in .*a and .*b"):
        load(tmp_path)


def test_files_of_ones_own_are_benchmarks_of_their_own(tmp_path: Path) -> None:
    write_supervised_sweep(tmp_path, {"unitary": 0.9}, range(2))
    for number, name in enumerate(["mine.py", "yours.py"]):
        file = tmp_path / f"CL-RR-unitary-{number}" / "config.yaml"
        config = yaml.safe_load(file.read_text())
        config["benchmark"] = {"name": "custom", "file": f"/x/{name}"}
        file.write_text(yaml.safe_dump(config))
    for directory in (tmp_path / "CL-0", tmp_path / "CL-1", tmp_path / "RR-0", tmp_path / "RR-1"):
        for file in directory.iterdir():
            file.unlink()
    with pytest.raises(InputError, match=r"custom mine.py in .*, custom yours.py in "):
        load_runs(tmp_path, "", "")


def test_finished_runs_without_the_metric_are_not_called_unfinished(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"unitary": 0.3}, range(2))
    file = write_run(tmp_path / "other", "pcgrad") / "metrics.jsonl"
    file.write_text(file.read_text().replace("eval/success", "eval/return"))
    runs, left_out = load(tmp_path)
    found = compare_training(runs, metric="eval/success_mean", baseline="unitary", seed=0, last_k=3, left_out=left_out)
    assert not any("not finished" in line for line in found.warnings)
    assert any(line == "Runs without an evaluation of this metric: other." for line in found.warnings)
