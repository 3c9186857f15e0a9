"""``scripts/compare.py`` as a user starts it."""

import html
import shlex
from pathlib import Path

import pytest

from tests.commands import Done, run
from tests.mtrl.report.synthetic_runs import write_run, write_supervised_sweep, write_sweep
from tests.mtrl.report.test_page import sketched  # noqa: F401


def compare(*arguments: str) -> Done:
    return run("compare.py", *arguments)


@pytest.mark.usefixtures("sketched")
def test_from_run_directories_to_a_report(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", {"unitary": 0.5, "pcgrad": 0.9}, range(6), evaluations=4)
    write_run(tmp_path / "runs" / "killed", "pcgrad", 6, evaluations=2, finished=False)
    out = tmp_path / "out"
    done = compare(f"runs={tmp_path / 'runs'}", f"out={out}", "last_k=2", "seed=3")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    words = " ".join(done.stdout.split())
    assert "Better than unitary (6 paired seeds): pcgrad +" in words
    assert ", p = 0.031." in words
    assert "mt10 at step 4,000 (12,000 environment steps): success rate, goals of training" in words
    assert "last 2" in words
    assert "1 of 13 runs is not finished and not scored: killed" in words
    assert done.stdout.rstrip().endswith(str(out / "index.html"))
    page = (out / "index.html").read_text()
    assert "Seed of the bootstrap: 3." in page
    assert f"python scripts/compare.py runs={tmp_path / 'runs'} out={out} last_k=2 seed=3" in page


@pytest.mark.usefixtures("sketched")
def test_the_page_has_the_command_as_it_was_typed(tmp_path: Path) -> None:
    for name in ("unitary", "mgda"):
        write_run(tmp_path / "learning rate=0.1" / name, name, evaluations=2)
    arguments = f"runs={tmp_path / 'learning rate=0.1'}", f"out={tmp_path / 'out'}"
    assert compare(*arguments).returncode == 0
    shown = html.escape(shlex.join(["python", "scripts/compare.py", *arguments]), quote=True)
    assert shown.replace("&#x27;", "&#39;") in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.usefixtures("sketched")
def test_methods_without_a_seed_in_common_are_told_so(tmp_path: Path) -> None:
    for seed, name in enumerate(["unitary", "mgda"]):
        write_run(tmp_path / "runs" / name, name, seed, evaluations=2)
    done = compare(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}")
    assert done.returncode == 0
    assert "No seed in common with unitary, run both with the same seeds: mgda." in " ".join(done.stdout.split())


@pytest.mark.usefixtures("sketched")
def test_supervised_runs_get_a_report_too(tmp_path: Path) -> None:
    write_supervised_sweep(tmp_path / "runs", {"unitary": 0.8, "mgda": 0.95}, range(6))
    done = compare(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}")
    assert (done.returncode, done.stderr) == (0, "")
    words = " ".join(done.stdout.split())
    assert "multi_digits (CL, RR): relative gain over single-task training, %" in words
    assert "Better than unitary (6 paired seeds): mgda +" in words
    assert ", p = 0.031." in words
    assert done.stdout.rstrip().endswith(str(tmp_path / "out" / "index.html"))
    refused = compare(f"runs={tmp_path / 'runs'}", "last_k=3", f"out={tmp_path / 'out'}")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: last_k is for runs of reinforcement learning: supervised runs are compared by their test metrics\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the folder with the runs: runs=DIRECTORY"),
        (["runs={}/nothing"], "runs={}/nothing: there is no such folder"),
        (["runs={}", "baseline=pcgrad"], "unknown baseline 'pcgrad': valid: unitary"),
        (["runs={}", "baseline=unitary agent=cpu"], "unknown baseline 'unitary agent=cpu': did you mean 'unitary'?"),
        (["runs={}", "last_k=0"], "last_k: expected an integer of at least 1, got 0"),
        (["runs={}", "last=3"], "unknown key 'last': did you mean 'last_k'?"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_run(tmp_path / "a")
    done = compare(*(argument.format(tmp_path) for argument in arguments), f"out={tmp_path / 'out'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {message.format(tmp_path)}\n"
    assert not (tmp_path / "out").exists()
