"""Environments of a user's own, for tests: a point on a line, good or with one fault; also a file for the scripts."""

import time
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Line(gymnasium.Env[Any, Any]):
    """A point that its action and chance move; beyond ``goal`` its episode ends with a success.

    Observations are its place, and then its steps so far.

    Args:
        size: of observations.
        low: of the one action; with ``high``.
        high: of the one action.
        goal: where an episode ends.
        fault: what goes wrong at step ``at`` of any episode.
        at: see there.
        opaque: whether its state cannot be told.
        render_mode: what films ask for.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        size: int = 2,
        low: float = -1.0,
        high: float = 3.0,
        goal: float = 6.0,
        fault: str | None = None,
        at: int = 4,
        opaque: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = Box(low, high, (1,), np.float32)
        self.goal, self.fault, self.at, self.render_mode = goal, fault, at, render_mode
        self.place, self.steps = 0.0, 0
        self.told = (step for step in range(0)) if opaque else None  # a generator has a state that nobody can tell

    def _seen(self) -> Any:
        return np.array([self.place, *[self.steps] * (self.observation_space.shape[0] - 1)], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.normal()), 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.place += float(action[0]) + 0.1 * float(self.np_random.normal())
        success = self.place > self.goal
        given: Any = self._seen(), -abs(self.place), success, False, {"success": success}
        return self._broken(given) if self.fault and self.steps == self.at else given

    def _broken(self, given: Any) -> Any:
        observation, reward, terminated, truncated, info = given
        if self.fault == "raises":
            raise RuntimeError("the motor\nis hot")
        if self.fault == "hangs":
            time.sleep(60)
        return {
            "nan": (observation * np.nan, reward, terminated, truncated, info),
            "nan reward": (observation, np.nan, terminated, truncated, info),
            "shape": (observation[:-1], reward, terminated, truncated, info),
            "dtype": (observation.astype(complex), reward, terminated, truncated, info),
            "flag": (observation, reward, "no", truncated, info),
            "old": (observation, reward, terminated, info),
        }[str(self.fault)]

    def render(self) -> Any:
        picture = np.zeros((20, 40, 3), np.uint8)
        picture[:, : int(np.clip(self.place, 0, 39))] = 255
        return picture


def make_environments(
    goals: tuple[float, ...] = (4.0, 8.0), fault: str | None = None, opaque: bool = False
) -> dict[str, Any]:
    """Lines whose episodes of at most 9 steps end at different places."""
    make = partial(gymnasium.wrappers.TimeLimit, max_episode_steps=9)
    return {
        f"goal-{goal:g}": lambda goal=goal, **own: make(Line(goal=goal, fault=fault, opaque=opaque, **own))
        for goal in goals
    }


RETURNS = {"goal-4": (-30.0, -5.0), "goal-8": (-40.0, -10.0)}
