"""Whole episodes of the data that the methods of an offline group learn from."""

from __future__ import annotations

import numpy as np

from torchrl_pwm.data import EpisodeStore


def episode_returns(store: EpisodeStore, task: str) -> np.ndarray:
    """Returns of a task's episodes in the order of their collection; of published data, those of their rows.

    Args:
        store: the data set, in which an episode may be several rows.
        task: one that it holds.
    """
    (rows,) = store.select([task])
    whole = store.row_length is not None and rows.behavior_return_std is not None
    parts = store.task_set[rows.name].episode_length // int(store.row_length or 1) if whole else 1
    return store.returns[rows.start : rows.stop].reshape(-1, parts).sum(1)


def behavior(store: EpisodeStore, task: str) -> str | None:
    """How the episodes of a task were collected, such as ``"sac"``; None of data that do not say it."""
    found = (store.manifest.source or {}).get("tasks", {}).get(task, {})
    return found.get("behavior")
