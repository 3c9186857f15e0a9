"""Supervised runs compared: gains, ranks and verdicts by hand, sections, what is missing, and the report."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mtrl.errors import InputError
from mtrl.report import drawing
from mtrl.report.page import write_report
from mtrl.report.references import published
from mtrl.report.runs import load_runs
from mtrl.report.supervised import (
    SINGLE,
    SupervisedComparison,
    compare_supervised,
    supervised_section,
    supervised_tables,
)
from mtrl.report.tables import Table
from mtrl.supervised.data.qm9 import PROPERTIES
from tests.mtrl.report.synthetic_runs import write_run, write_supervised_run, write_supervised_sweep
from tests.mtrl.report.test_page import Page, sketched  # noqa: F401

FIGURES = [
    "agreement",
    "alignment",
    "conflict",
    "cosines",
    "distance",
    "epoch_time",
    "intervals",
    "memory",
    "metrics",
    "validation",
    "weights",
]
TABLES = ["alignment", "configuration", "cost", "distance", "gains", "methods", "metrics", "paired_differences", "runs"]


def comparisons(folder: Path, baseline: str = "unitary") -> list[SupervisedComparison]:
    runs, left_out = load_runs(folder, "eval/success_mean", "eval/success/")
    return compare_supervised(runs, baseline=baseline, seed=0, left_out=left_out)


def table(comparison: SupervisedComparison, name: str) -> Table:
    return next(own for own in supervised_tables(comparison) if own.name == name)


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """Two seeds; accuracy (higher is better) 0.8 alone, error (lower is better) 0.2 alone, both means over seeds."""
    for seed, (accuracy, error) in enumerate([(0.75, 0.25), (0.85, 0.15)]):
        write_supervised_run(tmp_path / f"CL{seed}", ["CL"], seed=seed, test={"CL": accuracy})
        write_supervised_run(tmp_path / f"RR{seed}", ["RR"], seed=seed, test={"RR": error})
        write_supervised_run(tmp_path / f"u{seed}", seed=seed, test={"CL": 0.8 - 0.04 * seed, "RR": 0.2})
        write_supervised_run(tmp_path / f"m{seed}", combiner="mgda", seed=seed, test={"CL": 0.88, "RR": 0.3})
        write_supervised_run(tmp_path / f"p{seed}", combiner="pcgrad", seed=seed, test={"CL": 0.72, "RR": 0.1})
    return tmp_path


def test_gains_are_over_single_task_training_in_per_cent(by_hand: Path) -> None:
    (found,) = comparisons(by_hand)
    assert (found.tasks, found.reference_name, found.score) == (["CL", "RR"], SINGLE, f"relative gain over {SINGLE}, %")
    assert [method.name for method in found.methods] == ["unitary", "mgda", "pcgrad"]
    unitary, mgda, pcgrad = (method.scores for method in found.methods)
    np.testing.assert_allclose(unitary, [[0, 0], [-5, 0]], atol=1e-12)
    np.testing.assert_allclose(mgda, [[10, -50], [10, -50]])
    np.testing.assert_allclose(pcgrad, [[-10, 50], [-10, 50]])


def test_tables_by_hand(by_hand: Path) -> None:
    (found,) = comparisons(by_hand)
    rows = {row[0]: row for row in table(found, "methods").rows}
    assert rows["pcgrad"][1] == 2
    assert rows["pcgrad"][2].value == pytest.approx(20)  # type: ignore[union-attr]
    # Ranks by accuracy: mgda 1, unitary 2, pcgrad 3; by error: pcgrad 1, unitary 2, mgda 3.
    assert {name: row[3] for name, row in rows.items()} == {"unitary": 2, "mgda": 2, "pcgrad": 2}
    assert [row[4].value for row in rows.values()] == pytest.approx([1.25, 20, -20])  # type: ignore[union-attr]
    gains = {row[0]: row for row in table(found, "gains").rows}
    assert table(found, "gains").header == ["method", "CL", "RR", "min", "max", "median", "std"]
    assert gains["mgda"][3:] == pytest.approx([-50, 10, -20, 30])
    metrics = {row[0]: row for row in table(found, "metrics").rows}
    assert table(found, "metrics").header == ["method", "CL accuracy ↑", "RR squared_error ↓"]
    assert [cell.value for cell in metrics[SINGLE][1:]] == pytest.approx([0.8, 0.2])  # type: ignore[union-attr]
    assert metrics["unitary"][1].low == pytest.approx(0.76)  # type: ignore[union-attr]
    (paired,) = (own for own in found.paired if own.method == "pcgrad")
    assert paired.difference.value == pytest.approx((20 + 22.5) / 2)
    assert found.verdicts()[0].startswith("Too few seeds to tell from unitary (2 paired seeds; ")
    assert "): mgda -" in found.verdicts()[0]


def test_tasks_with_one_metric_are_averaged(tmp_path: Path) -> None:
    for seed in range(2):
        write_supervised_run(tmp_path / f"u{seed}", ["CL", "CR"], seed=seed, test={"CL": 0.9, "CR": 0.8})
    (found,) = comparisons(tmp_path)
    methods = table(found, "methods")
    assert methods.header[-1] == "accuracy, mean over tasks"
    assert methods.rows[0][-1].value == pytest.approx(0.85)  # type: ignore[union-attr]


def test_several_metrics_of_a_task_are_averaged_within_it(tmp_path: Path) -> None:
    def write(name: str, tasks: list[str], combiner: str, test: dict[str, float]) -> None:
        file = write_supervised_run(tmp_path / name, tasks, combiner, test=test) / "summary.json"
        summary = json.loads(file.read_text())
        if "CL" in tasks:
            summary["metrics"]["CL/loss"] = {"name": "loss", "higher_is_better": False}
        file.write_text(json.dumps(summary))

    write("CL", ["CL"], "unitary", {"CL": 0.5, "CL/loss": 0.4})
    write("RR", ["RR"], "unitary", {"RR": 0.2})
    write("u", ["CL", "RR"], "unitary", {"CL": 0.6, "CL/loss": 0.3, "RR": 0.2})
    (found,) = comparisons(tmp_path)
    np.testing.assert_allclose(found.methods[0].scores, [[(20 + 25) / 2, 0]], atol=1e-12)
    assert list(found.metrics.values()) == ["CL accuracy", "RR squared_error", "CL loss"]
    # By metrics, the task with two of them counts twice.
    assert table(found, "methods").rows[0][4].value == pytest.approx(-(20 + 25 + 0) / 3)  # type: ignore[union-attr]


def test_metrics_in_which_the_reference_is_0_are_no_part_of_gains(tmp_path: Path) -> None:
    """The order of the tasks stays, though the first task's first metric is the one without a reference."""
    f1 = {f"{task}/f1": {"name": "f1", "higher_is_better": True} for task in ("CL", "RR")}
    alone = {"CL": 0.0, "RR": 0.2, "CL/f1": 0.5, "RR/f1": 0.4}
    for tasks, test in ((["CL"], alone), (["RR"], alone), (["CL", "RR"], alone | {"CL": 0.3, "CL/f1": 0.6})):
        file = write_supervised_run(tmp_path / "-".join(tasks), tasks) / "summary.json"
        summary = json.loads(file.read_text())
        keys = [key for key in test if key.split("/")[0] in tasks]
        summary["metrics"] |= {key: f1[key] for key in keys if key in f1}
        file.write_text(json.dumps(summary | {"test": {key: test[key] for key in keys}}))
    (found,) = comparisons(tmp_path)
    np.testing.assert_allclose(found.methods[0].scores, [[20, 0]], atol=1e-12)
    assert table(found, "methods").rows[0][4].value == pytest.approx(-(20 + 0 + 0) / 3)  # type: ignore[union-attr]
    assert found.methods[0].reached["CL"].tolist() == [0.3]
    expected = "Nothing is relative to 0: gains and delta m are without CL, in which single-task training reaches 0."
    assert expected in found.warnings


