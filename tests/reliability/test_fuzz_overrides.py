"""Anything on the command line: the configuration that was asked for, or one line that says what is wrong."""

import dataclasses
from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import scripts.train  # noqa: F401  # it registers the configuration's schema
from mtrl.run.directory import flatten
from mtrl.run.machine import device_of
from scripts.build import make_combiners, make_family, replay_capacity
from scripts.configuration import TrainConfig
from scripts.entry import CONFIGS
from tests.reliability.runs import SOAK, fuzzed, refused

KEYS = [
    "seed",
    "steps",
    "warmup_steps",
    "catch_up_updates",
    "batch_size",
    "eval",
    "eval.every",
    "checkpoint.every",
    "benchmark",
    "benchmark.horizon",
    "benchmark.goals",
    "tasks",
    "task",
    "combiner",
    "combiner.name",
    "combiner.actor",
    "combiner.critic",
    "combiner.every",
    "combiner.smooth",
    "combiner.log",
    "without",
    "updates_per_step",
    "resets",
    "eval.goals",
    "eval.video",
    "agent",
    "agent.actor",
    "agent.critic.block",
    "agent.critic.hidden_sizes",
    "agent.critic_loss",
    "agent.critics",
    "agent.reward_scale",
    "agent.hidden_sizes",
    "agent.discount",
    "agent.learning_rate",
    "agent.buffer_size",
    "agent.task_encoding",
    "agent.max_gradient_norm",
    "agent.target_entropy",
    "agent.initial_temperature",
    "run_dir",
    "device",
    "threads",
]
ODD = (
    *("null", "true", "mt10", "mt50", "mt1", "custom", "quickstart", "pcgrad", "mgda", "cpu", "cuda", "meta"),
    *("[]", "{}", "[reach-v3]", "[reach-v3,reach-v3]", "[[1]]", "{a:1}", "[1,2", "'a", '"a', "${seed:"),
    *("???", "${seed}", "${nothing}", "${oc.env:NOTHING}", "1e400", "0x10", "1_000", "nan", "-inf"),
    *("!!python/object:os.system", "../../x", "/dev/null"),
)
VALUES = (
    st.integers(-3, 10_000).map(str)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(max_size=12)
    | st.sampled_from(ODD)
)
OVERRIDES = st.lists(
    st.tuples(st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(KEYS) | st.text(max_size=8), VALUES).map(
        lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"
    )
    | st.text(max_size=15),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module", autouse=True)
def configs() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        yield


def check(overrides: list[str]) -> TrainConfig | None:
    """What ``scripts/train.py`` does with its command line before it makes anything; None where it refuses."""
    try:
        config = OmegaConf.to_object(compose("train", overrides))
        assert isinstance(config, TrainConfig)
        tasks = make_family(config).tasks
        device_of(config.device)
        make_combiners(config, len(tasks))
        assert 1 <= replay_capacity(config, len(tasks)) <= config.steps
    except Exception as error:
        refused(error)
        return None
    return config


@settings(fuzzed, max_examples=10_000 if SOAK else 60)  # Hydra takes its time
@given(OVERRIDES)
@example(["agent.learning_rate=inf"])
@example(["agent.hidden_sizes=[]"])
@example(["combiner=null"])
@example(["seed=0", "+="])
@example(["seed=18446744073709551615"])
@example(["~combiner"])
@example(["combiner.actor={name:mgda,every:0}"])
@example(["combiner.critic=famo", "combiner.actor=famo"])
@example(["agent.reward_scale=return", "agent.discount=1"])
@example(["agent.critic.block=residual", "agent.critic.hidden_sizes=[8,9]"])
@example(["resets=[0]", "updates_per_step=0"])
@example(["without=null"])
@example(["~without"])
@example(["agent.buffer_size=1e400"])
def test_overrides(overrides: list[str]) -> None:
    config = check(overrides)
    if config is None:
        return
    for key, value in flatten(dataclasses.asdict(config)).items():
        if isinstance(value, float):
            assert abs(value) < float("inf"), key


@settings(fuzzed, max_examples=1000 if SOAK else 10)
@given(st.sampled_from(["steps", "warmup_steps", "batch_size", "seed"]), st.integers(1, 10**12))
def test_what_is_asked_for_is_what_is_run(key: str, value: int) -> None:
    config = check([f"{key}={value}"])
    if key == "seed" and value >= 2**31:
        assert config is None
    else:
        assert config is not None
        assert getattr(config, key) == value
