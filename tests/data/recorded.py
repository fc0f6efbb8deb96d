"""Episodes of any length whose values say where they come from: the episode and its step."""

from __future__ import annotations

from typing import Any

import numpy as np

LENGTHS = (3, 20, 1, 12, 20, 7)
TERMINATED = (True, False, True, True, False, False)


def episode(number: int, length: int, **entries: Any) -> dict[str, Any]:
    """Observation (episode, step, 1), action (step / 100, 0), reward step: float64, one column constant."""
    observation = np.ones((length + 1, 3))
    observation[:, 0], observation[:, 1] = number, np.arange(length + 1)
    action = np.zeros((length, 2))
    action[:, 0] = np.arange(length) / 100
    return {"observation": observation, "action": action, "reward": np.arange(length, dtype=np.float64), **entries}


def episodes(**entries: Any) -> list[dict[str, Any]]:
    return [
        episode(number, length, terminated=terminated, **entries)
        for number, (length, terminated) in enumerate(zip(LENGTHS, TERMINATED))
    ]
