"""The report on synthetic run directories: what is in it, that it stands alone, and that it never changes."""

import csv
import html.parser
import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib.figure import Figure

from mtrl.combiners import names
from mtrl.report.drawing import label_progress
from mtrl.report.page import write_report
from mtrl.report.runs import load_runs
from mtrl.report.statistics import Estimate
from mtrl.report.tables import Table
from mtrl.report.training import (
    TrainingComparison,
    bias_of_best,
    compare_training,
    training_section,
    training_tables,
)
from tests.mtrl.report.synthetic_runs import write_run, write_sweep

COMMAND = ["scripts/compare.py", "runs=some where"]
FIGURES = [
    "learning_curves",
    "held_out",
    "intervals",
    "tasks",
    "wall_clock",
    "update_time",
    "memory",
    "conflict",
    "cosines",
    "alignment",
    "weights",
    "plasticity",
]


def comparison(folder: Path, last_k: int = 3) -> TrainingComparison:
    runs, left_out = load_runs(folder, "eval/success_mean", "eval/success/")
    return compare_training(
        runs, metric="eval/success_mean", baseline="unitary", seed=0, last_k=last_k, left_out=left_out
    )


class Page(html.parser.HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, {"unitary": 0.5, "pcgrad": 0.9, "mgda": 0.5}, range(8))
    write_run(folder / "killed", "mgda", 8, evaluations=4, finished=False)
    return folder


