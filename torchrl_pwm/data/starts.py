"""Start states for policy extraction: chosen from offline episodes so that a few thousand cover a task."""

from __future__ import annotations

import numpy as np
from tensordict import TensorDict

from torchrl_pwm.data.store.storage import EpisodeStorage
from torchrl_pwm.data.store.store import EpisodeStore

__all__ = ["start_states"]


def start_states(
    store: EpisodeStore,
    task: str,
    count: int,
    *,
    resets: float = 0.1,
    top: float = 1.0,
    seed: int = 0,
) -> TensorDict:
    """Draws start states of one task, spread evenly over the time of its episodes.

    A uniform draw from a replay that went from random to expert holds few first steps, where every real episode
    begins, and as many states of aimless episodes as of good ones. Here a share of the states are the first of their
    episodes, the others fall one into each of equally long stretches of time, and they can be taken from the best
    episodes only. With each state comes the action that the data took there.

    Args:
        store: the data set.
        task: name of a task it holds.
        count: number of start states N.
        resets: share that are first states of episodes.
        top: share of the episodes, those of the highest return, that states are taken from.
        seed: seed of the draw.

    Returns:
        TensorDict [N] in order of a random permutation, with ``observation`` [N, O], ``action`` [N, A] and ``task``
        [N] (int64).

    Raises:
        ValueError: for a task without data, or a number out of range.

    Examples:
        >>> import tempfile, numpy as np
        >>> from torchrl_pwm.data import EpisodeStoreWriter
        >>> root = tempfile.mkdtemp()
        >>> with EpisodeStoreWriter(root, "mt30", {"cheetah-run": 4}, row_length=50) as writer:
        ...     writer.write("cheetah-run", np.zeros((4, 51, 24)), np.zeros((4, 50, 6)), np.ones((4, 50)))
        >>> start_states(EpisodeStore(root), "cheetah-run", 10)["observation"].shape
        torch.Size([10, 24])
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, found {count}")
    for name, share, low in (("resets", resets, 0.0), ("top", top, np.nextafter(0.0, 1.0))):
        if not low <= share <= 1.0:
            raise ValueError(
                f"{name} is a share of the whole, expected {'0' if low == 0 else 'more than 0'} to 1, found {share}"
            )
    (rows,) = store.select(task)
    length = store.row_length
    # where a set's tasks differ in length, an episode is several rows that follow each other
    whole = rows.behavior_return_std is not None
    parts = store.task_set[rows.name].episode_length // length if whole else 1
    returns = store.returns[rows.start : rows.stop].reshape(-1, parts).sum(1)
    episodes = np.argsort(-returns, kind="stable")[: max(round(top * len(returns)), 1)]

    draws = np.random.default_rng(seed)
    first = round(resets * count)
    stretches = np.arange(count - first) + draws.random(count - first)
    times = np.zeros(count, np.int64)
    times[first:] = (stretches * (parts * length / max(count - first, 1))).astype(np.int64)
    # whole rounds through the episodes, so that none is left out by chance
    rounds = [draws.permutation(episodes) for _ in range(-(-count // len(episodes)))]
    chosen = draws.permuted(np.concatenate(rounds)[:count])
    order = draws.permutation(count)
    items = chosen[order] * (parts * length) + times[order]
    return EpisodeStorage(store, rows.name).get(items).select("observation", "action", "task")
