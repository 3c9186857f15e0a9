"""Methods that are tuned by some seeds and compared by others."""

from pathlib import Path

import numpy as np
import pytest

from mtrl.errors import InputError
from mtrl.report.runs import load_runs
from mtrl.report.training import TrainingComparison, compare_training, training_section, training_tables
from tests.mtrl.report.synthetic_runs import write_run

LOW, HIGH = {"agent": {"learning_rate": 0.0001}}, {"agent": {"learning_rate": 0.001}}


def comparison(folder: Path, tuning_seeds: list[int]) -> TrainingComparison:
    runs, left_out = load_runs(folder, "eval/success_mean", "eval/success/")
    return compare_training(
        runs,
        metric="eval/success_mean",
        baseline="unitary",
        seed=0,
        last_k=3,
        tuning_seeds=tuning_seeds,
        left_out=left_out,
    )


def write(folder: Path, method: str, low: dict[int, float], high: dict[int, float]) -> None:
    """Runs of a method with both rates: by seed, the level that they learn towards."""
    for name, config, levels in (("low", LOW, low), ("high", HIGH, high)):
        for seed, level in levels.items():
            write_run(folder / f"{method}-{name}-{seed}", method, seed, level=level, config=config)


def test_seeds_of_tuning_choose_and_the_others_compare(tmp_path: Path) -> None:
    write(tmp_path, "unitary", {1: 0.9, 2: 0.9, 3: 0.3, 4: 0.3}, {1: 0.4, 2: 0.4, 3: 0.9, 4: 0.9})
    write(tmp_path, "pcgrad", {1: 0.2, 2: 0.2, 3: 0.9, 4: 0.9}, {1: 0.6, 2: 0.6, 3: 0.6, 4: 0.6})
    found = comparison(tmp_path, [2, 1, 1])
    unitary, pcgrad = found.methods
    assert (unitary.name, pcgrad.name) == ("unitary", "pcgrad")
    expected_runs = {"unitary-low-3", "unitary-low-4", "pcgrad-high-3", "pcgrad-high-4"}
    assert {run.directory.name for run in found.runs} == expected_runs
    assert {run.directory for run in found.compared} == {run.directory for run in found.runs}
    for method in found.methods:
        assert method.seeds == [3, 4]
        expected = [run.metrics.task_scores[-3:].mean(0) for run in method.every]
        np.testing.assert_allclose(method.scores, expected)
        np.testing.assert_allclose(method.reached["final"], [run.metrics.task_scores[-1] for run in method.every])
    (paired,) = found.paired
    assert paired.seeds == 2
    assert paired.difference.value == pytest.approx(pcgrad.scores.mean() - unitary.scores.mean())
    assert found.warnings[0] == (
        "Options were chosen by seeds that are not compared (1, 2): "
        "pcgrad learning_rate=0.001 (of 2), unitary learning_rate=0.0001 (of 2)."
    )


def test_the_trials_are_a_table_and_a_picture(tmp_path: Path) -> None:
    write(tmp_path, "unitary", {1: 0.9, 2: 0.9, 3: 0.9}, {1: 0.1, 2: 0.1})
    found = comparison(tmp_path, [1, 2])
    (table,) = [table for table in training_tables(found) if table.name == "trials"]
    low, high = table.rows
    assert (low[1], high[1]) == ("learning_rate=0.0001", "learning_rate=0.001")
    assert (low[0], low[2], low[4]) == ("unitary", 2, "yes")
    assert (high[0], high[2], high[4]) == ("unitary", 2, "no")
    assert low[3].value > high[3].value  # type: ignore[union-attr]
    section = training_section(found)
    assert section.seeds == "3, options chosen by 1 to 2"
    (picture,) = [picture for picture in section.pictures if picture.name == "trials"]
    assert [label.get_text() for label in picture.figure.axes[0].get_yticklabels()] == [
        f"{row[0]} {row[1]}" for row in table.rows
    ]


def test_without_tuning_there_are_no_trials(tmp_path: Path) -> None:
    write(tmp_path, "unitary", {1: 0.9, 2: 0.9}, {})
    section = training_section(comparison(tmp_path, []))
    assert "trials" not in [table.name for table in section.tables]
    assert "trials" not in [picture.name for picture in section.pictures]


def test_what_lacks_a_seed_of_tuning_cannot_be_chosen(tmp_path: Path) -> None:
    write(tmp_path, "unitary", {1: 0.2, 2: 0.2, 3: 0.2}, {1: 0.9, 3: 0.9})
    write(tmp_path, "pcgrad", {1: 0.2, 2: 0.2, 3: 0.2}, {1: 0.9, 2: 0.9, 3: 0.9})
    found = comparison(tmp_path, [1, 2])
    assert found.methods[0].every[0].directory.name == "unitary-low-3"
    assert found.warnings[1:3] == [
        "Not scored with all of these seeds, and so not to be chosen: unitary learning_rate=0.001.",
        "Methods were not tuned alike: 2 configurations of pcgrad, 1 configuration of unitary.",
    ]


def test_nothing_to_choose_from_or_to_compare_by(tmp_path: Path) -> None:
    write(tmp_path, "unitary", {1: 0.9, 2: 0.9}, {1: 0.1, 2: 0.1})
    with pytest.raises(InputError, match=r"run the best with other seeds, .*: unitary learning_rate=0.0001$"):
        comparison(tmp_path, [1, 2])
    with pytest.raises(InputError, match=r"tuning_seeds=\[1, 7\]: no configuration of unitary was scored"):
        comparison(tmp_path, [1, 7])


def test_a_method_without_other_seeds_is_named(tmp_path: Path) -> None:
    write(tmp_path, "unitary", {1: 0.9, 2: 0.9, 3: 0.9}, {1: 0.1, 2: 0.1})
    write(tmp_path, "pcgrad", {1: 0.9, 2: 0.9}, {1: 0.1, 2: 0.1})
    found = comparison(tmp_path, [1, 2])
    assert [method.seeds for method in found.methods] == [[3], []]
    assert "No run of pcgrad can be scored yet." in found.warnings
    assert training_section(found).pictures
