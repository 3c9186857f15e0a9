"""Values that are missing: no statistic compares with them, and what was left out is said."""

import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from mtrl.errors import InputError
from mtrl.report import statistics
from mtrl.report.page import write_report
from mtrl.report.runs import load_runs
from mtrl.report.supervised import compare_supervised, supervised_section, supervised_tables
from mtrl.report.training import TrainingComparison, compare_training, training_section, training_tables
from tests.mtrl.report.synthetic_runs import TASKS, write_run, write_supervised_sweep, write_sweep
from tests.mtrl.report.test_page import Page, sketched  # noqa: F401

EVALUATIONS, LAST_K = 6, 2
NOT_NUMBERS = [None, math.nan, math.inf, -math.inf, "absent"]
SEEDS = range(7)
few = settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def comparison(folder: Path, metric: str = "success") -> TrainingComparison:
    key = f"eval/{metric}_mean"
    runs, left_out = load_runs(folder, key, f"eval/{metric}/")
    return compare_training(runs, metric=key, baseline="unitary", seed=0, last_k=LAST_K, left_out=left_out)


@pytest.fixture(scope="module")
def sweep() -> Iterator[dict[str, tuple[str, str, list[dict[str, Any]]]]]:
    """Runs by name: their configuration, their summary, and their evaluations under two metrics."""
    with tempfile.TemporaryDirectory() as name:
        levels = {"unitary": 0.3, "pcgrad": 0.8, "mgda": 0.3}
        write_sweep(Path(name), levels, SEEDS, evaluations=EVALUATIONS, conflict=False, logs_per_evaluation=1)
        found = {}
        for run in sorted(Path(name).iterdir()):
            lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            entries = [line for line in lines if "eval/success_mean" in line]
            for entry in entries:
                returns = {key.replace("success", "return"): 100 * entry[key] for key in entry if "success" in key}
                entry |= returns
            found[run.name] = (run / "config.yaml").read_text(), (run / "summary.json").read_text(), entries
        yield found


def nothing_is_nan(tables: list[Any], *lines: str) -> None:
    for text in [*lines, *(table.csv() for table in tables), *(table.markdown() for table in tables)]:
        assert "nan" not in text.lower().replace("dominan", ""), text
        assert "inf" not in text.lower().split(), text


@few
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3 * len(SEEDS) - 1),
            st.integers(0, EVALUATIONS - 1) | st.just(EVALUATIONS - 1),
            st.integers(-1, len(TASKS) - 1),
            st.sampled_from(NOT_NUMBERS),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["success", "return"]),
)
def test_the_verdict_is_that_of_the_runs_that_are_left_in(
    sweep: dict[str, tuple[str, str, list[dict[str, Any]]]], places: list[tuple[int, int, int, Any]], metric: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        damaged: dict[str, set[int]] = {}
        for number, (run, (config, summary, entries)) in enumerate(sweep.items()):
            changed = [dict(entry) for entry in entries]
            for _, evaluation, task, value in (place for place in places if place[0] == number):
                key = f"eval/{metric}_mean" if task < 0 else f"eval/{metric}/{TASKS[task]}"
                changed[evaluation][key] = value
                damaged.setdefault(run, set()).add(evaluation)
            (folder / run).mkdir()
            (folder / run / "config.yaml").write_text(config)
            (folder / run / "summary.json").write_text(summary)
            kept = [{key: value for key, value in entry.items() if value != "absent"} for entry in changed]
            (folder / run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        found = comparison(folder, metric)
        nothing_is_nan(training_tables(found), *found.verdicts(), *found.warnings)
        said = " ".join(found.warnings)
        assert all(run in said for run in damaged)
        scored = {run.directory.name for run in found.compared}
        assert scored == {
            run for run in sweep if not damaged.get(run, set()) & set(range(EVALUATIONS - LAST_K, EVALUATIONS))
        }

        for run in set(sweep) - scored:
            shutil.rmtree(folder / run)
        assert comparison(folder, metric).verdicts() == found.verdicts()
        scores = {run: [np.mean([e[f"eval/{metric}/{t}"] for t in TASKS]) for e in sweep[run][2]] for run in scored}
        last = {run: float(np.mean(values[-LAST_K:])) for run, values in scores.items()}
        for paired in found.paired:
            both = [seed for seed in SEEDS if {f"{paired.method}-{seed}", f"unitary-{seed}"} <= scored]
            differences = np.array([last[f"{paired.method}-{seed}"] - last[f"unitary-{seed}"] for seed in both])
            assert paired.difference.value == pytest.approx(differences.mean())
            if len(both) > 1:
                theirs = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
                assert paired.p_value == pytest.approx(theirs.pvalue)
        for method in found.methods:
            for seed, best in zip(method.seeds, method.reached["best"], strict=True):
                run = f"{method.name}-{seed}"
                means = [-1 if at in damaged.get(run, ()) else value for at, value in enumerate(scores[run])]
                assert best.mean() == pytest.approx(max(means))


def test_one_null_makes_no_verdict_false(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"unitary": 0.3, "pcgrad": 0.8}, range(8), conflict=False)
    before = comparison(tmp_path)
    assert before.paired[0].verdict == "better"
    file = tmp_path / "unitary-3" / "metrics.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    entries[-1]["eval/success_mean"] = None
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    after = comparison(tmp_path)
    assert (after.paired[0].verdict, after.paired[0].seeds) == ("better", 7)
    assert after.paired[0].difference.value == pytest.approx(before.paired[0].difference.value, abs=0.1)
    assert any("1 of 16 runs is without all values" in line and "unitary-3" in line for line in after.warnings)


def test_where_everything_is_missing_there_is_no_verdict(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"unitary": 0.3, "pcgrad": 0.8}, range(2), conflict=False)
    for file in tmp_path.glob("*/metrics.jsonl"):
        file.write_text(file.read_text().replace('"eval/success_mean": 0', '"eval/success_mean": null, "x": 0'))
    with pytest.raises(InputError, match="no run can be scored"):
        comparison(tmp_path)