def test_gains_over_the_literatures_single_task_training(tmp_path: Path) -> None:
    """Both definitions, by hand, for Cityscapes; whose tasks are not all there, or judged by others, has no table."""
    names = {"segmentation": "miou", "segmentation/pixel_accuracy": "pixel_accuracy", "depth": "abs_error"}
    names |= {"depth/rel_error": "rel_error", "depth/more": "more"}
    test = dict(zip(names, [0.7401 * 1.1, 0.9316, 0.0125 * 0.9, 27.77 * 1.4, 3.0], strict=True))
    config = {"benchmark": {"name": "cityscapes"}}
    file = write_supervised_run(tmp_path / "u", ["segmentation", "depth"], config=config, test=test) / "summary.json"
    summary = json.loads(file.read_text())
    directions = {key: {"name": name, "higher_is_better": key[0] == "s"} for key, name in names.items()}
    file.write_text(json.dumps(summary | {"metrics": directions}))
    (found,) = comparisons(tmp_path)
    published = table(found, "published-1")
    assert published.title == "Beside single-task training of Liu et al., 2021 (CAGrad)"
    gain, loss = (cell.value for cell in published.rows[0][1:])  # type: ignore[union-attr]
    assert gain == pytest.approx(((10 + 0) / 2 + (10 - 40) / 2) / 2)
    assert loss == pytest.approx(-(10 + 0 + 10 - 40) / 4)
    del directions["depth/rel_error"]
    file.write_text(json.dumps(summary | {"metrics": directions}))
    (found,) = comparisons(tmp_path)
    assert "published-1" not in [own.name for own in supervised_tables(found)]


