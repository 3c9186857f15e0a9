"""A worker process: steps some of a vector's tasks. `envs.metaworld.vector` starts it, in a new interpreter."""

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import mujoco

from envs.metaworld import fast
from envs.metaworld.shared import Options, block
from envs.metaworld.task import Outcome, TaskEnv


def main() -> None:
    """Serves the vector until its end of the connection is closed, or it dies."""
    # The vector's process decides when to stop, not the terminal or the scheduler.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])), _Group(memory=int(sys.argv[2])))


def _die_with(parent: int) -> None:
    """Ends this process soon after its parent, also while it builds tasks or some fork holds the connection."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _serve(connection: Connection, group: "_Group") -> None:
    """Answers each (command, arguments) with a (value, traceback)."""
    while True:
        command, arguments = pickle.loads(connection.recv_bytes())
        answer: tuple[Any, str | None]
        try:
            answer = getattr(group, command)(*arguments), None
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".splitlines()[0], traceback.format_exc()
        connection.send_bytes(pickle.dumps(answer))


class _Group:
    """The tasks of this worker, each with its row of the shared block."""

    def __init__(self, memory: int) -> None:
        self._memory = memory

    def build(self, num_tasks: int, rows: dict[int, str], seed: int, options: Options) -> None:
        if options.fast:
            fast.install()
        mujoco.set_mju_user_warning(lambda _: None)  # instead of a log file; the step says that it was unstable
        self._block = block(self._memory, num_tasks)
        self._outcomes = self._block[[*Outcome._fields, "episode_return", "episode_success"]]
        self._tasks = {row: TaskEnv(name, seed, options) for row, name in rows.items()}

    def step(self) -> None:
        for row, task in self._tasks.items():
            if self._block["active"][row]:
                outcome = task.step(self._block["actions"][row])
                self._outcomes[row] = *outcome, task.episode_return, task.episode_success
                if outcome.terminated or outcome.truncated:
                    task.reset()
                self._block["current_observations"][row] = task.observation

    def reset(self, seed: int | None) -> None:
        for row, task in self._tasks.items():
            self._block["current_observations"][row] = task.reset(seed=seed)

    def state(self) -> dict[str, dict[str, Any]]:
        return {task.name: task.state() for task in self._tasks.values()}

    def load_state(self, states: dict[str, dict[str, Any]]) -> None:
        for row, task in self._tasks.items():
            task.load_state(states[task.name])
            self._block["current_observations"][row] = task.observation
