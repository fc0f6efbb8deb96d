"""A Gymnasium env with an entry that is not finite at a chosen step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Faulty(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point that its actions move; with a fault one entry is no number at one step of its life."""

    fault: tuple[str, int, float] | None = None  # entry, step of its life, value
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        self.place, self.life = np.zeros(2, np.float32), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.standard_normal(2).astype(np.float32)
        return self.place.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = self.place + 0.1 * np.asarray(action, np.float32)
        observation, reward = self.place.copy(), -float(np.square(self.place).sum())
        if self.fault is not None and self.life == self.fault[1]:
            if self.fault[0] == "reward":
                reward = self.fault[2]
            else:
                observation[1] = self.fault[2]
        self.life += 1
        return observation, reward, False, False, {}