def test_many_tasks_are_drawn_around_a_circle(tmp_path: Path) -> None:
    """The easier half on the left, every method's means, back to where they begin; and nothing for few tasks."""
    tasks = [f"t{number}" for number in range(9)]
    for seed, more in ((0, 0.0), (1, 0.02)):
        test = {task: 0.5 + number / 20 + more for number, task in enumerate(tasks)}
        write_supervised_run(tmp_path / f"u{seed}", tasks, seed=seed, test=test)
        write_supervised_run(tmp_path / f"m{seed}", tasks, "mgda", seed, test=dict.fromkeys(tasks, 0.7))
    (found,) = comparisons(tmp_path)
    radar = next(picture for picture in supervised_section(found).pictures if picture.name == "radar")
    left, right = radar.figure.axes
    names = [[label.get_text() for label in axes.get_xticklabels()] for axes in (left, right)]
    assert names == [["t8", "t7", "t6", "t5", "t4"], ["t3", "t2", "t1", "t0"]]
    unitary, mgda = (np.asarray(line.get_ydata(), float) for line in left.lines)
    np.testing.assert_allclose(unitary, [0.91, 0.86, 0.81, 0.76, 0.71, 0.91])
    np.testing.assert_allclose(mgda, 0.7)
    assert "higher is better" in radar.caption
    with drawing.style():
        radar.save(tmp_path)


def test_what_is_published_is_of_this_projects_benchmarks() -> None:
    assert published("multi_digits") == []
    (faces, errors), (rooms,), (molecules,) = map(published, ("celeba", "nyuv2", "qm9"))
    assert sum(metrics["error"] for metrics in errors.metrics.values()) / 40 == pytest.approx(0.0877, abs=5e-5)
    assert list(errors.metrics) == list(faces.metrics)
    f1 = [metrics["f1"] for metrics in faces.metrics.values()]
    assert sum(f1) / len(f1) == pytest.approx(0.6971, abs=5e-5)
    assert len(f1) == 40
    assert faces.metrics["Male"]["f1"] == 0.97034
    labels = {"Male": "Male accuracy", "Male/f1": "Male f1", "Young": "Young accuracy", "Young/f1": "Young f1"}
    assert faces.by_key(labels) == {"Male/f1": 0.97034, "Young/f1": 0.91907}
    assert faces.by_key(labels | {"Old": "Old accuracy"}) is None
    assert sum(map(len, rooms.metrics.values())) == 9
    units = {name: f"mae_{described.unit}" for name, described in PROPERTIES.items()}
    assert {name: [unit] for name, unit in units.items()} == {n: list(m) for n, m in molecules.metrics.items()}
    schedule = yaml.safe_load(Path("configs/supervised/schedule/qm9.yaml").read_text())
    assert schedule["reference"] == {name: molecules.metrics[name][unit] for name, unit in units.items()}


