"""``make gpu``: every step is done once, what fails stops nothing, and there is a page to read."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrl.errors import Interrupted, RunError
from scripts import benchmark, gpu
from scripts.gpu import Step, go_through, steps_of
from tests.configured import configured

ABOUT = {"gpu": "Some GPU", "processor": "Some CPU", "cores": 4, "versions": {"torch": "2.13"}}
FIRST = "import os\nassert 'HYDRA_FULL_ERROR' not in os.environ, 'tracebacks'\n"


def step(name: str, code: str, out: Path, **options: Any) -> Step:
    """A step that notes that it was done."""
    return Step(name, ["-c", f"open({str(out / 'done')!r}, 'a').write('{name} ')\n{code}"], **options)


def test_a_step_that_fails_is_told_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [
        step("tests", "print('all passed')", tmp_path),
        step("capture", f"{FIRST}print('first')\nraise SystemExit('no & such device')", tmp_path),
        step("report", "", tmp_path, again=True),
    ]
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as it is within a script
    rows = [{"method": "mgda", "needs": "gramian", "precision": "fp32", "obstacle": None, "difference": 0.0}]
    (tmp_path / "capture.json").write_text(json.dumps({"rows": rows}))
    for _ in range(2):
        with pytest.raises(RunError, match=r"^1 of 3 steps failed: capture; see .*index\.html$"):
            go_through(steps, tmp_path, ABOUT)
    assert (tmp_path / "done").read_text() == "tests capture report capture report "
    assert "tests is done already" in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text()
    for said in ("Some GPU", "failed (1)", "first / no &amp; such device", "mgda", "yes", 'href="tests.txt"'):
        assert said in page
    assert (tmp_path / "tests.txt").read_text() == "all passed\n"


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step(name, "", tmp_path) for name in ("tests", "capture", gpu.TRAINING, "report")]
    wait, stopped = subprocess.Popen.wait, list[str]()

    def stop(process: Any, *arguments: Any, **options: Any) -> int:
        """As if by hand, once in each of two steps."""
        code = wait(process, *arguments, **options)
        name = (tmp_path / "done").read_text().split()[-1]
        if name in ("capture", gpu.TRAINING) and name not in stopped:
            stopped.append(name)
            raise KeyboardInterrupt
        return code

    monkeypatch.setattr(subprocess.Popen, "wait", stop)
    with pytest.raises(Interrupted):
        go_through(steps, tmp_path, ABOUT)
    assert (tmp_path / "done").read_text() == "tests capture "
    go_through(steps, tmp_path, ABOUT)  # training is stopped by hand whenever there is enough of it
    assert (tmp_path / "done").read_text() == "tests capture capture training report "
    go_through(steps, tmp_path, ABOUT)
    assert (tmp_path / "done").read_text().endswith(" report training ")


@pytest.mark.parametrize("small", [True, False])
def test_every_step_is_one_that_the_scripts_know(tmp_path: Path, small: bool) -> None:
    steps = steps_of(tmp_path, torch.device("cpu"), small=small)
    assert len({one.name for one in steps}) == len(steps) == 7
    for one in steps:
        script, arguments = Path(one.command[0]), one.command[1:]
        if script.name == "benchmark.py":
            known = benchmark.parser().parse_args(arguments)
            assert (known.command, known.out) == (one.name, tmp_path / f"{one.name}.json")
            assert known.precision[0] == "fp32"
        elif script.name == "train.py":
            assert configured(*arguments).precision == "auto"
        else:
            assert script.name in ("-m", "compare.py")
