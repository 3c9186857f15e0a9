"""Run directories in every state that training, a cluster and a user leave them in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrl.errors import InputError
from mtrl.report.runs import Run, load_runs
from mtrl.report.training import TrainingComparison, compare_training
from tests.mtrl.report.synthetic_runs import MACHINE, TASKS, write_run, write_sweep


def load(folder: Path) -> tuple[list[Run], list[str]]:
    return load_runs(folder, "eval/success_mean", "eval/success/")


def comparison(folder: Path, baseline: str = "unitary", last_k: int = 3) -> TrainingComparison:
    runs, left_out = load(folder)
    return compare_training(
        runs, metric="eval/success_mean", baseline=baseline, seed=0, last_k=last_k, left_out=left_out
    )


def entries(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


# --------------------------------------------------------------------------------------------------------- loading


def test_a_run_holds_what_was_logged(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "deep" / "down" / "x", "pcgrad", seed=7, evaluations=4)
    (run,), left_out = load(tmp_path)
    logged = entries(directory)
    evaluations = [entry for entry in logged if "eval/success_mean" in entry]
    assert (run.directory, run.seed, run.benchmark, run.tasks) == (directory, 7, "mt10", TASKS)
    assert left_out == []
    np.testing.assert_array_equal(run.metrics.steps, [1000, 2000, 3000, 4000])
    np.testing.assert_array_equal(run.metrics.seconds, [10, 20, 30, 40])
    np.testing.assert_array_equal(run.metrics.scores, [entry["eval/success_mean"] for entry in evaluations])
    expected = [[entry[f"eval/success/{task}"] for task in TASKS] for entry in evaluations]
    np.testing.assert_array_equal(run.metrics.task_scores, expected)
    speeds = [entry["speed/updates_per_s"] for entry in logged if "speed/updates_per_s" in entry]
    np.testing.assert_allclose(run.metrics.durations, 10_000 / np.array(speeds))
    cosines = [entry["conflict/actor/cosine_mean"] for entry in logged if "conflict/actor/cosine_mean" in entry]
    np.testing.assert_array_equal(run.metrics.conflict["actor/cosine_mean"], cosines)


def test_a_killed_run_ends_in_half_a_line(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "x", finished=False, evaluations=3)
    file = directory / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    (run,), _ = load(tmp_path)
    assert run.summary is None
    np.testing.assert_array_equal(run.metrics.steps, [1000, 2000])


def test_a_whole_last_line_counts_without_its_line_break(tmp_path: Path) -> None:
    file = write_run(tmp_path / "x", evaluations=3) / "metrics.jsonl"
    file.write_text(file.read_text().rstrip("\n"))
    (run,), _ = load(tmp_path)
    assert len(run.metrics.steps) == 3


def test_damage_before_the_last_line_is_named(tmp_path: Path) -> None:
    file = write_run(tmp_path / "x", evaluations=3) / "metrics.jsonl"
    lines = file.read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if "eval/success_mean" in line)
    lines[number - 1] = lines[number - 1][:-5]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=rf"metrics.jsonl, line {number}: "):
        load(tmp_path)


def test_an_evaluation_without_a_task_is_named(tmp_path: Path) -> None:
    file = write_run(tmp_path / "x") / "metrics.jsonl"
    file.write_text(file.read_text().replace("eval/success/push-v3", "eval/success/pull-v3"))
    with pytest.raises(InputError, match="the evaluation at step 1000 has no 'eval/success/push-v3'"):
        load(tmp_path)


def test_null_is_nan(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "x")
    lines = [entry | ({"conflict/actor/cosine_mean": None} if "conflict/actor/cosine_mean" in entry else {})
             for entry in entries(directory)]  # fmt: skip
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,), _ = load(tmp_path)
    assert np.isnan(run.metrics.conflict["actor/cosine_mean"]).all()


def test_many_measurements_of_conflict_are_thinned_evenly(tmp_path: Path) -> None:
    write_run(tmp_path / "x", evaluations=10, logs_per_evaluation=25)
    (run,), _ = load(tmp_path)
    steps = run.metrics.conflict_steps
    assert len(steps) == 100
    assert (steps[0], steps[-1]) == (40, 10_000)
    assert set(np.diff(steps)) == {80, 120}


def test_cosines_are_means_over_thirds_of_thinned_matrices(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "x", evaluations=10, logs_per_evaluation=25)
    (run,) = load(tmp_path)[0]
    matrices = [entry["conflict/actor/cosines"] for entry in entries(directory, "matrices.jsonl")]
    assert len(matrices) == 250
    kept = np.array(matrices)[np.linspace(0, 249, 15).astype(int)]
    np.testing.assert_allclose(run.metrics.cosines["actor"], kept.reshape(3, 5, 3, 3).mean(1))
    assert set(run.metrics.cosines) == {"critic", "actor"}
    assert not any("cosines" in key for key in run.metrics.conflict)


def test_matrices_that_are_not_whole(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "x", evaluations=1, logs_per_evaluation=1)
    logged = entries(directory, "matrices.jsonl")
    for entry in logged:
        entry["conflict/actor/cosines"][0][1] = None  # not finite
        del entry["conflict/critic/cosines"]
    (directory / "matrices.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in logged))
    (run,) = load(tmp_path)[0]
    assert set(run.metrics.cosines) == {"actor"}
    early, middle, _ = run.metrics.cosines["actor"]
    assert np.isnan(early[0, 1])
    assert early[0, 0] == 1
    assert np.isnan(middle).all()


def test_matrices_of_a_killed_run_end_in_half_a_line(tmp_path: Path) -> None:
    file = write_run(tmp_path / "x", evaluations=1, logs_per_evaluation=3) / "matrices.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    (run,), left_out = load(tmp_path)
    assert left_out == []
    assert np.isfinite(run.metrics.cosines["actor"][:2]).all()
    assert np.isnan(run.metrics.cosines["actor"][2]).all()


def test_a_run_of_an_older_version_lacks_the_heat_maps_alone(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "x", evaluations=4)
    (new,), _ = load(tmp_path)
    matrices = {entry["step"]: entry for entry in entries(directory, "matrices.jsonl")}
    logged = [
        entry | matrices[entry["step"]] if any(key.startswith("conflict/") for key in entry) else entry
        for entry in entries(directory)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in logged))
    (directory / "matrices.jsonl").unlink()
    (old,), left_out = load(tmp_path)
    assert old.metrics.cosines == {}
    assert len(left_out) == 1
    assert left_out[0].startswith("1 of 1 runs are of an older version, which kept matrices of cosines")
    assert set(old.metrics.conflict) == set(new.metrics.conflict)
    for key, values in new.metrics.conflict.items():
        np.testing.assert_array_equal(old.metrics.conflict[key], values)
    np.testing.assert_array_equal(old.metrics.task_scores, new.metrics.task_scores)


def test_a_damaged_run_is_left_out_of_a_sweep_and_named(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"unitary": 0.5, "pcgrad": 0.9}, range(2))
    file = tmp_path / "pcgrad-1" / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"step": 1000,', b'"step": "?",'))
    runs, left_out = load(tmp_path)
    assert len(runs) == 3
    assert len(left_out) == 1
    assert left_out[0].startswith(f"Left out: {file}, line ")
    assert comparison(tmp_path).warnings[-1] == left_out[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"steps": 4', "summary.json cannot be read"),
        (b"[" * 20_000, "summary.json cannot be read"),
        (b"[1]", "summary.json does not hold a summary"),
        (b'{"memory": 3}', "summary.json: memory: expected an object, got 3"),
        (b'{"final": {"success": {}}}', "summary.json: final: there is no 'success_mean'"),
    ],
)
def test_a_summary_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_run(tmp_path / "a")
    (write_run(tmp_path / "b") / "summary.json").write_bytes(content)
    runs, left_out = load(tmp_path)
    assert [run.directory.name for run in runs] == ["a"]
    assert message in left_out[0]


def test_a_run_that_has_just_started(tmp_path: Path) -> None:
    (write_run(tmp_path / "x", finished=False) / "metrics.jsonl").unlink()
    (run,), _ = load(tmp_path)
    assert run.metrics.task_scores.shape == (0, len(TASKS))
    with pytest.raises(InputError, match="none of the 1 runs has an evaluation"):
        comparison(tmp_path)


def test_what_is_not_a_run_is_left_out_and_named(tmp_path: Path) -> None:
    write_run(tmp_path / "x")
    contents = {"other": "a: 1", "broken": "{", "list": "[1]", "endless": "&a [*a]", "deep": "[" * 20_000}
    for name, text in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("config.yaml")
    runs, left_out = load(tmp_path)
    assert [run.directory.name for run in runs] == ["x"]
    assert len(left_out) == len(contents)
    assert all(name in line and "\n" not in line for name, line in zip(sorted(contents), left_out, strict=True))
    assert comparison(tmp_path).warnings == left_out


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        load(tmp_path / "missing")
    with pytest.raises(InputError, match="no run in it or below it"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"benchmark": {"name": "mt50"}}}, r"\(mt10 in .*a, mt50 in .*b\)"),
        ({"tasks": ["reach-v3"]}, r"different tasks in .*a and .*b"),
    ],
)
def test_different_benchmarks_are_not_mixed(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **options)
    with pytest.raises(InputError, match=message):
        comparison(tmp_path)


# ------------------------------------------------------------------------------------------------------- comparing


def test_methods_are_combiners_with_the_options_that_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "1", "unitary")
    write_run(tmp_path / "2", "cagrad", options={"c": 0.2, "shrink": "quadratic"})
    write_run(tmp_path / "3", "cagrad", options={"c": 0.4, "shrink": "quadratic"})
    write_run(tmp_path / "4", "cagrad", options={"shrink": "quadratic"})
    write_run(tmp_path / "5", "fixed", options={"weights": [0.123456789] * 10})
    write_run(tmp_path / "6", "fixed", options={"weights": [0.987654321] * 10})
    found = comparison(tmp_path)
    names = [method.name for method in found.methods]
    assert names == ["unitary", "cagrad c=0.2", "cagrad c=0.4", "cagrad c=absent", "fixed #1", "fixed #2"]
    assert found.configuration["combiner.c"]["cagrad c=0.4"] == "0.4"
    assert found.configuration["combiner.weights"]["fixed #1"].startswith("[0.123456789, ")


def test_a_key_that_came_after_a_run_is_what_it_is_when_unset(tmp_path: Path) -> None:
    write_run(tmp_path / "1", "unitary")
    write_run(tmp_path / "2", "unitary", seed=1, config={"method": None, "pad": None})
    write_run(tmp_path / "3", "pcgrad", config={"pad": True})
    found = comparison(tmp_path)
    assert {method.name: method.seeds for method in found.methods} == {"unitary": [0, 1], "pcgrad": [0]}
    assert found.configuration["pad"] == {"unitary": "null", "pcgrad": "true"}
    assert "method" not in found.configuration


def test_fixed_weights_of_another_method_are_one_method_whatever_the_seed(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"unitary": 0.5}, range(2))
    for source, weights in (("cagrad", [[1.0, 2.0], [3.0, 4.0]]), ("nash_mtl", [[5.0, 6.0], [7.0, 8.0]])):
        for seed, own in enumerate(weights):
            sides = {side: {"name": "fixed", "weights": own} for side in ("critic", "actor")}
            config = {"weights_from": f"runs/mt10-{source}-seed{seed}"}
            write_run(tmp_path / f"{source}{seed}", "fixed", seed, options={"weights": None} | sides, config=config)
    found = comparison(tmp_path)
    assert {method.name: method.seeds for method in found.methods} == {
        "unitary": [0, 1],
        "fixed weights_from=mt10-cagrad": [0, 1],
        "fixed weights_from=mt10-nash_mtl": [0, 1],
    }
    assert found.configuration["combiner.critic.weights"]["fixed weights_from=mt10-cagrad"] == "extracted"


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        (["agent=cpu", "agent=large"], ["unitary agent=cpu", "unitary agent=large"]),
        (["agent=cpu", "agent=cpu"], ["unitary #1", "unitary #2"]),
        (["agent=cpu", "seed=1"], ["unitary #1", "unitary #2"]),
    ],
)
def test_agents_that_differ_in_much_are_called_by_their_presets(
    tmp_path: Path, typed: list[str], names: list[str]
) -> None:
    for number, preset in enumerate(typed):
        agent = {"critic": {"hidden_sizes": [256 * number + 256] * 9, "layer_norm": bool(number)}, "twins": str(number)}
        run = write_run(tmp_path / str(number), "unitary", config={"agent": agent})
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"command": ["scripts/train.py", preset]}))
    found = comparison(tmp_path, baseline=names[0])
    assert [method.name for method in found.methods] == names


def test_where_one_option_is_switched_at_a_time_names_tell_which(tmp_path: Path) -> None:
    agent = {"actor": {"layer_norm": True}, "critic": {"layer_norm": True, "hidden_sizes": [512, 512]}, "twins": "min"}
    base = {"agent": agent, "updates_per_step": 4.0, "batch_size": 32}
    without = [
        {"agent": agent | {"critic": agent["critic"] | {"layer_norm": False}}},  # type: ignore[operator]
        {"agent": agent | {"critic": agent["critic"] | {"hidden_sizes": None}}},  # type: ignore[operator]
        {"agent": agent | {"actor": {"layer_norm": False}}},
        {"agent": agent | {"twins": "mean"}},
        {"updates_per_step": 1.0},
        {"batch_size": 128},
    ]
    for number, changed in enumerate([{}, *without]):
        for seed in range(2):
            write_run(tmp_path / f"{number}-{seed}", seed=seed, config=base | changed, evaluations=2)
    found = comparison(tmp_path)
    assert all(method.seeds == [0, 1] for method in found.methods)
    assert [method.name for method in found.methods] == [
        "unitary",
        "unitary actor.layer_norm=false",
        "unitary batch_size=128",
        "unitary critic.layer_norm=false",
        "unitary hidden_sizes=null",
        "unitary twins=mean",
        "unitary updates_per_step=1.0",
    ]


@pytest.mark.parametrize(
    ("precisions", "names"),
    [
        ({0: ["fp32"], 1: ["bf16"]}, ["unitary", "pcgrad"]),  # seeds that were shared out among two machines
        ({0: ["fp32", "bf16"], 1: ["bf16"]}, ["unitary precision=bf16", "pcgrad precision=bf16"]),
    ],
)
def test_a_precision_that_belongs_to_the_seed_is_no_option_of_the_method(
    tmp_path: Path, precisions: dict[int, list[str]], names: list[str]
) -> None:
    for seed, own in precisions.items():
        for method in ("unitary", "pcgrad"):
            for precision in own:
                write_run(tmp_path / f"{method}-{seed}-{precision}", method, seed, config={"precision": precision})
    found = comparison(tmp_path, baseline=names[0])
    assert [method.name for method in found.methods if method.seeds == [0, 1]] == names
    assert any("precision" in line for line in found.warnings)


def test_methods_are_told_apart_by_the_options_of_each_side(tmp_path: Path) -> None:
    write_run(tmp_path / "1", "unitary")
    write_run(tmp_path / "2", "mgda", options={"actor": "pcgrad"})
    write_run(tmp_path / "3", "mgda", options={"actor": {"name": "cagrad", "c": 0.2}})
    write_run(tmp_path / "4", "mgda", options={"actor": {"name": "cagrad", "c": 0.4}})
    write_run(tmp_path / "5", "mgda", options={"every": 5})
    write_run(tmp_path / "6", "mgda", options={"every": 1})
    found = comparison(tmp_path)
    names = ["unitary", "mgda every=1", "mgda every=5", "mgda+cagrad c=0.2", "mgda+cagrad c=0.4", "mgda+pcgrad"]
    assert [method.name for method in found.methods] == names
    assert found.configuration["combiner.actor.c"]["mgda+cagrad c=0.4"] == "0.4"


def test_methods_without_a_combiner_are_told_apart_by_their_groups(tmp_path: Path) -> None:
    for number, method in enumerate([None, {"name": "individual_steps", "groups": None}]):
        write_run(tmp_path / str(number), config={"method": method}, evaluations=2)
    for groups in (2, 3):
        write_run(
            tmp_path / f"groups{groups}",
            config={"method": {"name": "individual_optimizers", "groups": groups}},
            evaluations=2,
        )
    names = ["unitary", "individual_optimizers groups=2", "individual_optimizers groups=3", "individual_steps"]
    assert [method.name for method in comparison(tmp_path).methods] == names


def test_methods_are_told_apart_by_the_agents_options(tmp_path: Path) -> None:
    agent = {"hidden_sizes": [400, 400, 400], "learning_rate": 3e-4, "rescale": False}
    write_run(tmp_path / "1", "unitary", config={"agent": agent})
    write_run(tmp_path / "2", "mgda", config={"agent": agent})
    write_run(tmp_path / "3", "mgda", config={"agent": agent | {"rescale": True, "learning_rate": 1e-4}})
    write_run(tmp_path / "4", "mgda", seed=1, config={"agent": agent, "warmup_steps": 64})
    write_run(tmp_path / "5", "famo", options={"learning_rate": 0.1}, config={"agent": agent})
    write_run(tmp_path / "6", "famo", options={"learning_rate": 0.2}, config={"agent": agent})
    found = comparison(tmp_path)
    assert [(method.name, method.seeds) for method in found.methods] == [
        ("unitary", [0]),
        ("famo combiner.learning_rate=0.1", [0]),
        ("famo combiner.learning_rate=0.2", [0]),
        ("mgda learning_rate=0.0001 rescale=true", [0]),
        ("mgda learning_rate=0.0003 rescale=false", [0, 1]),
    ]
    assert any("agent.rescale is false in" in warning for warning in found.warnings)


def test_what_most_runs_of_a_method_share_is_named_where_other_methods_have_another(tmp_path: Path) -> None:
    theirs = {"rescale": True, "discount": 0.99}
    for method in ("unitary", "pcgrad", "cagrad"):
        write_run(tmp_path / method, method, config={"agent": theirs})
    write_run(tmp_path / "mgda", "mgda", config={"agent": theirs})
    write_run(tmp_path / "own", "mgda", config={"agent": theirs | {"rescale": False}})
    write_run(tmp_path / "both", "mgda", config={"agent": theirs | {"rescale": False, "discount": 0.9}})
    names = ["mgda discount=0.9 rescale=false", "mgda rescale=false", "mgda rescale=true"]
    assert [method.name for method in comparison(tmp_path).methods] == ["unitary", "cagrad", *names, "pcgrad"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"actor": {"weight_decay": 3e-4}}, True),
        ({"actor": {"weight_decay": 3e-4}, "weight_decay_mode": "decoupled"}, False),
        ({"actor": {"weight_decay": 0.0}, "max_gradient_norm": None}, False),
        ({"actor": {"weight_decay": 0.0}, "max_gradient_norm": 1.0}, True),
    ],
)
def test_methods_at_their_own_scale_are_warned_about(tmp_path: Path, options: dict[str, Any], told: bool) -> None:
    write_run(tmp_path / "unitary", config={"agent": options | {"rescale": True}})
    assert not any("scale of the method's paper" in warning for warning in comparison(tmp_path).warnings)
    write_run(tmp_path / "mgda", "mgda", config={"agent": options | {"rescale": False}})
    expected = "scale of the method's paper (agent.rescale=false) in mgda: beside L2 or clipping"
    assert any(expected in warning for warning in comparison(tmp_path).warnings) == told


def test_scores_are_final_last_and_best_by_seed(tmp_path: Path) -> None:
    for seed in (3, 1):
        write_run(tmp_path / str(seed), seed=seed, evaluations=5)
    method = comparison(tmp_path).methods[0]
    by_seed = {run.seed: run.metrics for run in load(tmp_path)[0]}
    assert method.seeds == [1, 3]
    for row, seed in enumerate(method.seeds):
        scores = by_seed[seed].task_scores
        np.testing.assert_array_equal(method.reached["final"][row], scores[-1])
        np.testing.assert_allclose(method.scores[row], scores[-3:].mean(0))
        np.testing.assert_array_equal(method.reached["best"][row], scores[scores.mean(1).argmax()])


def test_a_longer_run_has_no_advantage(tmp_path: Path) -> None:
    write_run(tmp_path / "long", "pcgrad", evaluations=9)
    write_run(tmp_path / "short", evaluations=6)
    found = comparison(tmp_path)
    pcgrad = found.methods[1]
    assert found.step == 6000
    np.testing.assert_array_equal(pcgrad.reached["final"][0], pcgrad.runs[0].metrics.task_scores[5])
    assert any("scored at step 6,000, the end of short; the longest goes on to 9,000" in w for w in found.warnings)


def test_unfinished_runs_are_drawn_but_not_scored(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"unitary": 0.8, "pcgrad": 0.8}, [0, 1])
    write_run(tmp_path / "killed", "pcgrad", 2, evaluations=3, finished=False)
    found = comparison(tmp_path)
    pcgrad = found.methods[1]
    assert (found.step, pcgrad.seeds, len(pcgrad.runs), len(found.compared)) == (10_000, [0, 1], 3, 4)
    assert any("1 of 5 runs is not finished and not scored: killed" in warning for warning in found.warnings)


def test_a_sweep_that_is_still_running_is_scored_where_every_run_has_been(tmp_path: Path) -> None:
    write_run(tmp_path / "a", evaluations=5, finished=False)
    write_run(tmp_path / "b", "pcgrad", evaluations=3, finished=False)
    write_run(tmp_path / "c", "pcgrad", 1, evaluations=0, finished=False)
    found = comparison(tmp_path)
    assert found.step == 3000
    assert any("No run is finished" in warning for warning in found.warnings)
    assert any("without an evaluation yet: c" in warning for warning in found.warnings)


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", level=0.9)
    write_run(tmp_path / "b", level=0.1)
    found = comparison(tmp_path)
    method = found.methods[0]
    assert method.seeds == [0]
    expected = np.mean([run.metrics.task_scores[-1] for run in method.runs], 0)
    np.testing.assert_allclose(method.reached["final"], [expected])
    assert any("unitary has several runs of seed 0" in warning for warning in found.warnings)


def test_intervals_of_few_seeds_are_said_to_be_too_narrow(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"unitary": 0.8, "pcgrad": 0.8}, [0, 1, 2])
    write_run(tmp_path / "further", seed=3)
    expected = "of 3, a 95% bootstrap interval holds the true mean in about 75 of 100 cases (of 10: 90)."
    assert [line for line in comparison(tmp_path).warnings if line.endswith(expected)]


def test_unknown_baseline_offers_the_nearest(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "pcgrad")
    with pytest.raises(InputError, match="unknown baseline 'pcgard': did you mean 'pcgrad'"):
        comparison(tmp_path, baseline="pcgard")


def test_a_baseline_that_was_run_in_several_ways_has_to_be_chosen(tmp_path: Path) -> None:
    for rate in (0.0001, 0.001):
        write_run(tmp_path / str(rate), config={"agent": {"learning_rate": rate}})
    expected = r"unitary was run in 2 ways: choose one as baseline, e\.g\. 'unitary learning_rate=0\.0001'$"
    with pytest.raises(InputError, match=expected):
        comparison(tmp_path)
    assert comparison(tmp_path, baseline="unitary learning_rate=0.0001").baseline.endswith("0.0001")


def test_a_baseline_that_cannot_be_scored_yet(tmp_path: Path) -> None:
    write_run(tmp_path / "a", finished=False)
    write_run(tmp_path / "b", "pcgrad")
    found = comparison(tmp_path)
    assert found.paired == []
    assert any("No run of the baseline" in warning for warning in found.warnings)


def test_equal_configurations_are_not_warned_about(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"unitary": 0.8, "pcgrad": 0.8}, list(range(10)))
    found = comparison(tmp_path)
    assert found.warnings == []
    assert set(found.configuration) == {"combiner.name"}


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"config": {"batch_size": 64}}, "more than combiner and seed: batch_size is 128 in unitary, 64 in pcgrad."),
        ({"config": {"agent": {"hidden_sizes": [9]}}}, "agent.learning_rate is 0.0003 in unitary, absent in pcgrad."),
        (
            {"config": {"batch_size": 64, "task": "x", "eval": {"every": 500, "episodes": 9, "goals": "both"}}},
            "more than combiner and seed, in task, batch_size, eval.every, eval.episodes: see the differences",
        ),
        ({"config": {"num_workers": 4}}, "Runs differ in num_workers, so that their times differ: null, 4."),
        ({"machine": MACHINE | {"gpu": "A GPU"}}, "different hardware, so that their times differ: A processor, 2"),
        ({"machine": MACHINE | {"versions": {"torch": "3"}}}, "different versions of torch: 2.13.0, 3."),
        ({"seed": 5}, "Methods were run with different seeds"),
    ],
)
def test_what_else_differs_is_said(tmp_path: Path, options: dict[str, Any], warning: str) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", "pcgrad", **options)
    assert any(warning in line for line in comparison(tmp_path).warnings)


def test_a_method_that_mixes_configurations_is_said_to(tmp_path: Path) -> None:
    for seed, size in enumerate([128, 128, 64]):
        write_run(tmp_path / str(seed), seed=seed, config={"warmup_steps": size})
    found = comparison(tmp_path)
    assert found.configuration["warmup_steps"] == {"unitary": "128 (2 runs); 64 (1 run)"}
    assert any("warmup_steps is 128 (2 runs); 64 (1 run) in unitary." in warning for warning in found.warnings)