@pytest.fixture(scope="module")
def report(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([training_section(comparison(sweep))], tmp_path_factory.mktemp("out"), COMMAND).parent


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be drawn coarsely can be drawn finely, and as PDF too, which takes longer."""
    savefig = Figure.savefig

    def save(figure: Figure, path: Path, **options: Any) -> None:
        if path.suffix != ".pdf":
            savefig(figure, path, **options | {"dpi": 30})

    monkeypatch.setattr(Figure, "savefig", save)


def test_every_figure_and_table_is_written(report: Path) -> None:
    figures = sorted(file.name for file in (report / "figures").iterdir())
    assert figures == sorted(f"{name}.{kind}" for name in FIGURES for kind in ("pdf", "png"))
    written = sorted(file.name for file in (report / "tables").iterdir())
    kinds = ["configuration", "cost", "methods", "paired_differences", "runs", "tasks", "tasks_held_out"]
    assert written == sorted(f"{name}.{kind}" for name in kinds for kind in ("csv", "md"))


def test_the_page_stands_alone(report: Path) -> None:
    page = Page((report / "index.html").read_text())
    assert not {"script", "link", "iframe", "a"} & {tag for tag, _ in page.tags}
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(FIGURES)
    assert all(source and source.startswith("data:image/png;base64,iVBOR") for source in pictures)
    assert "http" not in page.text
    assert "url(" not in (report / "index.html").read_text()


def test_the_page_says_what_was_found_and_how_it_was_made(report: Path) -> None:
    text = Page((report / "index.html").read_text()).text
    assert "compared at step 10,000 (30,000 environment steps) by success rate, goals of training, mean of" in text
    assert "Tasks: success rate, held-out goals" in text
    assert "Better than unitary (8 paired seeds): pcgrad +" in text
    assert "No significant difference from unitary (8 paired seeds): mgda " in text
    assert "not evidence of equality" in text
    assert "1 of 25 runs is not finished and not scored: killed" in text
    for part in ("Seeds 0 to 7", "A processor, 2 cores", "torch 2.13.0", "python scripts/compare.py 'runs=some where'"):
        assert text.count(part) >= len(FIGURES)  # beside each figure
    assert "python scripts/train.py combiner=pcgrad seed=0" in text
    assert "the best would be about" in text


def test_tables_hold_the_numbers_with_every_digit(sweep: Path, report: Path) -> None:
    found = comparison(sweep)
    with (report / "tables" / "methods.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["unitary", "mgda", "pcgrad"]
    for method in found.methods:
        row = rows[method.name]
        assert int(row["seeds"]) == 8
        for column, scores in (
            ("last 3", method.scores),
            ("final", method.reached["final"]),
            ("best", method.reached["best"]),
            ("IQM of last 3", np.sort(method.scores.ravel())[6:18]),
            ("last 3, held-out goals", method.reached["eval/held_out/success_mean"]),
        ):
            assert float(row[column]) == scores.mean()
            assert float(row[f"{column} low"]) < scores.mean() < float(row[f"{column} high"])
    with (report / "tables" / "paired_differences.csv").open() as file:
        paired = {row["method"]: row for row in csv.DictReader(file)}
    assert float(paired["pcgrad"]["difference"]) == pytest.approx(
        found.methods[2].scores.mean() - found.methods[0].scores.mean()
    )
    assert paired["pcgrad"]["verdict"] == "better"
    with (report / "tables" / "runs.csv").open() as file:
        states = {Path(row["run"]).name: (row["state"], row["scored"]) for row in csv.DictReader(file)}
    assert states["killed"] == ("unfinished", "no")
    with (report / "tables" / "runs.csv").open() as file:
        assert {row["environment steps"] for row in csv.DictReader(file)} == {"30000", "12000"}
    assert states["mgda-0"] == ("finished", "yes")


def test_the_same_runs_give_the_same_bytes(sweep: Path, report: Path, tmp_path: Path) -> None:
    write_report([training_section(comparison(sweep))], tmp_path, COMMAND)
    files = [file.relative_to(report) for file in report.rglob("*") if file.is_file()]
    assert len(files) == 1 + 2 * (len(FIGURES) + 7)
    for file in files:
        assert (tmp_path / file).read_bytes() == (report / file).read_bytes(), file


@pytest.mark.usefixtures("sketched")
def test_names_are_text(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "a | b", "$\\frac{$", "[red]", "&amp;"]
    write_run(tmp_path / "runs" / "a", evaluations=2, tasks=names)
    for name in names:
        write_run(tmp_path / "runs" / f"{names.index(name)}", name, evaluations=2, tasks=names)
    (tmp_path / "runs" / "0").rename(tmp_path / "runs" / "<script>alert(2)<")
    (tmp_path / "runs" / "<script>alert(2)<" / "video-9").mkdir()
    (tmp_path / "runs" / "<script>alert(2)<" / "video-9" / "contact_sheet.png").touch()
    page = write_report([training_section(comparison(tmp_path / "runs"))], tmp_path / "out", COMMAND)
    parsed = Page(page.read_text())
    assert not any(tag == "script" for tag, _ in parsed.tags)
    _, said = parsed.text.split("Too few seeds to tell from unitary (1 paired seed; ")
    assert all(f" {name} " in said.partition("Differences are")[0] for name in names)
    assert "<script>alert(2)<" in parsed.text
    assert "<script" not in (tmp_path / "out" / "tables" / "runs.md").read_text()
    lines = (tmp_path / "out" / "tables" / "tasks.md").read_text().splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")} == {8}
    assert "<script" not in "".join(lines)


@pytest.mark.usefixtures("sketched")
def test_videos_are_linked(tmp_path: Path) -> None:
    sheet = write_run(tmp_path / "runs" / "a run #1", evaluations=1, seed=3) / "video-1000" / "contact_sheet.png"
    sheet.parent.mkdir()
    sheet.touch()
    page = write_report([training_section(comparison(tmp_path / "runs"))], tmp_path / "out", COMMAND)
    parsed = Page(page.read_text())
    (link,) = (attributes["href"] for tag, attributes in parsed.tags if tag == "a")
    assert (page.parent / unquote(link or "")).samefile(sheet)
    assert "unitary, seed 3, step 1000" in parsed.text


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("summary", ["{}", '{"command": null, "machine": {}, "seconds": 1}'])
def test_a_run_that_training_did_not_finish_itself(tmp_path: Path, summary: str) -> None:
    (write_run(tmp_path / "runs" / "a") / "summary.json").write_text(summary)
    file = write_run(tmp_path / "runs" / "b", "pcgrad") / "config.yaml"
    file.write_text(file.read_text() + "day: 2020-02-02\n")  # no JSON
    page = write_report([training_section(comparison(tmp_path / "runs"))], tmp_path / "out", COMMAND)
    text = Page(page.read_text()).text
    assert "python scripts/train.py combiner=pcgrad seed=0" in text
    assert "combiner=unitary" not in text


@pytest.mark.usefixtures("sketched")
def test_one_run_of_one_task_with_one_evaluation(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", evaluations=1, tasks=["reach-v3"], conflict=False)
    found = comparison(tmp_path / "runs", last_k=5)
    page = write_report([training_section(found)], tmp_path / "out", COMMAND)
    assert found.verdicts() == ["Only unitary was run: there is nothing to compare it with."]
    written = {file.stem for file in (tmp_path / "out" / "figures").iterdir()}
    assert written == {"learning_curves", "held_out", "intervals", "wall_clock", "update_time", "memory"}
    row = next(csv.DictReader((page.parent / "tables" / "methods.csv").read_text().splitlines()))
    assert row["last 5 low"] == row["last 5 high"] == ""


@pytest.mark.usefixtures("sketched")
def test_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", evaluations=1, finished=False, logs_per_evaluation=1)
    write_run(tmp_path / "runs" / "b", "pcgrad", evaluations=1, finished=False, logs_per_evaluation=1)
    write_report([training_section(comparison(tmp_path / "runs"))], tmp_path / "out", COMMAND)
    written = {file.stem for file in (tmp_path / "out" / "figures").iterdir()}
    assert written == set(FIGURES) - {"memory", "weights"}  # measured once, weights have no history


@pytest.mark.usefixtures("sketched")
def test_every_method_at_once(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", dict.fromkeys(names(), 0.7), [0], evaluations=3)
    found = comparison(tmp_path / "runs")
    write_report([training_section(found)], tmp_path / "out", COMMAND)
    (sentence, _) = found.verdicts()
    assert sentence.startswith("Too few seeds to tell from unitary (1 paired seed; ")
    assert sentence.index(": aligned_mtl ") < sentence.index("; cagrad ")
    assert all(f" {name} " in sentence for name in names() if name != "unitary")


@pytest.mark.usefixtures("sketched")
def test_runs_with_held_out_goals_or_without(tmp_path: Path) -> None:
    runs = write_sweep(tmp_path / "runs", {"unitary": 0.5, "pcgrad": 0.9}, range(3), evaluations=3)
    for file in runs.glob("pcgrad-*/metrics.jsonl"):
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{key: value for key, value in entry.items() if "held_out" not in key} for entry in entries]
        file.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    write_report([training_section(comparison(runs))], tmp_path / "out", COMMAND)
    with (tmp_path / "out" / "tables" / "methods.csv").open() as table:
        rows = {row["method"]: row["last 3, held-out goals"] for row in csv.DictReader(table)}
    assert rows["unitary"]
    assert not rows["pcgrad"]
    runs_, _ = load_runs(runs, "eval/held_out/success_mean", "eval/held_out/success/")
    found = compare_training(runs_, metric="eval/held_out/success_mean", baseline="unitary", seed=0, last_k=3)
    assert found.score.startswith("success rate, held-out goals")
    assert found.elsewhere == {"eval/success_mean": "goals of training"}


def test_older_runs_were_evaluated_on_held_out_goals(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", config={"eval": {"every": 1000, "episodes": 50}})
    assert comparison(tmp_path / "runs").score.startswith("success rate, held-out goals")


def test_steps_stand_above_environment_steps() -> None:
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_xlim(0, 20_000)
    label_progress(figure, "vector steps", 10)
    assert axes.xaxis.get_major_formatter()(5000, None) == "5k\n50k"
    assert figure.get_supxlabel() == "vector steps; below, environment steps"
    label_progress(figure, "epochs", 1)
    assert axes.xaxis.get_major_formatter()(5000, None) == "5k"
    assert figure.get_supxlabel() == "epochs"


def test_a_long_label_fits_a_narrow_figure() -> None:
    figure = Figure(figsize=(5, 3))
    figure.add_subplot()
    label_progress(figure, "vector steps (one environment step in every task)", 10)
    figure.draw_without_rendering()
    extents = figure.texts[0].get_window_extent()
    assert extents.x0 > 0
    assert extents.x1 < figure.bbox.width


def test_one_slow_run_does_not_stretch_the_time_axis(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / str(seed), seed=seed, evaluations=3, seconds_per_step=3.0 if seed == 2 else 0.03)
    section = training_section(comparison(tmp_path))
    (figure,) = (picture.figure for picture in section.pictures if picture.name == "wall_clock")
    assert figure.get_supxlabel() == "minutes of training"
    assert figure.axes[0].get_xlim()[1] < 2  # two runs ended after 1.5, one after 150


def test_other_metrics_have_no_bias_of_episodes(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "a")
    file = directory / "metrics.jsonl"
    file.write_text(file.read_text().replace("eval/success_mean", "test/m").replace("eval/success/", "test/m/"))
    runs, _ = load_runs(tmp_path, "test/m", "test/m/")
    found = compare_training(runs, metric="test/m", baseline="unitary", seed=0, last_k=3)
    assert bias_of_best(found) is None
    assert training_tables(found)[0].note.startswith("test/m at step 10,000")


def test_cells() -> None:
    table = Table(
        "x",
        "Title",
        ["name", "estimate", "number"],
        [
            ["a", Estimate(1 / 3, 0.25, 0.5), 12345.6],
            ["b", Estimate(0.5, math.nan, math.nan), math.nan],
            ["c", None, 7],
        ],
        "A note.",
    )
    assert table.csv() == (
        "name,estimate,estimate low,estimate high,number\na,0.3333333333333333,0.25,0.5,12345.6\nb,0.5,,,\nc,,,,7\n"
    )
    assert table.markdown() == (
        "## Title\n\n| name | estimate | number |\n| --- | --- | --- |\n"
        "| a | 0.333 [0.250, 0.500] | 12,346 |\n| b | 0.500 | - |\n| c | - | 7 |\n\nA note.\n"
    )


def test_long_names_are_broken_between_options_in_small_panels(tmp_path: Path) -> None:
    write_sweep(tmp_path, dict.fromkeys(["unitary", *names()[:7]], 0.5), range(1), conflict=False)
    for decay, rescale in ((3e-4, True), (5e-5, False)):
        agent = {"actor": {"weight_decay": decay}, "rescale": rescale}
        write_run(tmp_path / str(decay), "mgda", config={"agent": agent}, conflict=False)
    pictures = training_section(comparison(tmp_path)).pictures
    (curves,) = [picture.figure for picture in pictures if picture.name == "learning_curves"]
    assert "mgda weight_decay=5e-05\nrescale=false" in [axes.get_title() for axes in curves.axes]
