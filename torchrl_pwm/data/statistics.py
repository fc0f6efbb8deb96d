"""Statistics of a data set's observations."""

from __future__ import annotations

import numpy as np
import torch

from torchrl_pwm.data.store import EpisodeStore

__all__ = ["observation_statistics"]

_ROWS_AT_ONCE = 256


def observation_statistics(store: EpisodeStore, *, max_rows: int = 10_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each observation entry, task by task.

    Args:
        store: the data set.
        max_rows: rows read of each task, evenly spaced, a few at a time.

    Returns:
        Two float32 tensors [number of tasks in the set, O], as
        :meth:`~torchrl_pwm.PWMWorldModel.set_observation_statistics` takes them; 0 and 1 for tasks without data.
    """
    task_set = store.task_set
    mean = np.zeros((len(task_set), task_set.observation_dim))
    std = np.ones_like(mean)
    for task in store.manifest.tasks:
        rows = np.unique(np.linspace(task.start, task.stop - 1, min(max_rows, task.stop - task.start)).astype(np.int64))
        count, total, squares = 0, np.zeros(mean.shape[1]), np.zeros(mean.shape[1])
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            block = np.asarray(store.observation[rows[first : first + _ROWS_AT_ONCE]], np.float64).reshape(
                -1, mean.shape[1]
            )
            # Sums are taken about the first observation: far from it, squares would lose the small variations.
            if count == 0:
                origin = block[0].copy()
            block -= origin
            count += len(block)
            total += block.sum(0)
            squares += np.square(block).sum(0)
        shift = total / count
        mean[task.index] = origin + shift
        std[task.index] = np.sqrt(np.maximum(squares / count - shift**2, 0.0))
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()
