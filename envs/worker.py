"""A worker process: steps some of a vector's tasks. `envs.vector` starts it, in a new interpreter."""

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from gymnasium.spaces import Box

from envs.shared import Family, Outcome, Task, block, widened
from mtrl.errors import InputError, RunError


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
    """Answers each (command, arguments) with a (value, traceback); an unusable input is its own value."""
    while True:
        command, arguments = pickle.loads(connection.recv_bytes())
        answer: tuple[Any, str | None]
        try:
            answer = getattr(group, command)(*arguments), None
        except InputError as error:
            answer = error, traceback.format_exc()
        except RunError as error:
            answer = str(error), traceback.format_exc()
        except Exception as error:
            answer = described(error), traceback.format_exc()
        connection.send_bytes(pickle.dumps(answer))


def described(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


class _Group:
    """The tasks of this worker, each with its row of the shared block."""

    def __init__(self, memory: int) -> None:
        self._memory = memory

    def build(self, family: Family, rows: dict[int, str], seed: int) -> dict[str, tuple[Box, Box]]:
        self._tasks: dict[int, Task] = {row: family.make(name, seed) for row, name in rows.items()}
        return {task.name: (task.observation_space, task.action_space) for task in self._tasks.values()}

    def share(self, num_tasks: int, observation_size: int, action_size: int) -> None:
        self._block = block(self._memory, num_tasks, observation_size, action_size)
        self._size = observation_size
        self._outcomes = self._block[[*Outcome._fields, "episode_return", "episode_success", "tells_success"]]
        self._progress = self._block[["episode", "episode_length"]]
        self._busy = self._block["busy"]

    def step(self) -> None:
        for row, task in self._tasks.items():
            if self._block["active"][row]:
                with self._at_work(row, task):
                    outcome = task.step(self._block["actions"][row])
                    if self._size != len(outcome.next_observations):
                        outcome = outcome._replace(next_observations=widened(outcome.next_observations, self._size))
                self._outcomes[row] = *outcome, task.episode_return, task.episode_success, task.tells_success
                if outcome.terminated or outcome.truncated:
                    with self._at_work(row, task):
                        task.reset()
                self._show(row, task)

    def reset(self, seed: int | None) -> None:
        for row, task in self._tasks.items():
            with self._at_work(row, task):
                task.reset(seed=seed)
            self._show(row, task)

    def state(self) -> dict[str, dict[str, Any]]:
        return {task.name: task.state() for task in self._tasks.values()}

    def load_state(self, states: dict[str, dict[str, Any]]) -> list[str]:
        for row, task in self._tasks.items():
            task.load_state(states[task.name])
            self._show(row, task)
        return [task.name for task in self._tasks.values() if task.restarted]

    def _show(self, row: int, task: Task) -> None:
        observation = task.observation
        self._block["current_observations"][row] = (
            observation if len(observation) == self._size else widened(observation, self._size)
        )
        self._progress[row] = task.episode, task.episode_length

    @contextlib.contextmanager
    def _at_work(self, row: int, task: Task) -> Iterator[None]:
        """Names the task, its episode and its step where something fails; shows meanwhile that it is at work."""
        self._busy[row] = True
        try:
            yield
        except Exception as error:
            raise RunError(f"{where(task.name, task.episode, task.episode_length)}: {described(error)}") from error
        self._busy[row] = False


def where(task: str, episode: int, length: int) -> str:
    """Which step of which episode a task failed at, in words; ``length`` is how many were done."""
    return f"task '{task}' at step {length + 1} of its episode {max(episode, 0) + 1}"
