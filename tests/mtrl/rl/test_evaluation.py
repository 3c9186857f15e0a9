"""What an evaluation measures, on environments of which all is known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtrl.errors import RunError
from mtrl.rl import evaluation
from mtrl.rl.evaluation import evaluate

TASKS = ["a", "b"]


class Known:
    """Episodes of task i have ``2 + i`` steps of reward ``10 i - episode``, and every other one succeeds."""

    def __init__(self, *, whole: bool = True, tells: tuple[bool, bool] = (True, True), ends: bool = True) -> None:
        self.tasks, self.whole_episodes, self.tells_success = list(TASKS), whole, np.array(tells)
        self.reference_returns: dict[str, tuple[float, float]] = {}
        self.restarted: list[str] = []
        self.ends = ends

    def reset(self, *, seed: int | None = None) -> Any:
        self.episode, self.clock = np.zeros((2, 2), int)
        self.total = np.zeros(2)
        return np.zeros((2, 1), np.float32)

    current_observations: Any = np.zeros((2, 1), np.float32)

    def step_async(self, actions: Any, active: Any = None) -> None:
        self.active = active

    def step_wait(self) -> Any:
        self.clock += self.active
        self.total += self.active * (10.0 * np.arange(2) - self.episode)
        ended = self.active & (self.clock == np.array([2, 3])) & self.ends
        step = SimpleNamespace(
            current_observations=np.zeros((2, 1), np.float32),
            terminated=ended,
            truncated=np.zeros(2, bool),
            episode_return=self.total.copy(),
            episode_success=self.episode % 2 == 1,
        )
        self.episode += ended
        self.clock[ended] = self.total[ended] = 0
        return step

    def close(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def outcome(environments: Known, **given: Any) -> evaluation.Evaluation:
    return evaluate(lambda seen: np.zeros((2, 1), np.float32), environments, 4, 0, **given)


def test_success_is_all_where_episodes_end_with_it() -> None:
    found = outcome(Known(whole=False))
    assert found.metrics("eval/") == {"eval/success_mean": 0.5, "eval/success/a": 0.5, "eval/success/b": 0.5}
    assert found.summary() == {"success_mean": 0.5, "success": {"a": 0.5, "b": 0.5}}


def test_returns_and_lengths_are_of_whole_episodes() -> None:
    """Of a: 2 steps of 0, -1, -2, -3; of b: 3 steps of 10, 9, 8, 7."""
    found = outcome(Known()).metrics("eval/")
    assert [found[f"eval/return/{task}"] for task in TASKS] == [-3.0, 25.5]
    assert found["eval/return_mean"] == 11.25
    assert [found[f"eval/length/{task}"] for task in TASKS] == [2.0, 3.0]
    assert list(outcome(Known()).measured) == ["success", "return", "length"]


def test_scores_are_returns_between_a_random_policys_and_an_experts() -> None:
    environments = Known()
    environments.reference_returns = {"a": (-5.0, -1.0), "b": (30.0, 21.0)}  # an expert may want little
    found = outcome(environments)
    assert list(found.measured) == ["success", "score", "return", "length"]
    assert found.by_task("score") == pytest.approx({"a": 0.5, "b": 0.5})
    assert found.summary()["score_mean"] == pytest.approx(0.5)
    assert found.summary()["scores"] == found.by_task("score")


def test_success_is_one_where_every_task_tells_it_or_it_is_asked_for() -> None:
    assert "success" not in outcome(Known(tells=(True, False))).measured
    assert outcome(Known(tells=(False, False)), metric="success").mean("success") == 0.5


def test_an_episode_that_never_ends_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 50)
    with pytest.raises(RunError, match=r"an episode of task 'a' has not ended after 50 steps .* benchmark.horizon"):
        outcome(Known(ends=False))
