"""The benchmark script at sizes that take seconds: what it prints and writes, not how fast anything is."""

import argparse
import contextlib
import json
import os
import statistics
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mtrl import combiners
from mtrl.errors import InputError
from mtrl.gradients import TaskBatched, graphs
from scripts import benchmark
from scripts.benchmarks import capture, options, overhead, packing, solvers
from scripts.benchmarks.timing import joined
from scripts.benchmarks.updates import Mode, modes

SMALL = ["--hidden-sizes", "8", "8", "--repeats", "2"]


def measured(out: Path, *command_line: str) -> dict[str, Any]:
    benchmark.main([*command_line, "--out", str(out)])
    result: dict[str, Any] = json.loads(out.read_text())
    assert result["command"] == command_line[0]
    assert result["versions"]["torch"]
    assert result["threads"] >= 1
    return result


def test_overhead_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(tmp_path / "deep" / "out.json", "overhead", "--cases", "2x3", "3x2", *SMALL)
    names = [*combiners.names(), *overhead.RIVALS, *overhead.YARDSTICKS]
    assert [(r["tasks"], r["batch_size"], r["method"]) for r in result["rows"]] == [
        (*case, name) for case in ((2, 3), (3, 2)) for name in names
    ]
    for row in result["rows"]:
        assert len(row["seconds"]) == len(row["unitary_seconds"]) == 2
        assert row["median"] == statistics.median(row["seconds"]) > 0
        ratios = [a / b for a, b in zip(row["seconds"], row["unitary_seconds"], strict=True)]
        assert row["ratio"] == pytest.approx(statistics.median(ratios))
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*names, "2 x 3", "3 x 2", "out.json"])


def test_supervised_updates_and_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--attributes", "2", "--batch-size", "2", "--network", "nine_layers", "--repeats", "1"]
    methods = ["unitary", "modo", "graddrop", "loading", "loading_cached"]
    result = measured(tmp_path / "out.json", "supervised", *small, "--methods", *methods)
    assert [row["method"] for row in result["rows"]] == methods
    assert all(row["median"] > 0 and row["wrt"] == "representation" for row in result["rows"])
    assert [len(row["seconds"]) for row in result["rows"]] == [1, 1, 1, 4, 4]  # loading: every batch of a pass
    assert "2 x 2 by representation, fp32" in (tmp_path / "out.md").read_text()
    capsys.readouterr()
    (row,) = measured(tmp_path / "one.json", "supervised", *small, "--methods", "pcgrad", "--wrt", "shared")["rows"]
    assert row["peak_gib"]["process_gib"] > 0.1
    both = measured(tmp_path / "two.json", "supervised", *small, "--channels-last", "--precision", "fp32", "bf16",
                    "--methods", "unitary")["rows"]  # fmt: skip
    assert [row["precision"] for row in both] == ["fp32", "bf16"]
    printed = capsys.readouterr().out
    assert "process gib" in printed
    with pytest.raises(InputError, match="memory_limit is 107,374"):
        measured(tmp_path / "x.json", "supervised", *small, "--methods", "graddrop", "--wrt", "shared",
                 "--memory-limit", "0.0001")  # fmt: skip


def test_each_precision_has_a_column_and_its_own_unitary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["pcgrad", "graddrop", "matrix_products", "plain_sac", "retain_graph_loop"]
    options = ["--precision", "fp32", "bf16", "--cases", "2x3", "--methods", *methods]
    result = measured(tmp_path / "out.json", "overhead", *options, *SMALL)
    assert [(r["precision"], r["method"]) for r in result["rows"]] == [
        (precision, method) for precision in ("fp32", "bf16") for method in methods
    ]
    assert {row["launches"] for row in result["rows"]} == {"off"}  # without a GPU nothing is captured
    assert "2 x 3 bf16" in capsys.readouterr().out
    lines = (tmp_path / "out.md").read_text().splitlines()
    assert lines[2] == "| method | needs | 2 x 3 fp32 | 2 x 3 bf16 |"
    assert len(lines) > 4 + len(methods)
    with pytest.raises(InputError, match="precision=tf32 is not there on cpu"):
        benchmark.main(["overhead", "--device", "cpu", "--precision", "tf32"])


