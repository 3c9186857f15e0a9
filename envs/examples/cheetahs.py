"""HalfCheetahs that are to run at different speeds: ``python scripts/train.py benchmark=cheetahs``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium


class AtSpeed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Rewards a speed, by 1 - |v - speed| / |speed| less the cost of control."""

    def __init__(self, env: gymnasium.Env[Any, Any], speed: float) -> None:
        super().__init__(env)
        self.speed = speed

    def step(self, action: Any) -> Any:
        """One step; ``info`` tells the speed."""
        observation, _, terminated, truncated, info = self.env.step(action)
        error = abs(info["x_velocity"] - self.speed) / abs(self.speed)
        return observation, 1 - error + info["reward_ctrl"], terminated, truncated, info


def _make(speed: float, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    return AtSpeed(gymnasium.make("HalfCheetah-v5", max_episode_steps=200, render_mode=render_mode), speed)


RETURNS = {"speed-1": (-36.0, 200.0), "speed+1": (-64.0, 200.0), "speed+2": (-47.0, 200.0)}
"""Of uniform actions, and the most there can be: at speed from the first step on, for nothing."""


def make_environments(speeds: tuple[float, ...] = (-1.0, 1.0, 2.0)) -> dict[str, Callable[..., Any]]:
    """A cheetah for each speed, in m/s; negative ones run backwards."""
    return {f"speed{speed:+g}": partial(_make, speed) for speed in speeds}
