"""What happens to worker processes when something goes wrong."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from envs.metaworld import make_vector
from envs.vector import TaskVector
from mtrl.errors import RunError

TASKS = ["reach-v3", "drawer-close-v3"]
ACTIONS = np.zeros((2, 4))


@pytest.fixture
def vector() -> Iterator[TaskVector]:
    with make_vector(TASKS, seed=0, num_workers=2) as vector:
        vector.reset()
        yield vector


def worker_of(vector: TaskVector, task: str) -> subprocess.Popen[bytes]:
    return next(worker.process for worker in vector._workers if task in worker.tasks.values())


def gone(pid: int) -> bool:
    """Whether a process has ended; an ended one that nobody has waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_worker_that_dies_is_named_and_the_others_end(vector: TaskVector) -> None:
    other = worker_of(vector, TASKS[1])
    worker = worker_of(vector, TASKS[0])
    worker.kill()
    worker.wait()
    with pytest.raises(RunError, match=r"worker \d \(reach-v3\) died with exit code -9") as caught:
        vector.step(ACTIONS)
    assert "\n" not in str(caught.value)
    assert other.poll() is not None
    with pytest.raises(RunError, match="closed"):
        vector.step(ACTIONS)


def test_an_exception_in_a_worker_arrives_with_its_traceback(vector: TaskVector) -> None:
    state = vector.state_dict()
    simulation = state["tasks"]["reach-v3"]["simulation"]
    simulation["physics"] = simulation["physics"][:-1]
    with pytest.raises(RunError, match=r"worker \d \(reach-v3\) failed: TypeError") as caught:
        vector.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert "Traceback" in caught.value.__notes__[0]


def test_workers_leave_signals_to_the_parent(vector: TaskVector) -> None:
    for name in (signal.SIGINT, signal.SIGTERM):
        worker_of(vector, TASKS[0]).send_signal(name)
    assert not vector.step(ACTIONS).unstable.any()


@pytest.mark.parametrize("method", ["step_wait", "state_dict"])
def test_after_an_interruption_everything_can_be_saved(vector: TaskVector, method: str) -> None:
    worker = worker_of(vector, TASKS[1])

    def interrupt(*_: object) -> None:
        worker.send_signal(signal.SIGCONT)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        worker.send_signal(signal.SIGSTOP)
        if method == "step_wait":
            vector.step_async(ACTIONS)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            getattr(vector, method)()
    finally:
        signal.signal(signal.SIGALRM, previous)
    if method == "step_wait":
        vector.step_wait()
    state = vector.state_dict()
    following = vector.step(ACTIONS)
    vector.load_state_dict(state)
    assert vector.step(ACTIONS).rewards.tobytes() == following.rewards.tobytes()


def test_workers_load_no_torch_and_hold_no_named_memory(vector: TaskVector) -> None:
    for task in TASKS:
        mapped = Path(f"/proc/{worker_of(vector, task).pid}/maps").read_text()
        assert "mujoco" in mapped
        assert "torch" not in mapped
        assert "/dev/shm" not in mapped


def test_a_forgotten_vector_ends_its_workers() -> None:
    vector = make_vector(TASKS[:1], seed=0)
    worker = worker_of(vector, TASKS[0])
    del vector
    assert worker.poll() is not None


@pytest.mark.parametrize("when", ["idle", "stepping", "building"])
def test_workers_end_with_a_killed_parent(when: str) -> None:
    script = """
import sys, time, numpy as np
from envs.metaworld import make_vector
from envs.vector import TaskVector
call = TaskVector._call
def announce(vector, command, arguments):
    if command == "build":
        print(*(worker.process.pid for worker in vector._workers), flush=True)
    return call(vector, command, arguments)
TaskVector._call = announce
vector = make_vector(["reach-v3", "drawer-close-v3"], seed=0, num_workers=2)
vector.reset()
print("ready", flush=True)
while sys.argv[1] == "stepping":
    vector.step(np.zeros((2, 4)))
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script, when], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if when != "building":
            assert parent.stdout.readline() == "ready\n"
        parent.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