def test_a_run_that_is_first_evaluated_later_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations=1)
    write_run(tmp_path / "b", "pcgrad", config={"eval": {"every": 5000, "episodes": 50}}, evaluations=2)
    found = comparison(tmp_path)
    assert [run.directory.name for run in found.compared] == ["a"]
    assert any("1 of 2 runs is without all values" in line and ": b." in line for line in found.warnings)


def poisoned(value: Any, keys: Iterator[int]) -> Any:
    """A log entry in which every fifth number is missing, but for the time."""
    structure = ("step", "time", "epoch", "speed/epoch_seconds")
    if isinstance(value, dict):
        return {
            key: entry if key in structure or (isinstance(entry, float) and next(keys) % 5) else poisoned(entry, keys)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [poisoned(entry, keys) for entry in value]
    return NOT_NUMBERS[next(keys) % 4]


def poison(folder: Path) -> None:
    keys = itertools.count()
    for file in [*folder.glob("*/metrics.jsonl"), *folder.glob("*/matrices.jsonl")]:
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        safe = entries[-8:] if file.parent.name[-1] in "0123" else []  # some runs can be scored
        changed = [entry if entry in safe else poisoned(entry, keys) for entry in entries]
        file.write_text("".join(json.dumps(entry) + "\n" for entry in changed))


def everything(folder: Path) -> list[str]:
    page = Page((folder / "index.html").read_text()).text
    return [page, *(file.read_text() for file in (folder / "tables").iterdir())]


@pytest.mark.usefixtures("sketched")
def test_a_page_of_runs_full_of_holes(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", {"unitary": 0.3, "pcgrad": 0.8}, range(6))
    poison(tmp_path / "runs")
    found = comparison(tmp_path / "runs")
    write_report([training_section(found)], tmp_path / "out", ["scripts/compare.py"])
    nothing_is_nan([], *everything(tmp_path / "out"))
    assert any("Values that are missing" in line for line in found.warnings)
    assert found.paired[0].seeds == 4


@pytest.mark.usefixtures("sketched")
def test_a_page_of_supervised_runs_full_of_holes(tmp_path: Path) -> None:
    runs = write_supervised_sweep(tmp_path / "runs", {"unitary": 0.9, "mgda": 0.97}, range(8))
    poison(runs)
    for number, value in enumerate(NOT_NUMBERS):
        file = runs / f"CL-RR-mgda-{number}" / "summary.json"
        summary = json.loads(file.read_text())
        summary["test"]["CL"] = value
        if value == "absent":
            del summary["test"]["CL"]
        file.write_text(json.dumps(summary))
    loaded, left_out = load_runs(runs, "", "")
    (found,) = compare_supervised(loaded, baseline="unitary", seed=0, left_out=left_out)
    write_report([supervised_section(found)], tmp_path / "out", ["scripts/compare.py"])
    nothing_is_nan(supervised_tables(found), *everything(tmp_path / "out"))
    said = " ".join(found.warnings)
    assert all(f"CL-RR-mgda-{number}" in said for number in range(len(NOT_NUMBERS)))
    assert found.paired[0].seeds == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_statistics_refuse_what_is_not_finite(value: float) -> None:
    scores = np.random.default_rng(0).random((8, 2))
    scores[3, 1] = value
    row = scores[:, 1]
    for wrong in (
        lambda: statistics.sign_flip_p_value(row, np.random.default_rng(0)),
        lambda: statistics.mean_over_tasks(scores, np.random.default_rng(0)),
        lambda: statistics.mean_over_seeds(row, np.random.default_rng(0)),
        lambda: statistics.interquartile_mean(row),
        lambda: statistics.probability_of_improvement(scores, scores[:3], np.random.default_rng(0)),
        lambda: statistics.holm([0.1, value]),
    ):
        with pytest.raises(InputError, match="finite numbers"):
            wrong()


def test_seeds_with_a_missing_score_are_not_paired() -> None:
    scores = np.random.default_rng(0).random((9, 2))
    better = scores + 0.2
    better[3, 1] = math.nan
    methods = {"a": (list(range(9)), scores), "b": (list(range(9)), better), "c": ([1], np.full((1, 2), math.nan))}
    (found,) = statistics.compare_with_baseline(methods, "a", 0)
    kept = [0, 1, 2, 4, 5, 6, 7, 8]
    (expected,) = statistics.compare_with_baseline({"a": methods["a"], "b": (kept, better[kept])}, "a", 0)
    assert found == expected
    assert found.verdict == "better"
    assert statistics.compare_with_baseline({"a": methods["c"], "b": methods["b"]}, "a", 0) == []
