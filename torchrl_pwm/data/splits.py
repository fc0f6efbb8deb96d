"""Episodes that are held out of training."""

from __future__ import annotations

import numpy as np

from torchrl_pwm.data.store.store import EpisodeStore

__all__ = ["split_episodes"]


def split_episodes(store: EpisodeStore, share: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows to train on, and of those that are held out: a share of each task's, drawn at random.

    At least one of each task's episodes is held out, and at least one kept, where it has two.

    Args:
        store: the data set.
        share: share that is held out, at least 0 and below 1; 0 holds out none.
        seed: seed of the draw.

    Returns:
        Two int64 arrays, both in ascending order.

    Raises:
        ValueError: for a share out of range.

    Examples:
        >>> import tempfile, numpy as np
        >>> from torchrl_pwm import write_episodes
        >>> def episode(length):
        ...     observation, action = np.zeros((length + 1, 3)), np.zeros((length, 1))
        ...     return {"observation": observation, "action": action, "reward": np.ones(length)}
        >>> store = write_episodes(tempfile.mkdtemp(), map(episode, range(3, 13)))
        >>> kept, held_out = split_episodes(store, 0.2)
        >>> len(kept), len(held_out)
        (8, 2)
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"the share that is held out must be at least 0 and below 1, found {share}")
    held = np.zeros(store.num_rows, bool)
    draws = np.random.default_rng(seed)
    for rows in store.manifest.tasks:
        count = rows.stop - rows.start
        chosen = min(max(round(share * count), 1), count - 1) if share else 0
        held[rows.start + draws.permutation(count)[:chosen]] = True
    return (~held).nonzero()[0], held.nonzero()[0]