def test_on_a_gpu_captured_and_eager_updates_stand_side_by_side() -> None:
    arguments = SimpleNamespace(precision=["fp32", "bf16"])
    ways = modes(arguments, torch.device("cuda"))  # type: ignore[arg-type]
    assert [(way.precision, way.words["launches"]) for way in ways] == [
        *(("fp32", launches) for launches in ("captured", "off")),
        *(("bf16", launches) for launches in ("captured", "off")),
    ]
    rows = [
        {"tasks": 2, "batch_size": 3, "method": "pcgrad", "needs": "gramian", "ratio": 1.5, "median": 0.1} | way.words
        for way in ways
    ]
    ((words, numbers),) = joined(overhead.lines(rows))[1]
    assert words == ("pcgrad", "gramian")
    assert joined(overhead.lines(rows))[0][:2] == ["2 x 3 fp32 captured", "2 x 3 fp32"]
    assert numbers == ["1.50 (100)"] * 4


def test_captures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["unitary", "graddrop", "pcgrad"]
    own = ["--tasks", "2", "--batch-size", "3", "--methods", *methods]
    result = measured(tmp_path / "out.json", "capture", *own, *SMALL)
    assert [(row["of"], row["method"]) for row in result["rows"]] == [
        (of, method) for method in methods for of in ("agent", capture.DIGITS)
    ]
    assert all(row["obstacle"] == "there is no GPU" and row["difference"] == 0 for row in result["rows"])
    assert "captured" in capsys.readouterr().out


def test_why_an_update_is_not_captured_is_told_without_what_the_column_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def learned(name: str, *size_and_mode: Any) -> capture.Learned:
        if size_and_mode[-1].compile == "auto":
            warnings.warn("something else", stacklevel=1)
            if name == "graddrop":
                graphs.warn("updates, for a reason")
        return capture.Learned(torch.zeros(1), 0.25)

    monkeypatch.setattr(capture, "_agent", learned)
    monkeypatch.setattr(capture, "_digits", learned)
    command_line = ["capture", "--methods", "unitary", "graddrop"]
    rows = capture.measure(benchmark.parser().parse_args(command_line), torch.device("cuda"))
    told = [(words[:2], numbers["captured"], numbers["ms, by operations"]) for words, numbers in capture.lines(rows)]
    assert told == [
        ((of, method), answer, "250.00")
        for method, answer in (("unitary", "yes"), ("graddrop", "updates, for a reason"))
        for of in ("agent", capture.DIGITS)
    ]


def test_runs_side_by_side_begin_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """In threads, with environments that do nothing."""

    class Environments(contextlib.nullcontext[None]):
        def __init__(self, tasks: list[str], **options: object) -> None:
            super().__init__()

    steps = list[str]()
    monkeypatch.setattr(packing, "make_vector", Environments)
    monkeypatch.setattr(packing, "iteration_of", lambda agent, vector: lambda update: steps.append(update()))
    barrier = threading.Barrier(2)
    work = (barrier, "mt10", 2, [4], "cpu", Mode(), 1, 3, 2)
    with ThreadPoolExecutor(2) as pool:
        rates = [made.result() for made in [pool.submit(packing._begin, barrier, 1, *work[1:]) for _ in range(2)]]
    assert [len(own) for own in rates] == [2, 2]  # rounds, without the one to warm up
    assert len(steps) == 2 * 3 * 3
    monkeypatch.setattr(packing, "iteration_of", lambda agent, vector: 1 / 0)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        pool.submit(packing._begin, barrier, 1, *work[1:]).result()
    assert barrier.broken  # so that nobody waits for it
    words = {"benchmark": "mt10", "precision": "fp32", "sharing": "cores"}
    rows = [words | {"runs": runs, "together": [10.0 * runs]} for runs in (1, 2)]
    assert joined(packing.lines(rows)) == (["1 at once", "2 at once"], [(tuple(words.values()), ["10.0", "20.0"])])


