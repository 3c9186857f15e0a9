"""A family of one's own, drones that are to hover in the wind: ``python scripts/train.py benchmark=drones``."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Drone(gymnasium.Env[Any, Any]):
    """A mass of 1 in the plane, pushed by rotors and wind; success is a second within 0.1 of the middle."""

    observation_space = Box(-np.inf, np.inf, (4,), np.float32)  # place and velocity
    action_space = Box(-2.0, 2.0, (2,), np.float32)  # force

    def __init__(self, wind: tuple[float, float]) -> None:
        self.wind = np.array(wind)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Starts at rest, anywhere around the middle."""
        super().reset(seed=seed)
        self.place, self.velocity, self.hovered = self.np_random.uniform(-1, 1, 2), np.zeros(2), 0
        return np.concatenate([self.place, self.velocity]).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        """A twentieth of a second."""
        self.velocity = 0.98 * self.velocity + 0.05 * (action + self.wind)
        self.place = self.place + 0.05 * self.velocity
        distance = float(np.linalg.norm(self.place))
        self.hovered = self.hovered + 1 if distance < 0.1 else 0
        observation = np.concatenate([self.place, self.velocity]).astype(np.float32)
        return observation, -distance, distance > 10, False, {"success": self.hovered >= 20}


def make_environments() -> dict[str, Any]:
    """Four winds."""
    winds = {"calm": (0, 0), "west": (1, 0), "east": (-1, 0), "north": (0, -1)}
    return {name: lambda wind=wind: gymnasium.wrappers.TimeLimit(Drone(wind), 100) for name, wind in winds.items()}