def test_methods_are_told_apart_by_what_makes_them(tmp_path: Path) -> None:
    write_supervised_run(tmp_path / "a")
    write_supervised_run(tmp_path / "b", config={"method": {"name": "individual_steps", "groups": 2}})
    write_supervised_run(tmp_path / "c", config={"method": {"name": "individual_steps", "groups": 1}})
    write_supervised_run(tmp_path / "d", combiner="mgda", config={"wrt": "representation"})
    write_supervised_run(tmp_path / "e", combiner="mgda")
    (found,) = comparisons(tmp_path)
    names = [method.name for method in found.methods]
    steps = ["individual_steps groups=1", "individual_steps groups=2"]
    assert names == ["unitary", *steps, "mgda wrt=representation", "mgda wrt=shared"]
    assert found.configuration["wrt"]["mgda wrt=representation"] == "representation"


def test_without_single_task_runs_gains_are_over_the_baseline(by_hand: Path) -> None:
    for directory in by_hand.glob("RR*"):
        (directory / "summary.json").unlink()
    (found,) = comparisons(by_hand)
    assert found.score == "relative gain over unitary, %"
    np.testing.assert_allclose(found.methods[1].scores.mean(0), [100 * (0.88 / 0.78 - 1), -50])
    assert "There is no finished single-task run of RR: gains are over unitary instead." in found.warnings
    assert SINGLE not in [row[0] for row in table(found, "metrics").rows]


@pytest.mark.usefixtures("sketched")
def test_each_set_of_tasks_is_a_section(tmp_path: Path) -> None:
    write_supervised_sweep(tmp_path / "runs", {"unitary": 0.9, "mgda": 0.95}, range(2), ["CL", "RR"])
    write_supervised_sweep(tmp_path / "runs", {"unitary": 0.9}, range(2), ["CL", "CR"])
    write_supervised_run(tmp_path / "runs" / "RL", ["RL"])
    write_supervised_run(tmp_path / "runs" / "unfinished", ["CL", "CR", "RL", "RR"], finished=False)
    found = comparisons(tmp_path / "runs")
    assert [own.tasks for own in found] == [["CL", "CR"], ["CL", "RR"]]
    assert [len(own.methods) for own in found] == [1, 2]
    assert "No run of the tasks CL, CR, RL, RR is finished: they are left out." in found[0].warnings
    page = write_report([supervised_section(own) for own in found], tmp_path / "out", ["scripts/compare.py"])
    text = Page(page.read_text()).text
    assert "multi_digits (CL, CR): unitary" in text
    assert "multi_digits (CL, RR): unitary, mgda" in text
    written = {file.name for file in (tmp_path / "out" / "tables").glob("*.csv")}
    assert written == {f"{number}-{name}.csv" for number in (1, 2) for name in TABLES}


