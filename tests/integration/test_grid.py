"""The papers' protocol from end to end on tiny runs, and its choices on their own."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hydra import initialize_config_dir

from mtrl.errors import InputError, RunError
from mtrl.report.statistics import mean_over_seeds
from mtrl.run.directory import read_config
from mtrl.run.record import Metric, Selection, Summary
from scripts import grid
from scripts.entry import SUPERVISED_CONFIGS
from scripts.grid import Axes, Tried, best, cells, composed, configured, open_axes
from tests.commands import run
from tests.integration.test_methods import MINE

TINY = (
    "device=cpu",
    "benchmark.pairs_per_digit=1",
    "tasks=[CL,RR]",
    "epochs=2",
    "insight.every=0",
    "dropout=0",
    "seeds=1",
)


@pytest.fixture
def composing():
    with initialize_config_dir(SUPERVISED_CONFIGS, version_base="1.3"):
        yield


def summaries(folder):
    return {file.parent: json.loads(file.read_text()) for file in sorted(folder.rglob("summary.json"))}


def test_a_killed_grid_goes_on_and_chooses_by_validation(tmp_path, monkeypatch):
    """With a method of one's own, which two levels of processes are to find; goes on with two runs at once."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")  # its runs have them too
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own, tmp_path = tmp_path / "mine.py", tmp_path / "grid"
    own.write_text(MINE)
    words = (*TINY, f"plugins=[{os.path.relpath(own)}]", "combiner=mine", "combiner.weight=2", f"out={tmp_path}")
    first = subprocess.Popen(
        [sys.executable, "scripts/grid.py", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 200
    while not summaries(tmp_path) and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.02)
    first.terminate()
    output, _ = first.communicate()
    assert first.returncode == 128 + signal.SIGTERM, output
    before = {directory: (directory / "summary.json").stat().st_mtime_ns for directory in summaries(tmp_path)}
    assert len(before) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"cells"}
    assert all(path.name.startswith("optimizer.") for path in (tmp_path / "cells").iterdir())

    second = run("grid.py", *words, "workers=2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "chosen" in second.stdout
    for directory, written in before.items():
        assert (directory / "summary.json").stat().st_mtime_ns == written

    tried = summaries(tmp_path / "cells")
    assert len(tried) == 2
    assert not any("test" in summary for summary in tried.values())
    rows = list(csv.DictReader((tmp_path / "cells.csv").read_text().splitlines()))
    assert [row["optimizer.learning_rate"] for row in rows] == ["0.001", "0.003"]
    ranks = []
    for row in rows:
        accuracies = [float(other["validation CL (accuracy)"]) for other in rows]
        errors = [float(other["validation RR (squared_error)"]) for other in rows]
        better = sum(value > float(row["validation CL (accuracy)"]) for value in accuracies)
        ranks.append(better + sum(value < float(row["validation RR (squared_error)"]) for value in errors))
    (chosen,) = [number for number, row in enumerate(rows) if row["outcome"] == "chosen"]
    assert ranks[chosen] == min(ranks)

    final = summaries(tmp_path / "final")
    values = f"optimizer.learning_rate={rows[chosen]['optimizer.learning_rate']}"
    ((directory, summary),) = final.items()
    assert directory == tmp_path / "final" / values / "seed2"
    assert read_config(directory)["combiner"] == {"name": "mine", "weight": 2, "noise": False}
    first_row = next(csv.DictReader((tmp_path / "test.csv").read_text().splitlines()))
    assert float(first_row["mean"]) == pytest.approx(summary["test"]["CL"])
    assert "CL | accuracy" in (tmp_path / "report.md").read_text()
    assert not list(tmp_path.rglob(".sweep*"))
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_the_chosen_cell_is_told_over_new_seeds(composing, tmp_path, monkeypatch):
    """The best cell has the lower learning rate; a seed's test metric is a tenth of it."""
    trained = []

    def train(out, overrides, axes, seeds, *, test, workers):
        trained.append((out.name, list(seeds), test))
        return [
            Summary(
                metrics={"CL": Metric("accuracy", higher_is_better=True)},
                validation={"CL": 0.9 - 100 * cell["optimizer.learning_rate"] + seed / 100},
                selection=Selection("mean", {"mean": -cell["optimizer.learning_rate"]}),
                test={"CL": seed / 10} if test else None,
            )
            for cell in cells(axes)
            for seed in seeds
        ]

    monkeypatch.setattr(grid, "train", train)
    grid.search(*configured([*TINY[:-1], f"out={tmp_path}", "seeds=3", "seeds_per_cell=2"]))
    assert trained == [("cells", [1, 2], False), ("final", [3, 4, 5], True)]
    low, high = csv.DictReader((tmp_path / "cells.csv").read_text().splitlines())
    assert (low["outcome"], high["outcome"]) == ("chosen", "")
    assert float(low["validation CL (accuracy)"]) == pytest.approx(0.9 - 0.1 + 0.015)
    header, row = csv.reader((tmp_path / "test.csv").read_text().splitlines())
    assert header == ["task", "metric", "mean", "mean low", "mean high"]
    assert float(row[2]) == pytest.approx(0.4)
    assert 0.3 <= float(row[3]) < 0.4 < float(row[4]) <= 0.5
    assert "(3 to 5)" in (tmp_path / "report.md").read_text()


def tried(name, score=None, **validation):
    return Tried({"x": name}, validation, score, 1.0, "" if validation else "non-finite loss")


def test_the_best_cell_has_the_best_score():
    assert best([tried(1, 0.5, a=0.5), tried(2), tried(3, 0.7, a=0.7)], {"a": True}).cell == {"x": 3}
    assert best([tried(1, -0.5, a=0.5), tried(2, -0.1, a=0.1)], {"a": False}).cell == {"x": 2}
    with pytest.raises(RunError, match="every cell failed, the first one thus: non-finite loss"):
        best([tried(1), tried(2)], {"a": True})


@pytest.mark.parametrize("values", [[f"[0.{n}5, 1.{9 - n}5]" for n in range(10)], [0.1, 0.01, 0.001, 0.0001]])
def test_the_labels_of_cells_do_not_overlap(values):
    tried = [Tried({"combiner.weights": value}, {"CL": 0.5}, 0.5, 1.0) for value in values]
    estimate = mean_over_seeds(np.array([0.5, 0.6]), np.random.default_rng(0))
    figure = grid.draw(tried, tried[0], {"CL": np.array([0.5, 0.6])}, [["CL", "accuracy", estimate]])
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) == len(values)
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_metrics_that_cannot_be_averaged_are_ranked():
    # Ranks: 1 and 3; 2 and 1; 3 and 2.
    candidates = [tried(1, a=0.9, b=0.3), tried(2, a=0.8, b=0.1), tried(3, a=0.7, b=0.2)]
    assert best(candidates, {"a": True, "b": False}).cell == {"x": 2}


