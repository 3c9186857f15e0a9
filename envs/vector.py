"""A vector of tasks, stepped by worker processes."""

import contextlib
import os
import pickle
import select
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from multiprocessing import Pipe
from typing import Any, NoReturn, Self

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from envs.shared import Family, block, widened
from envs.worker import where
from mtrl.errors import InputError, RunError
from mtrl.ranges import Count, Index, check_arguments
from mtrl.rl.protocols import Bools, Step
from mtrl.run.machine import cores

_STEP = pickle.dumps(("step", ()))


class TaskVector:
    """The T tasks of a family, stepped together by worker processes.

    Observations carry no identity of their task. Everything random follows from the seed and the task's name: a task's
    episodes are the same bytes whatever the other tasks and the number of workers. Actions are taken as float32 and
    clipped to [-1, 1]; what they stand for is up to the task.

    The workers import neither torch nor the user's main script, leave nothing behind in the file system or shared
    memory, and end with this process however it ends. Close the vector, or use it in a ``with`` statement.

    Args:
        family: the tasks.
        seed: not negative.
        num_workers: processes; by default one a core, at most one a task.

    Raises:
        InputError: if an argument is not as described, a task cannot be made, or the tasks' spaces are not alike.
        RunError: if a worker fails, dies or does not answer, from every method that waits for workers. The vector is
            closed then.
    """

    patience = 600
    """Seconds that an answer of a worker is waited for."""

    def __init__(self, family: Family, *, seed: Index, num_workers: Count | None = None) -> None:
        self.family, self.tasks, self.seed = family, list(family.tasks), seed
        self.num_tasks = len(self.tasks)
        num_workers = cores() if num_workers is None else num_workers
        check_arguments(TaskVector.__init__, {"seed": seed, "num_workers": num_workers})
        self.whole_episodes, self.reference_returns = family.whole_episodes, dict(family.reference_returns)
        self.restarted: list[str] = []
        """The tasks whose episode the last `load_state_dict` could not go on with: they began another."""

        memory = _anonymous_memory()
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _stop, self._workers, memory)
        self._waiting: list[_Worker] = []
        self._started = self._stepping = False
        for rows in family.groups(min(num_workers, self.num_tasks)):
            names = {row: self.tasks[row] for row in rows}
            self._workers.append(_Worker(len(self._workers), names, memory))
        made = self._call("build", ((family, worker.tasks, seed) for worker in self._workers))
        spaces = {task: own for part in made for task, own in part.items()}
        try:
            common = common_spaces({task: spaces[task] for task in self.tasks}, pad=family.pad)
        except InputError:
            self.close()
            raise
        self.single_observation_space, self.single_action_space = common
        self.observation_space = batch_space(self.single_observation_space, self.num_tasks)
        self.action_space = batch_space(self.single_action_space, self.num_tasks)
        self._block = block(memory, self.num_tasks, *self.sizes)
        self._call("share", [(self.num_tasks, *self.sizes)] * self.num_workers)

    @property
    def sizes(self) -> tuple[int, int]:
        """O and A: of an observation and of an action."""
        return len(self.single_observation_space.low), len(self.single_action_space.low)

    @property
    def num_workers(self) -> int:
        """How many processes step the tasks."""
        return len(self._workers)

    @property
    def current_observations(self) -> NDArray[np.float32]:
        """``[T, O]``, a copy of what to act on now, also after `load_state_dict`."""
        return np.array(self._block["current_observations"])

    @property
    def tells_success(self) -> Bools:
        """``[T]``, whether any step of the task so far said whether it was a success."""
        return np.array(self._block["tells_success"])

    def reset(self, *, seed: Index | None = None) -> NDArray[np.float32]:
        """Starts a new episode in every task; returns the first observations, ``[T, O]``.

        Args:
            seed: begin anew as a vector of this seed would: its goals, and its episodes from the first one on.
        """
        check_arguments(TaskVector.reset, {"seed": seed})
        self._call("reset", [(seed,)] * self.num_workers)
        self.seed = self.seed if seed is None else seed
        self._started = True
        return self.current_observations

    def step_async(self, actions: ArrayLike, active: ArrayLike | None = None) -> None:
        """Sends the actions and returns while the workers step.

        Args:
            actions: ``[T, A]``.
            active: ``[T]``, which tasks to step; by default all. The others stay where they are: in the result
                they have no reward and no flag, and the rest is as it was.

        Raises:
            InputError: on a wrong shape.
            RunError: if an action is not finite.
        """
        actions = np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape:
            raise InputError(f"actions must have shape {self.action_space.shape}, got {actions.shape}")
        if not np.isfinite(actions).all():
            task = self.tasks[int(np.isfinite(actions).all(1).argmin())]
            raise RunError(f"an action for task '{task}' is not finite: the policy has diverged")
        self._require_idle()
        if not self._started:
            raise RunError("the task vector must be reset before its first step")
        np.clip(actions, -1.0, 1.0, out=self._block["actions"])
        self._block["active"] = True if active is None else active
        for field in ("rewards", "terminated", "truncated", "success", "unstable"):
            self._block[field] = 0
        self._send((worker, _STEP) for worker in self._workers)
        self._stepping = True

    def step_wait(self) -> Step:
        """Waits for the step that was sent; returns copies of what it led to."""
        if not self._stepping:
            raise RunError("step_wait was called without step_async")
        self._receive()
        self._stepping = False
        return Step(*(self._block[field].copy() for field in Step._fields))

    def step(self, actions: ArrayLike, active: ArrayLike | None = None) -> Step:
        """`step_async`, then `step_wait`."""
        self.step_async(actions, active)
        return self.step_wait()

    def state_dict(self) -> dict[str, Any]:
        """The exact state of every task, also in the middle of episodes, as tensors and plain values.

        A vector of the same tasks and options goes on from it bit for bit, with any number of workers; where a task's
        state cannot be told, with its next episode.
        """
        import torch  # not above: the workers import this package too
        from torch.utils._pytree import tree_map_only

        states: dict[str, Any] = {}
        for part in self._call("state", [()] * self.num_workers):
            states |= tree_map_only(np.ndarray, torch.from_numpy, part)
        return {"options": self._identity(), "tasks": {task: states[task] for task in self.tasks}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`.

        Raises:
            InputError: if it is of other tasks or options.
        """
        import torch
        from torch.utils._pytree import tree_map_only

        mine = {**self._identity(), "tasks": self.tasks}
        for key, saved in {**state["options"], "tasks": list(state["tasks"])}.items():
            if saved != mine.get(key, saved):
                raise InputError(f"the saved task vector has {key}={saved!r}, this one has {mine[key]!r}")
        states = tree_map_only(torch.Tensor, lambda tensor: tensor.cpu().numpy(), state["tasks"])
        parts = (({task: states[task] for task in w.tasks.values()},) for w in self._workers)
        self.restarted = [task for part in self._call("load_state", parts) for task in part]
        self._started = True

    def _identity(self) -> dict[str, Any]:
        """What a saved state has to agree on, besides the tasks."""
        return {"seed": self.seed, **self.family.identity()}

    def close(self) -> None:
        """Ends the workers at once; a second time it does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, command: str, arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Has every worker do something other than a step; returns their answers."""
        self._require_idle()
        messages = (pickle.dumps((command, own)) for own in arguments)
        self._send(zip(self._workers, messages, strict=True))
        return self._receive()

    def _require_idle(self) -> None:
        if not self._finalizer.alive:
            raise RunError("the task vector is closed")
        if self._stepping:
            raise RunError("step_wait must be called first: a step is under way")

    def _send(self, messages: Iterable[tuple["_Worker", bytes]]) -> None:
        for worker, message in messages:
            try:
                worker.connection.send_bytes(message)
            except ConnectionError:
                self._fail(worker.death())
            self._waiting.append(worker)

    def _receive(self) -> list[Any]:
        """The answers that are still due, in the order of the workers."""
        values = []
        while self._waiting:
            worker = self._waiting[0]
            try:
                if not worker.answers(self.patience):
                    self._fail(RunError(f"{worker} does not answer: {self._stuck(worker)}"))
                value, trace = pickle.loads(worker.connection.recv_bytes())
            except (EOFError, ConnectionError):
                self._fail(worker.death())
            del self._waiting[0]
            if isinstance(value, InputError):
                self._fail(value, trace)
            if trace is not None:
                self._fail(RunError(f"{worker} failed: {value}"), trace)
            values.append(value)
        return values

    def _stuck(self, worker: "_Worker") -> str:
        """What a worker that does not answer is at."""
        waited = f"after {self.patience} seconds"
        rows = getattr(self, "_block", {"busy": np.zeros(self.num_tasks, bool)})
        for row in (row for row in worker.tasks if rows["busy"][row]):
            return f"{where(self.tasks[row], rows['episode'][row], rows['episode_length'][row])} is not over {waited}"
        return f"what it was asked for is not done {waited}"

    def _fail(self, error: RunError | InputError, trace: str | None = None) -> NoReturn:
        self.close()
        if trace is not None:
            error.add_note(trace)
        raise error


class _Worker:
    """A worker process, seen from the vector."""

    def __init__(self, index: int, tasks: dict[int, str], memory: int) -> None:
        self.index, self.tasks = index, tasks
        self.connection, theirs = Pipe()
        self._poll = select.poll()
        self._poll.register(self.connection.fileno(), select.POLLIN)
        # A new interpreter rather than multiprocessing's, which would run the main script's imports again.
        code = "from envs.worker import main; main()"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "MUJOCO_GL": "disabled",
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(theirs.fileno()), str(memory)],
                env=environment,
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                process_group=0,  # the terminal's Ctrl-C is not for workers
            )

    def __str__(self) -> str:
        return f"simulator worker {self.index} ({', '.join(self.tasks.values())})"

    def answers(self, seconds: int) -> bool:
        """Waits for an answer, or for the worker's death, for so many seconds in which this process is awake."""
        return any(self._poll.poll(1000) for _ in range(seconds))

    def death(self) -> RunError:
        return RunError(f"{self} died with exit code {self.process.wait()}")


def common_spaces(spaces: Mapping[str, tuple[Box, Box]], *, pad: bool) -> tuple[Box, Box]:
    """What holds the observations of every task, in float32, and the actions of all: ``[-1, 1]``.

    Args:
        spaces: by task that of its observations and that of its actions, each with one dimension.
        pad: whether observations may be filled up to the largest.

    Raises:
        InputError: if they are of unequal size (the tasks are named).
    """
    sizes = {task: tuple(space.shape[0] for space in own) for task, own in spaces.items()}
    (first, (observation, action)), *others = sizes.items()
    for task, own in others:
        if own[1] != action:
            raise InputError(f"actions must be of one size: '{first}' has {action} numbers, '{task}' {own[1]}")
        if own[0] != observation and not pad:
            raise InputError(
                f"observations must be of one size: '{first}' has {observation} numbers, '{task}' {own[0]}; "
                "pad=true fills them up with zeros"
            )
    size = max(own[0] for own in sizes.values())
    low, high = (
        [widened(getattr(seen, bound), size).astype(np.float32) for seen, _ in spaces.values()]
        for bound in ("low", "high")
    )
    return Box(np.min(low, 0), np.max(high, 0), dtype=np.float32), Box(-1.0, 1.0, (action,), np.float32)


def _stop(workers: list[_Worker], memory: int) -> None:
    """Ends worker processes; they hold nothing that would have to be put in order."""
    for worker in workers:
        worker.connection.close()
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
    os.close(memory)


def _anonymous_memory() -> int:
    """A descriptor of memory to share; it has no name, so the last process that holds it takes it along."""
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it, and containers may forbid it
        return os.memfd_create("tasks")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