def test_the_report_holds_everything(tmp_path: Path) -> None:
    write_supervised_sweep(tmp_path / "runs", {"unitary": 0.9, "mgda": 0.97, "pcgrad": 0.9}, range(8))
    write_supervised_run(tmp_path / "runs" / "killed", combiner="mgda", seed=9, epochs=3, finished=False)
    (found,) = comparisons(tmp_path / "runs")
    page = write_report([supervised_section(found)], tmp_path / "out", ["scripts/compare.py"])
    assert {file.stem for file in (tmp_path / "out" / "figures").iterdir()} == set(FIGURES)
    assert {file.stem for file in (tmp_path / "out" / "tables").iterdir()} == set(TABLES)
    text = Page(page.read_text()).text
    assert "Better than unitary (8 paired seeds): mgda +" in text
    assert "1 of 41 runs is not finished and not scored: killed" in text
    with (tmp_path / "out" / "tables" / "distance.csv").open() as file:
        distance = next(csv.DictReader(file))
    assert float(distance["total distance"]) == 24
    assert float(distance["ratio"]) == pytest.approx(24 / 8**0.5)
    with (tmp_path / "out" / "tables" / "alignment.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = (tmp_path / "runs" / "CL-RR-pcgrad-0" / "metrics.jsonl").read_text().splitlines()
    cosines = [json.loads(line)["conflict/shared/cosine_to_average/RR"] for line in lines]
    runs = [run for method in found.methods for run in method.runs if run.directory.name == "CL-RR-pcgrad-0"]
    assert runs[0].metrics.conflict["shared/cosine_to_average/RR"].mean() == pytest.approx(np.mean(cosines))
    assert [row["method"] for row in rows] == ["unitary", "mgda", "pcgrad"]
    with (tmp_path / "out" / "tables" / "runs.csv").open() as file:
        listed = {Path(row["run"]).name: row for row in csv.DictReader(file)}
    assert (listed["CL-0"]["tasks"], listed["CL-0"]["scored"]) == ("CL", "yes")
    assert (listed["killed"]["method"], listed["killed"]["last evaluation at epoch"]) == ("mgda", "3")


@pytest.mark.usefixtures("sketched")
def test_names_are_text(tmp_path: Path) -> None:
    tasks = ["<img src=x onerror=alert(1)>", "$\\frac{$", "a | b"]
    folder = tmp_path / "<script>alert(1)<script>"
    write_supervised_run(folder / "<b>", tasks)
    write_supervised_run(folder / "c", tasks, "<script>alert(2)<script>")
    page = write_report(
        [supervised_section(own) for own in comparisons(folder)],
        tmp_path / "out",
        ["scripts/compare.py", f"runs={folder}"],
    )
    parsed = Page(page.read_text())
    assert {"script", "b"}.isdisjoint(tag for tag, _ in parsed.tags)
    assert all((attributes["src"] or "").startswith("data:") for tag, attributes in parsed.tags if tag == "img")
    assert "<script>alert(2)<script>" in parsed.text
    for file in (tmp_path / "out" / "tables").glob("*.md"):
        assert not any(tag in file.read_text() for tag in ("<script", "<img", "<b>"))


def test_what_is_read_from_a_run(tmp_path: Path) -> None:
    directory = write_supervised_run(tmp_path / "x", combiner="mgda", epochs=6)
    entries = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    runs, _ = load_runs(tmp_path, "eval/success_mean", "eval/success/")
    metrics = runs[0].metrics
    assert runs[0].kind == "supervised"
    np.testing.assert_array_equal(metrics.steps, np.arange(1, 7))
    np.testing.assert_array_equal(metrics.task_scores[:, 1], [entry["val/RR"] for entry in entries])
    np.testing.assert_array_equal(metrics.durations, [entry["speed/epoch_seconds"] for entry in entries])
    np.testing.assert_array_equal(metrics.conflict["shared/weight/CL"], [e["train/weight/CL"] for e in entries])
    np.testing.assert_array_equal(metrics.logged["distance/total"], [entry["distance/total"] for entry in entries])
    lines = (directory / "matrices.jsonl").read_text().splitlines()
    matrices = np.array([json.loads(line)["conflict/shared/cosines"] for line in lines])
    np.testing.assert_allclose(metrics.cosines["shared"], matrices.reshape(3, 2, 2, 2).mean(1))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: write_supervised_run(f / "a", ["CL"]), "all 1 runs are of a single task"),
        (lambda f: write_supervised_run(f / "a", finished=False), "none of the 1 runs of several tasks is finished"),
        (lambda f: write_supervised_run(f / "a", combiner="pcgrad"), "unknown baseline 'unitary': valid: pcgrad"),
        (lambda f: write_supervised_run(f / "a", test={"CL": 0.5}), "summary.json: there is no test metric 'RR'"),
        (lambda f: write_supervised_run(f / "a", test={"CL": 0.0, "RR": 1.0}), "relative gain in CL needs"),
        (
            lambda f: (write_run(f / "a"), write_supervised_run(f / "b")),
            r"runs of reinforcement learning and supervised runs cannot be compared \(.*a and .*b\)",
        ),
        (
            lambda f: (
                write_supervised_run(f / "a"),
                write_supervised_run(f / "b", config={"benchmark": {"name": "multi_mnist"}}),
            ),
            r"different benchmarks cannot be compared \(multi_digits in .*a, multi_mnist in .*b\)",
        ),
        (
            lambda f: (
                write_supervised_run(f / "a", finished=False),
                write_supervised_run(f / "b", combiner="mgda"),
            ),
            "gains have nothing to be measured by: neither single-task training of CL nor the baseline, unitary",
        ),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, write: Any, message: str) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=message):
        comparisons(tmp_path)


