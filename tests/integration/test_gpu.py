"""``make gpu``: every step is done once, what fails stops nothing, and there is a page to read."""

import json
import signal
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
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
    words = {"of": "agent", "method": "mgda", "needs": "gramian", "precision": "fp32"}
    rows = [words | {"obstacle": None, "difference": 0.0, "seconds": [0.1, 0.2]}]
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


ASKS = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # which training does after a checkpoint
if not os.path.exists({mark!r}):
    below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({mark!r}, "w").write(f"{{os.getpid()}} {{below.pid}}")
    os.kill(os.getppid(), signal.{signal})
    time.sleep(600)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_it_stops_with_the_step_and_goes_on_there(tmp_path: Path, name: str) -> None:
    steps = [
        step(one, "" if one in ("tests", "report") else ASKS.format(mark=str(tmp_path / one), signal=name), tmp_path)
        for one in ("tests", "capture", gpu.TRAINING, "report")
    ]
    with pytest.raises(Interrupted, match=f"stopped by {name}"):
        go_through(steps, tmp_path, ABOUT)
    assert (tmp_path / "done").read_text() == "tests capture "
    for pid in (tmp_path / "capture").read_text().split():
        with suppress(psutil.NoSuchProcess):
            psutil.Process(int(pid)).wait(60)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    # Training is stopped by hand when there is enough of it; a scheduler stops all.
    with nullcontext() if name == "SIGINT" else pytest.raises(Interrupted):
        go_through(steps, tmp_path, ABOUT)
    finished = "tests capture capture training "
    assert (tmp_path / "done").read_text() == finished + "report " * (name == "SIGINT")
    assert json.loads((tmp_path / "steps.json").read_text())[gpu.TRAINING]["state"] == "stopped"
    go_through(steps, tmp_path, ABOUT)
    assert (tmp_path / "done").read_text().startswith(finished)
    assert (tmp_path / "done").read_text().count("training report" if name != "SIGINT" else "report training") == 1


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