def test_a_grid_is_every_combination_of_what_the_command_line_leaves_open(composing):
    axes = Axes({"dropout": [0.0, 0.1], "epochs": [1, 2]}, {"cagrad": {"combiner.c": [0.2, 0.5]}})
    assert cells(open_axes(axes, composed("supervised", []), [])) == [
        {"dropout": dropout, "epochs": epochs} for dropout in (0.0, 0.1) for epochs in (1, 2)
    ]
    given = ["combiner=cagrad", "epochs=3"]
    assert cells(open_axes(axes, composed("supervised", given), given)) == [
        {"dropout": dropout, "combiner.c": c} for dropout in (0.0, 0.1) for c in (0.2, 0.5)
    ]
    with pytest.raises(InputError, match="no cells"):
        open_axes(Axes({"epochs": [1]}), composed("supervised", given), given)


def test_the_command_line_is_split_between_grid_and_training(composing):
    options, rest = configured(["combiner=mgda", "seeds=3", "grid=kurin", "out=x", "seed=5"])
    assert (options.seeds, options.out, list(options.grid.axes)) == (3, "x", ["optimizer.weight_decay"])
    config = composed("supervised", rest, {"optimizer.weight_decay": 0.1})
    assert (config.combiner["name"], config.seed, config.optimizer.weight_decay) == ("mgda", 5, 0.1)
    with pytest.raises(InputError, match="workers"):
        configured(["workers=0"])


def test_a_grid_knows_methods_and_benchmarks_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("""
from mtrl.supervised.benchmarks import benchmark
from mtrl.supervised.methods import method
from mtrl.supervised.methods.combined import CombinedUpdate

@benchmark("mine")
def mine(tasks=("CL",), dropout=0.0, *, pairs=1):
    raise NotImplementedError

@method("scaled")
class Scaled(CombinedUpdate):
    def __init__(self, setup, *, factor=2.0):
        super().__init__(setup)
""")
    own = ("benchmark=mine", "method=scaled", "method.factor=3", "grid=kurin", "optimizer.weight_decay=0")
    done = run("grid.py", f"plugins=[{file}]", *own)
    assert (done.returncode, done.stderr.startswith("error: the grid has no cells: ")) == (2, True), done.stderr


@pytest.mark.parametrize("name", [file.stem for file in Path(SUPERVISED_CONFIGS, "grid").glob("*.yaml")])
def test_shipped_grids_set_existing_keys(composing, name):
    options, _ = configured([f"grid={name}"])
    for method, further in [("fixed" if name == "weights" else "unitary", {}), *options.grid.methods.items()]:
        given = [f"{'method' if method in ('rotograd', 'auto_lambda') else 'combiner'}={method}"]
        cell = {key: values[0] for key, values in (options.grid.axes | further).items()}
        composed("supervised", given, cell)