def test_runs_whose_test_split_was_not_read_are_left_out(by_hand: Path) -> None:
    file = write_supervised_run(by_hand / "cell", combiner="cagrad") / "summary.json"
    summary = json.loads(file.read_text())
    del summary["test"]
    file.write_text(json.dumps(summary))
    (found,) = comparisons(by_hand)
    assert [method.name for method in found.methods] == ["unitary", "mgda", "pcgrad"]
    assert f"Left out: {file}: there is no test metric 'CL'." in found.warnings
    del summary["metrics"]["RR"]
    file.write_text(json.dumps(summary))
    assert f"Left out: {file}: 'metrics' does not say what CL, RR are judged by." in comparisons(by_hand)[0].warnings


def test_single_task_runs_that_differ_are_warned_about(by_hand: Path) -> None:
    optimizer = {"name": "adam", "learning_rate": 0.5, "weight_decay": 0.0, "momentum": 0.0}
    write_supervised_run(by_hand / "CL9", ["CL"], seed=9, config={"optimizer": optimizer})
    (found,) = comparisons(by_hand)
    expected = "Single-task runs of CL differ in optimizer.learning_rate: the reference is the mean of all."
    assert expected in found.warnings


@pytest.mark.parametrize(
    ("optimizer", "decay", "rescale", "told"),
    [
        ("adam", 0.0, False, None),
        ("adam", 0.1, False, "another regularisation"),
        ("adam", 0.1, True, None),
        ("sgd", 0.1, False, "another learning rate"),
        ("sgd", 0.0, True, None),
    ],
)
def test_methods_of_other_scales_are_warned_about(
    tmp_path: Path, optimizer: str, decay: float, rescale: bool, told: str | None
) -> None:
    options = {"name": optimizer, "learning_rate": 0.5, "weight_decay": decay, "momentum": 0.0}
    config = {"optimizer": options, "rescale": rescale}
    for combiner in ("unitary", "mgda"):
        write_supervised_run(tmp_path / combiner, ["CL", "RR"], combiner, config=config)
    (found,) = comparisons(tmp_path)
    warnings = [warning for warning in found.warnings if "scale of each method's paper" in warning]
    assert len(warnings) == (told is not None)
    assert all(told is not None and told in warning for warning in warnings)


def test_single_task_runs_of_another_problem_are_warned_about(by_hand: Path) -> None:
    assert not any("options of the benchmark" in warning for warning in comparisons(by_hand)[0].warnings)
    for directory in by_hand.glob("RR*"):
        file = directory / "config.yaml"
        file.write_text(file.read_text().replace("data_seed: 0", "data_seed: 1"))
    warnings = comparisons(by_hand)[0].warnings
    assert "Single-task runs of RR have other options of the benchmark than the runs of several." in warnings
