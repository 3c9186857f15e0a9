"""A worker process: steps some of a vector's tasks. `envs.metaworld.vector` starts it, in a new interpreter."""

import contextlib
import mmap
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
from envs.metaworld.shared import DONE, STEP, Options, block, block_size
from envs.metaworld.task import TaskEnv


def main() -> None:
    """Serves the vector until its end of the connection is closed, or it dies."""
    # The vector's process decides when to stop, not the terminal or the scheduler.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])), memory=int(sys.argv[2]))


def _die_with(parent: int) -> None:
    """Ends this process soon after its parent, also while it builds tasks or some fork holds the connection."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _serve(connection: Connection, memory: int) -> None:
    """Answers each message; an empty answer means done, another one is a pickled (value, traceback)."""
    group: Any = None
    while True:
        message = connection.recv_bytes()
        try:
            if message == STEP:
                group.step()
                answer = DONE
            else:
                command, argument = pickle.loads(message)
                if command == "build":
                    group = _Group(memory, *argument)
                    value = None
                else:
                    value = getattr(group, command)(argument)
                answer = pickle.dumps((value, None))
        except Exception as error:
            summary = f"{type(error).__name__}: {error}".splitlines()[0]
            answer = pickle.dumps((summary, traceback.format_exc()))
        connection.send_bytes(answer)


class _Group:
    """The tasks of this worker, each with its row of the shared block."""

    def __init__(self, memory: int, num_tasks: int, rows: dict[int, str], options: Options) -> None:
        if options.fast:
            fast.install()
        mujoco.set_mju_user_warning(lambda _: None)  # instead of a log file; the step says that it was unstable
        self._block = block(mmap.mmap(memory, block_size(num_tasks)), num_tasks)
        self._tasks = {row: TaskEnv(name, options) for row, name in rows.items()}

    def step(self) -> None:
        shared = self._block
        for row, task in self._tasks.items():
            if not shared.active[row]:
                continue
            outcome = task.step(shared.actions[row])
            shared.next_observations[row] = outcome.observation
            shared.rewards[row] = outcome.reward
            shared.terminated[row] = outcome.terminated
            shared.truncated[row] = outcome.truncated
            shared.success[row] = outcome.success
            shared.unstable[row] = outcome.unstable
            shared.episode_return[row] = task.episode_return
            shared.episode_success[row] = task.episode_success
            if outcome.terminated or outcome.truncated:
                task.reset()
            shared.current_observations[row] = task.observation

    def reset(self, restart_goals: bool) -> None:
        for row, task in self._tasks.items():
            self._block.current_observations[row] = task.reset(restart_goals=restart_goals)

    def state(self, _: None) -> dict[str, dict[str, Any]]:
        return {task.name: task.state() for task in self._tasks.values()}

    def load_state(self, states: dict[str, dict[str, Any]]) -> None:
        for row, task in self._tasks.items():
            task.load_state(states[task.name])
            self._block.current_observations[row] = task.observation
