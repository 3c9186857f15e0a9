"""Evaluation in a process of its own: what it plays, and what becomes of it when something goes wrong."""

import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from mtrl.errors import InputError, RunError
from mtrl.rl.evaluation import Evaluator, Outcome
from mtrl.rl.evaluation_queue import EvaluationProcess, EvaluationQueue, EvaluationThread
from tests.mtrl.rl.test_evaluation import Known

SEEDS = {"training": 1, "held_out": 2}


class Random(Known):
    """Rewards are actions, and actions are random numbers of the seed: nothing but the same policy has the same."""

    def __init__(self, made: Path) -> None:
        super().__init__()
        with made.open("a") as file:
            file.write(f"{os.getpid()} {torch.get_num_threads()} {torch.cuda.is_initialized()}\n")

    def reset(self, *, seed: int | None = None) -> Any:
        self.seen = np.random.default_rng(seed)
        super().reset()
        return self.seen.random((2, 30), np.float32)

    def step_async(self, actions: Any, active: Any = None) -> None:
        super().step_async(actions, active)
        self.total += actions[:, 0]

    def step_wait(self) -> Any:
        step = super().step_wait()
        step.current_observations = self.seen.random((2, 30), np.float32)
        return step


class Layer(torch.nn.Module):
    """A policy."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(400, 30))

    @torch.no_grad()
    def decide(self, observations: Any) -> Any:
        return (torch.as_tensor(observations) @ self.weight.T).tanh().numpy()


def told(outcome: Outcome) -> bytes:
    return pickle.dumps({goals: (found.tasks, dict(found.measured)) for goals, found in outcome.items()})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that environments note in where they were made."""
    return tmp_path_factory.mktemp("evaluation") / "made"


@pytest.fixture(scope="module")
def process(made: Path) -> Iterator[EvaluationProcess]:
    with closing(EvaluationProcess(Evaluator(partial(Random, made), 4, SEEDS))) as process:
        yield process


def test_policies_are_played_bit_for_bit_as_here_by_one_process(
    process: EvaluationProcess, made: Path, tmp_path: Path
) -> None:
    with closing(EvaluationThread(Evaluator(partial(Random, tmp_path / "here"), 4, SEEDS))) as thread:
        outcomes = [told(process.play(Layer(seed).decide).result()) for seed in (0, 1, 0)]
        assert outcomes == [told(thread.play(Layer(seed).decide).result()) for seed in (0, 1, 0)]
        assert outcomes[0] == outcomes[2] != outcomes[1]
    ((there, threads, cuda),) = [line.split() for line in made.read_text().splitlines()]
    assert int(there) != os.getpid()
    assert int(threads) == torch.get_num_threads()
    assert cuda == "False"
    assert process.finished == thread.finished == process.evaluator.total == 8


def test_it_leaves_signals_to_its_parent(process: EvaluationProcess, made: Path) -> None:
    process.play(Layer(0).decide).result()
    for name in (signal.SIGINT, signal.SIGTERM):
        os.kill(int(made.read_text().split()[0]), name)
    assert process.play(Layer(1).decide).result()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not blocked & {signal.SIGINT, signal.SIGTERM}  # the parent hears them


def fail(error: Exception, observations: Any) -> Any:
    raise error


@pytest.mark.parametrize("error", [RunError("task 'a' at step 3"), InputError("no"), MemoryError(), OSError(5, "I/O")])
def test_what_goes_wrong_there_is_raised_here_and_the_policy_stays_in_the_queue(
    process: EvaluationProcess, error: Exception
) -> None:
    class Failing:
        """An agent."""

        def policy_state(self) -> dict[str, Any]:
            return {}

        def policy(self, state: Any) -> Any:
            return partial(fail, error)

    queue = EvaluationQueue(Failing(), process)  # type: ignore[arg-type]
    queue.add(5, 1.0)
    assert list(queue.outcomes(5, pytest.fail)) == []  # training goes on
    with pytest.raises(type(error)) as caught:
        list(queue.outcomes(6, lambda status: None))
    assert str(caught.value) == str(error)
    assert "in fail" in caught.value.__notes__[0]  # where it was raised
    assert [waiting["step"] for waiting in queue.waiting] == [5]
    assert process.play(Layer(0).decide).result()


def stuck(path: Path, observations: Any) -> Any:
    path.write_text(str(os.getpid()))
    time.sleep(600)


def test_close_ends_it_whatever_it_is_at(made: Path, tmp_path: Path) -> None:
    process = EvaluationProcess(Evaluator(partial(Random, made), 4, SEEDS))
    playing, at_it = process.play(partial(stuck, tmp_path / "at it")), tmp_path / "at it"
    while not (at_it.exists() and at_it.read_text()):
        assert not playing.done()
        time.sleep(0.01)
    process.close()
    assert playing.done()
    assert not psutil.pid_exists(int(at_it.read_text()))


def killed(observations: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_one_line(process: EvaluationProcess) -> None:
    for policy in (killed, Layer(0).decide):  # and it stays dead
        with pytest.raises(RunError, match=r"^the process of evaluation died with exit code -9$"):
            process.play(policy).result()
