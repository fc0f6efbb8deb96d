"""Statistics of a data set's observations."""

from __future__ import annotations

import numpy as np
import torch

from torchrl_pwm.data.manifest import TaskRows
from torchrl_pwm.data.moments import ObservationMoments
from torchrl_pwm.data.store import EpisodeStore

__all__ = ["observation_statistics"]

_ROWS_AT_ONCE = 256


def observation_statistics(store: EpisodeStore, *, max_rows: int = 10_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each observation entry, task by task.

    They are in the manifest, over all rows. For data whose manifest has none, which were written before it had them,
    they are computed.

    Args:
        store: the data set.
        max_rows: rows read of each task where the manifest has none, evenly spaced, a few at a time.

    Returns:
        Two float32 tensors [number of tasks in the set, O], as
        :meth:`~torchrl_pwm.PWMWorldModel.set_observation_statistics` takes them; 0 and 1 for tasks without data.

    Examples:
        >>> import tempfile, numpy as np
        >>> from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter
        >>> root = tempfile.mkdtemp()
        >>> with EpisodeStoreWriter(root, "mt30", {"walker-run": 2}, row_length=10) as writer:
        ...     writer.write("walker-run", np.full((2, 11, 24), 3.0), np.zeros((2, 10, 6)), np.zeros((2, 10)))
        >>> mean, std = observation_statistics(EpisodeStore(root))
        >>> mean.shape, mean[2, 0].item(), std[2, 0].item()
        (torch.Size([30, 24]), 3.0, 0.0)
    """
    task_set = store.task_set
    mean = np.zeros((len(task_set), task_set.observation_dim))
    std = np.ones_like(mean)
    for task in store.manifest.tasks:
        if task.observation_mean is not None and task.observation_std is not None:
            mean[task.index], std[task.index] = task.observation_mean, task.observation_std
        else:
            moments = _computed(store, task, max_rows)
            mean[task.index], std[task.index] = moments.mean, moments.std
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _computed(store: EpisodeStore, task: TaskRows, max_rows: int) -> ObservationMoments:
    rows = np.unique(np.linspace(task.start, task.stop - 1, min(max_rows, task.stop - task.start)).astype(np.int64))
    moments = ObservationMoments()
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        moments.update(store.observation[rows[first : first + _ROWS_AT_ONCE]])
    return moments
