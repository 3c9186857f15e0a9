"""Policies that wait to be evaluated, and where they are played: in a thread, or in a process beside training."""

import ctypes
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from mtrl.errors import RunError
from mtrl.rl.evaluation import Evaluator, Outcome
from mtrl.rl.protocols import Agent, Environments, Policy


class EvaluationThread:
    """Plays policies in a thread, for whoever waits meanwhile, and hears signals.

    Attributes:
        evaluator: plays them, in environments that are made at the first one.
        finished: how many episodes of the one that is played every task has finished.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator, self.finished = evaluator, 0
        self._environments: Environments | None = None
        self._thread = ThreadPoolExecutor(1, "evaluation")
        self._cancelled = False

    def play(self, policy: Policy) -> Future[Outcome]:
        """Begins to play a policy; the one before is done."""
        if self._environments is None:
            self._environments = self.evaluator.make_environments()
        return self._thread.submit(self.evaluator.play, policy, self._environments, self._on_step)

    def _on_step(self, finished: int) -> None:
        self.finished = finished
        if self._cancelled:
            raise InterruptedError("the evaluation was cancelled")

    def close(self) -> None:
        """Gives up what is being played, between two steps, and closes the environments."""
        self._cancelled = True
        self._thread.shutdown()
        if self._environments is not None:
            self._environments.close()


class EvaluationProcess:
    """The same in a process of its own, on the CPU: what goes on beside it does not wait for its interpreter.

    The process is started at the first policy. It computes with as many threads as this one, leaves signals to this one
    and ends with it however it ends. Evaluator and policies are pickled.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._context = multiprocessing.get_context("spawn")
        self._finished: ctypes.c_int = self._context.RawValue("i")
        self._process: SpawnProcess | None = None
        self._thread = ThreadPoolExecutor(1, "evaluation")  # waits for its answers

    @property
    def finished(self) -> int:
        """See `EvaluationThread`."""
        return self._finished.value

    def play(self, policy: Policy) -> Future[Outcome]:
        """See `EvaluationThread`; raises what went wrong there, or `RunError` if the process died."""
        if self._process is None:
            self._process = self._start()
        # Not by the connection's own pickling, in which PyTorch passes tensors on as named shared memory.
        return self._thread.submit(self._ask, self._process, pickle.dumps(policy))

    def _start(self) -> SpawnProcess:
        self._connection, theirs = self._context.Pipe()
        work = self.evaluator, theirs, self._finished, torch.get_num_threads()
        process = self._context.Process(target=_serve, args=work, name="evaluation")
        resource_tracker.ensure_running()  # its own start would unblock signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # the process inherits it
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        return process

    def _ask(self, process: SpawnProcess, policy: bytes) -> Outcome:
        try:
            self._connection.send_bytes(policy)
            answer: Outcome | Exception = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            process.join()
            raise RunError(f"the process of evaluation died with exit code {process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Gives up what is being played; the process ends at once, and the environments' workers with it."""
        if self._process is not None:
            self._process.kill()
        self._thread.shutdown()
        if self._process is not None:
            self._process.join()
            self._connection.close()


def _serve(evaluator: Evaluator, connection: Connection, finished: ctypes.c_int, threads: int) -> None:
    """The process of an `EvaluationProcess`: answers each policy with its outcome, or with what went wrong."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    environments: Environments | None = None

    def on_step(episodes: int) -> None:
        finished.value = episodes

    with suppress(EOFError, ConnectionError):
        while True:
            policy = pickle.loads(connection.recv_bytes())
            answer: Outcome | Exception
            try:
                environments = environments or evaluator.make_environments()
                answer = evaluator.play(policy, environments, on_step)
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer = error
            connection.send_bytes(pickle.dumps(answer))


def _end_with_parent() -> None:
    """Ends this process at once when its parent does; it has nothing that would have to be put in order."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class EvaluationQueue:
    """Policies that wait to be evaluated; the oldest is being played.

    Learning no longer changes them, so when they are played makes no difference to what comes of it.

    Args:
        agent: whose policies.
        place: where they are played.
    """

    def __init__(self, agent: Agent, place: EvaluationThread | EvaluationProcess) -> None:
        self.waiting: list[dict[str, Any]] = []
        """What is not evaluated yet, oldest first, for a checkpoint: ``step``, ``seconds`` and ``policy``."""
        self._agent, self._place = agent, place
        self._playing: Future[Outcome] | None = None

    def add(self, step: int, seconds: float) -> None:
        """Has the agent's policy of this moment evaluated: of this step, after so many seconds of training."""
        self.waiting.append({"step": step, "seconds": seconds, "policy": self._agent.policy_state()})

    def outcomes(self, before: int, on_wait: Callable[[str], None]) -> Iterator[tuple[dict[str, Any], Outcome]]:
        """Waits for the evaluations of the steps before this one, oldest first; starts the one after them.

        Yields what was `waiting`, and the outcome by goals. ``on_wait`` is called with how far an evaluation is, again
        and again while it is waited for; an error that it raises leaves the evaluation in the queue.
        """
        while self.waiting:
            first = self.waiting[0]
            if self._playing is None:
                self._playing = self._place.play(self._agent.policy(first["policy"]))
            if first["step"] >= before:
                return
            while not self._playing.done():
                on_wait(f"evaluating {self._place.finished}/{self._place.evaluator.total} episodes")
                wait([self._playing], 0.1)
            outcome, self._playing = self._playing.result(), None
            del self.waiting[0]
            yield first, outcome

    def close(self) -> None:
        """Gives up what is being played."""
        self._place.close()
