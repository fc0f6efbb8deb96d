"""A data set whose values say where they come from: task, row and step."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from torchrl_pwm.data import EpisodeStoreWriter
from torchrl_pwm.envs.tasks import get_task_set

# deliberately not in the order of the set, with unequal counts
COUNTS = {"mw-reach": 3, "walker-stand": 2, "cheetah-run": 4}


def counting_rows(task_set: str, task: str, rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """observation[..., :3] is (task, row, step); action[..., :3] and the reward say which step they belong to."""
    table = get_task_set(task_set)
    index = table[task].index
    observation = np.zeros((rows, length + 1, table.observation_dim), np.float32)
    observation[..., 0] = index
    observation[..., 1] = np.arange(rows)[:, None]
    observation[..., 2] = np.arange(length + 1)
    action = np.zeros((rows, length, table.action_dim), np.float32)
    action[..., :3] = observation[:, :-1, :3] / 512
    reward = index % 16 * 128 + observation[:, :-1, 1] * 16 + observation[:, :-1, 2]  # exact in float16, too
    return observation, action, reward.astype(np.float32)


def write_counting_store(root: Path, *, length: int = 12, task_set: str = "mt80", dtype: str = "float32") -> Path:
    with EpisodeStoreWriter(root, task_set, COUNTS, row_length=length, dtype=dtype) as writer:
        for task, rows in COUNTS.items():
            writer.write(task, *counting_rows(task_set, task, rows, length))
    return root
