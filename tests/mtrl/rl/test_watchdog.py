"""The watchdog says what is wrong, once, and nothing where training is well."""

import json

import numpy as np
import pytest

from mtrl.rl.watchdog import CONSTANT_STEPS, SHORT_EPISODES, Watchdog

WELL = {"train/entropy": 2.0, "train/target_value": 300.0}


def watch(
    steps: int = 50,
    actions: float | None = None,
    rewards: float | None = None,
    watchdog: Watchdog | None = None,
    ended: tuple[bool, bool] = (False, False),
) -> Watchdog:
    """A watchdog of two tasks after steps with these actions of all and this reward of the second task."""
    watchdog = watchdog or Watchdog(["a", "b"], evaluate_every=10**9)
    random = np.random.default_rng(0)
    for _ in range(steps):
        taken = random.uniform(-1, 1, (2, 4)).astype(np.float32) if actions is None else np.full((2, 4), actions, "f4")
        watchdog.observe(
            taken, np.array([random.normal(), random.normal() if rewards is None else rewards]), np.array(ended)
        )
    return watchdog


def test_it_is_silent_where_training_is_well() -> None:
    watchdog = watch(100)
    assert watchdog.check(100, WELL) == []
    assert watchdog.check(200, {}) == []  # in the warm-up there are neither updates nor actions of the policy
    assert set(watchdog.counts.values()) == {0}


@pytest.mark.parametrize(
    ("kind", "metrics", "actions", "message"),
    [
        ("policy_collapse", WELL | {"train/entropy": -21.0}, None, "its entropy is -21.0"),
        ("policy_collapse", WELL, 1.0, "100.0% of its action components are at the edge"),
        ("value_explosion", WELL | {"train/target_value": -3e6}, None, "their mean target is -3e+06"),
    ],
)
def test_it_warns_once_and_again_after_it_was_better(
    kind: str, metrics: dict[str, float], actions: float | None, message: str
) -> None:
    watchdog = watch(50, actions)
    (warning,) = watchdog.check(100, metrics)
    assert message in warning
    assert "step 100" in warning
    assert watch(50, actions, watchdog=watchdog).check(200, metrics) == []
    assert watch(watchdog=watchdog).check(300, WELL) == []
    assert len(watch(50, actions, watchdog=watchdog).check(400, metrics)) == 1
    assert watchdog.counts == dict.fromkeys(watchdog.counts, 0) | {kind: 2}


def test_a_reward_that_never_changes() -> None:
    watchdog = watch(CONSTANT_STEPS, rewards=0.5)
    assert watchdog.check(CONSTANT_STEPS, WELL) == []
    watch(1, rewards=0.5, watchdog=watchdog)
    (warning,) = watchdog.check(CONSTANT_STEPS + 1, WELL)
    assert warning.startswith("the reward of task 'b' has been 0.5 for 10,000 steps")
    watch(1, watchdog=watchdog)
    assert watchdog.check(CONSTANT_STEPS + 2, WELL) == []
    assert watchdog.counts["constant_reward"] == 1


def test_a_task_that_is_no_longer_evaluated() -> None:
    watchdog = Watchdog(["a", "b"], evaluate_every=100)
    watchdog.evaluated(100, {"a": 0.5, "b": 0.0})
    watchdog.evaluated(200, {"a": 0.5, "b": float("nan")})
    assert watchdog.check(300, WELL) == []
    watchdog.evaluated(300, {"a": 0.5})
    assert watchdog.check(301, WELL) == ["task 'b' has not been evaluated since step 100 (step 301)"]
    assert watchdog.counts["not_evaluated"] == 1


def test_episodes_of_one_step_are_said_unless_a_longer_one_comes_between() -> None:
    watchdog = watch(SHORT_EPISODES + 1, ended=(True, False))
    assert watchdog.check(1, WELL) == ["task 'a' ends at once: its episodes have one step (step 1)"]
    assert watchdog.counts["short_episodes"] == 1
    watch(1, watchdog=watchdog, ended=(False, False))
    watch(1, watchdog=watchdog, ended=(True, False))
    assert watchdog.check(2, WELL) == []
    for _ in range(SHORT_EPISODES):
        watch(2, watchdog=watchdog, ended=(True, True))
        watch(1, watchdog=watchdog)
    assert watchdog.check(3, WELL) == []


def test_it_goes_on_from_its_state() -> None:
    watchdog = watch(40, actions=1.0, rewards=0.5)
    watchdog.check(40, WELL | {"train/entropy": -30.0})
    watch(60, actions=1.0, rewards=0.5, watchdog=watchdog)
    copy = Watchdog(["a", "b"], evaluate_every=10**9)
    copy.load_state_dict(json.loads(json.dumps(watchdog.state_dict())))
    for one in (watchdog, copy):
        watch(CONSTANT_STEPS, actions=1.0, rewards=0.5, watchdog=one)
    assert copy.check(20_000, WELL) == watchdog.check(20_000, WELL)
    assert copy.state_dict() == watchdog.state_dict()
    assert copy.counts["constant_reward"] == 1
