"""Small real training runs, and what tells whether two of them are the same."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings, strategies
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtrl.run.checkpoints import Checkpoints
from mtrl.run.metrics import read_metrics
from scripts.entry import message_of
from tests import commands

SOAK = settings.get_current_profile_name() == "soak"
BURST = 200  # updates when the warm-up ends
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(commands.ROOT)}
REINFORCEMENT = [
    "train.py",
    "benchmark=custom",
    "tasks=[reach-v3,drawer-close-v3]",
    "benchmark.horizon=20",
    "combiner=gradnorm",
    "combiner.every=3",
    "combiner.actor={name:modo,gamma:0.1,every:2,smooth:0.5}",
    "agent.hidden_sizes=[32,32]",
    "agent.task_encoding=embedding",
    "agent.critic_loss=categorical",
    "agent.reward_scale=return",
    "agent.n_step=3",
    "updates_per_step=1.5",
    "resets=[75]",
    "reset_updates=20",
    "agent.buffer_size=120",
    "batch_size=16",
    f"steps={900 if SOAK else 150}",
    "warmup_steps=30",
    f"catch_up_updates={BURST}",
    "eval.every=40",
    "eval.episodes=2",
    "checkpoint.every=30",
    "log.every=20",
    "insight.every=20",
    "device=cpu",
    "num_workers=2",
    "threads=1",
]
SUPERVISED = [
    "supervised.py",
    "benchmark=multi_digits",
    "benchmark.pairs_per_digit=1",
    "tasks=[CL,RR]",
    "combiner=pcgrad",
    f"epochs={12 if SOAK else 4}",
    "insight.every=3",
    "device=cpu",
]


def start(command: list[str], directory: Path) -> commands.Started:
    """Starts a run in a process of its own."""
    script, *overrides = command
    return commands.Started(script, *overrides, f"run_dir={directory}", errors=directory.with_suffix(".err"))


def finish(command: list[str], directory: Path) -> None:
    """Lets a run end by itself, in this process."""
    script, *overrides = command
    done = commands.run(script, *overrides, f"run_dir={directory}")
    assert done.returncode == 0, done.stderr


def wait_for(process: commands.Started, *files: str, within: Path) -> None:
    """Waits until there is a file of one of the patterns, or the process has ended."""
    deadline = time.monotonic() + 300
    while process.is_alive() and not any(file for pattern in files for file in within.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def metrics(directory: Path) -> list[dict[str, Any]]:
    """What was logged, numbers and matrices, without what depends on the clock."""
    return [
        {key: value for key, value in entry.items() if key != "time" and not key.startswith("speed/")}
        for file in ("metrics.jsonl", "matrices.jsonl")
        for entry in read_metrics(directory / file)
    ]


def curves(directory: Path) -> dict[str, list[tuple[int, Any]]]:
    """TensorBoard's curves and heat maps, as TensorBoard reads them, without what depends on the clock."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    numbers: dict[str, list[tuple[int, Any]]] = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("speed/")
    }
    return numbers | {
        tag: [(image.step, image.encoded_image_string) for image in events.Images(tag)]
        for tag in events.Tags()["images"]
    }


def state(directory: Path) -> dict[str, Any]:
    """The state that a run ended with, without what depends on the clock or counts interruptions."""
    loaded = Checkpoints(directory / "checkpoints").load()
    assert loaded is not None
    return {key: value for key, value in loaded[1].items() if "seconds" not in key and key != "counters"}


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    """Equal bit for bit, in nested containers."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}.{number}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert one.numpy().tobytes() == other.numpy().tobytes(), where
    else:
        assert one == other or (one != one and other != other), where


def assert_same_run(one: Path, other: Path) -> None:
    """The same metrics, curves and final state."""
    assert metrics(one) == metrics(other)
    left, right = curves(one), curves(other)
    assert left.keys() == right.keys()
    for tag in left:
        assert repr(left[tag]) == repr(right[tag]), tag  # NaN is NaN
    assert_same(state(one), state(other))


fuzzed = settings(
    max_examples=10_000 if SOAK else 200,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""How often a property is tried."""


def refused(error: BaseException) -> None:
    """Checks that an error is one that the user is told in one line; a bug is raised again."""
    known = message_of(error)
    if known is None:
        raise error
    code, message = known
    assert code in (1, 2)
    assert message.strip()
    assert "\n" not in message


@strategies.composite
def damage(draw: strategies.DrawFn, content: bytes) -> bytes:
    """Bytes with some of them flipped, lost, cut off, doubled or replaced."""
    damaged = bytearray(content)
    for _ in range(draw(strategies.integers(1, 3))):
        position = draw(strategies.integers(0, len(damaged)))
        length = draw(strategies.integers(0, 40))
        match draw(strategies.sampled_from(("flip", "cut", "lose", "double", "replace"))):
            case "flip" if position < len(damaged):
                damaged[position] ^= 1 << draw(strategies.integers(0, 7))
            case "cut":
                del damaged[position:]
            case "lose":
                del damaged[position : position + length]
            case "double":
                damaged[position:position] = damaged[position : position + length]
            case "replace":
                damaged[position : position + length] = draw(strategies.binary(max_size=40))
    return bytes(damaged)
