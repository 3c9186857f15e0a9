"""Runs that are killed at random moments, and meet every other disaster, end as if nothing had happened."""

import json
import random
import resource
import signal
import time
from pathlib import Path

import psutil
import pytest

from mtrl.run.checkpoints import Checkpoints
from tests.reliability.runs import (
    BURST,
    REINFORCEMENT,
    SOAK,
    SUPERVISED,
    assert_same_run,
    finish,
    start,
    wait_for,
)

KILLS = 30 if SOAK else 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run of reinforcement learning that nothing disturbs, and the seconds that it took but for loading Python."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    begun = time.monotonic()
    finish(REINFORCEMENT, directory)
    return directory, time.monotonic() - begun


def kill_somewhere(command: list[str], directory: Path, duration: float, moment: random.Random) -> bool:
    """Starts a run and kills it with SIGKILL: a random time after it has begun, or when some file begins to be written.

    Returns:
        Whether it was killed; otherwise it has finished before.
    """
    process = start(command, directory)
    if moment.random() < 0.5:
        lock = directory / ".lock"
        while process.is_alive() and not (lock.exists() and lock.read_text().strip() == str(process.pid)):
            time.sleep(0.005)
        end = time.monotonic() + moment.uniform(0, duration)
        while time.monotonic() < end and process.is_alive():
            time.sleep(0.005)
    else:
        pattern = moment.choice(["checkpoints/step-*.pt.tmp", "checkpoints/step-*.json.tmp", "**/*.tmp"])
        for _ in range(moment.randint(1, 3)):
            while process.is_alive() and any(directory.glob(pattern)):  # that of the time before
                time.sleep(0.001)
            wait_for(process, pattern, within=directory)
            time.sleep(moment.uniform(0, 0.02))
    process.kill()
    return process.ended()[0] == -signal.SIGKILL


def kill_again_and_again(command: list[str], whole: Path, duration: float, directory: Path) -> None:
    moment = random.Random(20261304)  # first at the third checkpoint, then in the middle of what goes on from there
    kills = runs = 0
    while kills < KILLS:
        run = directory / f"killed-{runs}"
        runs += 1
        while kills < KILLS and kill_somewhere(command, run, duration, moment):
            kills += 1
        finish(command, run)
        assert_same_run(whole, run)
        assert not list(run.rglob("*.tmp"))
    print(f"{kills} kills in {runs} runs survived")


def test_reinforcement_learning_survives_kills(whole: tuple[Path, float], tmp_path: Path) -> None:
    kill_again_and_again(REINFORCEMENT, *whole, tmp_path)


def test_supervised_learning_survives_kills(tmp_path: Path) -> None:
    begun = time.monotonic()
    finish(SUPERVISED, tmp_path / "whole")
    kill_again_and_again(SUPERVISED, tmp_path / "whole", time.monotonic() - begun, tmp_path)


def test_one_disaster_after_the_other(whole: tuple[Path, float], tmp_path: Path) -> None:
    """SIGTERM among the updates of the burst, a full disk, a killed worker, a flipped bit: then it ends the same."""
    directory = tmp_path / "run"
    store = Checkpoints(directory / "checkpoints")

    process = start(REINFORCEMENT, directory)
    wait_for(process, "checkpoints/step-30.json", within=directory)
    time.sleep(0.1)
    process.terminate()
    code, errors = process.ended()
    assert code == 128 + signal.SIGTERM, errors
    loaded = store.load()
    assert loaded is not None
    assert loaded[0] == 30
    assert 0 < loaded[1]["updates"] < BURST

    process = start(REINFORCEMENT, directory)
    wait_for(process, "checkpoints/step-60.json", within=directory)
    full = 100_000  # bytes: less than a state, more than all that is not written yet of the replay buffer
    psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (full, full))
    code, errors = process.ended()
    assert code == 1, errors
    assert "Traceback" not in errors
    message = errors.splitlines()[-1]
    assert message.startswith("error: ")
    assert "File too large" in message
    assert str(directory / "checkpoints" / "step-") in message

    process = start(REINFORCEMENT, directory)
    wait_for(process, "checkpoints/step-90.json", within=directory)
    psutil.Process(process.pid).children()[0].kill()
    code, errors = process.ended()
    assert code == 1, errors
    assert "simulator worker" in errors.splitlines()[-1]

    manifest = json.loads((store.directory / f"step-{store.steps()[-1]}.json").read_text())
    damaged = store.directory / manifest["state"]["file"]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 1
    damaged.write_bytes(content)
    with pytest.warns(UserWarning, match="does not match its checksum"):
        finish(REINFORCEMENT, directory)

    assert_same_run(whole[0], directory)
    counters = json.loads((directory / "summary.json").read_text())["counters"]
    assert counters["resumes"] == 3
    assert counters["checkpoints_passed_over"] == 1
    assert counters["metrics_missing"] == 0