@pytest.mark.parametrize("there", [True, False])
def test_packing_on_a_gpu_that_can_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "of somebody else")
    if there:
        service = tmp_path / packing.MPS
        service.write_text(
            '#!/bin/sh\n[ -d "$CUDA_MPS_PIPE_DIRECTORY" ] && [ -d "$CUDA_MPS_LOG_DIRECTORY" ] || exit 3\n'
            f'if [ "$1" = -d ]; then echo begin >> {tmp_path}/said; else cat >> {tmp_path}/said; fi\n'
        )
        service.chmod(0o755)
    pipes = list[str]()

    def side_by_side(runs: int, work: tuple[Any, ...]) -> list[list[float]]:
        pipes.append(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
        return [[50.0]] * runs

    monkeypatch.setattr(packing, "_side_by_side", side_by_side)
    monkeypatch.setattr(packing, "modes", lambda *_: [Mode("tf32")])
    size = {"batch_size": 3, "hidden_sizes": [4], "workers": 1, "steps": 1, "repeats": 1}
    arguments = argparse.Namespace(benchmarks=["mt10"], runs=[1, 2], **size)
    rows = packing.measure(arguments, torch.device("cuda"))
    assert [row["sharing"] for row in rows] == ["turns"] * 2 + ["MPS"] * 2 * there
    assert pipes[:2] == ["of somebody else"] * 2
    assert len(set(pipes)) == 1 + there
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == "of somebody else"
    if there:
        assert (tmp_path / "said").read_text().split() == ["begin", "quit"]


def test_overhead_of_some_without_torchjd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "Engine", None)
    methods = ["mgda", "torchjd_autojac", "retain_graph_loop", "torchjd_autogram"]
    result = measured(tmp_path / "out.json", "overhead", "--cases", "2x3", "--methods", *methods, *SMALL)
    assert ["ratio" in row for row in result["rows"]] == [True, False, True, False]
    assert capsys.readouterr().out.count("not installed") == 2


@pytest.mark.parametrize("name", overhead.RIVALS)
def test_rivals_do_the_same_work(name: str) -> None:
    """With two tasks, PCGrad draws nothing."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)), torch.randn(2, 3, 5)
    found = []
    for kind, combiner in ((TaskBatched, "pcgrad"), (overhead.RIVALS[name], "pcgrad"), (TaskBatched, "unitary")):
        gradients = kind(network, 2)
        with gradients.record():
            losses = (network(x) - torch.tensor([-1.0, 1.0]).view(2, 1, 1)).square().mean((1, 2))
        gradients.backward(losses, combiners.make(combiner, 2), scale=0.5)
        found.append(torch.cat([p.grad.flatten() for p in gradients.parameters if p.grad is not None]))
        network.zero_grad()
    ours, theirs, plain = found
    torch.testing.assert_close(theirs, ours)
    assert not torch.allclose(plain, ours)  # the tasks do conflict


def test_solvers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(tmp_path / "out.json", "solvers", "--tasks", "2", "5", "--repeats", "2")
    names = [name for name in combiners.names() if combiners.get(name).needs == "gramian"]
    assert [(r["tasks"], r["method"], r["family"]) for r in result["rows"]] == [
        (tasks, name, family) for tasks in (2, 5) for name in names for family in solvers.FAMILIES
    ]
    assert all(len(row["seconds"]) == 2 if "seconds" in row else row["no_solution"] for row in result["rows"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_options_of_the_agent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = ("agent.critics=1", "agent.task_encoding=embedding", options.INSIGHT, "agent=cpu")
    assert set(changed) <= set(options.CHANGED)
    monkeypatch.setattr(options, "CHANGED", changed)
    result = measured(tmp_path / "out.json", "options", "--tasks", "2", "--batch-size", "4", "--repeats", "1")
    assert [row["option"] for row in result["rows"]] == ["agent=kurin", *changed]
    assert all(row["ratio"] > 0 for row in result["rows"])
    assert all(option in capsys.readouterr().out for option in changed[:1])


@pytest.mark.parametrize("command", ["overhead", "solvers"])
def test_an_unknown_method_is_named(command: str) -> None:
    with pytest.raises(InputError, match=r"unknown method 'mgdda': did you mean 'mgda'\?"):
        benchmark.main([command, "--methods", "mgdda"])


@pytest.mark.parametrize(
    "options", [["--cases", "10"], ["--cases", "0x2"], ["--repeats", "0"], ["--hidden-sizes", "x"]]
)
def test_bad_numbers_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["overhead", *options])
    assert f"argument {options[0]}" in capsys.readouterr().err
