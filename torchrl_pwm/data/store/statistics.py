"""Statistics of a data set's observations."""

from __future__ import annotations

import numpy as np
import torch

from torchrl_pwm.data.store.store import EpisodeStore

__all__ = ["observation_statistics"]


def observation_statistics(store: EpisodeStore) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each observation entry over all rows, task by task, as the manifest has them.

    Args:
        store: the data set.

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
        mean[task.index], std[task.index] = task.observation_mean, task.observation_std
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()
