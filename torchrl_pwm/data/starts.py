"""Start states for policy extraction: chosen from offline episodes so that a few thousand cover a task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_pwm.data.store.storage import EpisodeStorage
from torchrl_pwm.data.store.store import EpisodeStore
from torchrl_pwm.modules import PWMWorldModel

__all__ = ["encoded_starts", "start_states"]


def start_states(
    store: EpisodeStore,
    task: str,
    count: int,
    *,
    resets: float = 0.1,
    top: float = 1.0,
    episodes: Any = None,
    seed: int = 0,
) -> TensorDict:
    """Draws start states of one task, spread evenly over the time of its episodes.

    Where episodes differ in length, over all their steps, in the order of time.

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
        episodes: rows that states are taken from, by their numbers or as bool [N]; None takes all of the task.
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
    storage = EpisodeStorage(store, task, episodes=episodes)
    (rows,) = storage.task_rows
    kept = storage.store_rows()
    # where a set's tasks differ in length, an episode is several rows that follow each other
    whole = store.row_length is not None and rows.behavior_return_std is not None and episodes is None
    parts = store.task_set[rows.name].episode_length // int(store.row_length or 1) if whole else 1
    returns = store.returns[kept].reshape(-1, parts).sum(1)
    lengths = store.lengths[kept].reshape(-1, parts).sum(1)
    best = np.argsort(-returns, kind="stable")[: max(round(top * len(returns)), 1)]

    draws = np.random.default_rng(seed)
    first = round(resets * count)
    stretches = np.arange(count - first) + draws.random(count - first)
    if store.row_length is None:
        chosen, times = _of_any_length(best, lengths, first, stretches / max(count - first, 1), draws)
    else:
        times = np.zeros(count, np.int64)
        times[first:] = (stretches * (int(lengths[0]) / max(count - first, 1))).astype(np.int64)
        # whole rounds through the episodes, so that none is left out by chance
        chosen = draws.permuted(_in_rounds(best, count, draws))
    order = draws.permutation(count)
    items = (lengths.cumsum() - lengths)[chosen[order]] + times[order]
    return storage.get(items).select("observation", "action", "task")


def _in_rounds(episodes: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """``count`` episodes, in rounds through all of them in random order."""
    return np.concatenate([draws.permutation(episodes) for _ in range(-(-count // len(episodes)))])[:count]


def _of_any_length(
    episodes: np.ndarray, lengths: np.ndarray, first: int, stretches: np.ndarray, draws: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Episodes and times of starts: ``first`` resets, and one in each stretch of all steps in the order of time.

    Long episodes have as many more of them as they have steps.
    """
    ages = np.concatenate([np.arange(length) for length in lengths[episodes]])
    owners = np.repeat(episodes, lengths[episodes])
    mixed = draws.permutation(len(ages))
    steps = mixed[np.argsort(ages[mixed], kind="stable")]
    drawn = steps[(stretches * len(steps)).astype(np.int64)]
    chosen = np.concatenate([_in_rounds(episodes, first, draws) if first else episodes[:0], owners[drawn]])
    return chosen, np.concatenate([np.zeros(first, np.int64), ages[drawn]])


@torch.no_grad()
def encoded_starts(starts: TensorDictBase, world_model: PWMWorldModel, *, rows: int = 1024) -> TensorDictBase:
    """Start states with the latents of a frozen model in place of their observations, each encoded once.

    Args:
        starts: [N] with ``observation`` and, for a model of several tasks, ``task``.
        world_model: the model; the latents return to the device of the start states.
        rows: states that are encoded at once.

    Returns:
        TensorDict [N] with ``latent`` [N, D] and all other entries.

    Raises:
        ValueError: if an observation is not finite.

    Examples:
        >>> from torchrl_pwm import PWMWorldModel
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> encoded_starts(TensorDict({"observation": torch.randn(10, 5)}, [10]), model)["latent"].shape
        torch.Size([10, 16])
    """
    if not bool(starts["observation"].isfinite().all()):
        bad = int((~starts["observation"].isfinite().reshape(len(starts), -1).all(1)).sum())
        raise ValueError(
            f"start states must be finite, found others in {bad} of {len(starts)} observations: check the data"
        )
    device, back, latents = next(world_model.parameters()).device, starts["observation"].device, []
    for part in starts.split(rows):
        task = part["task"].to(device) if world_model.num_tasks else None
        latents.append(world_model.encode_observation(part["observation"].to(device), task).to(back))
    return starts.exclude("observation").set("latent", torch.cat(latents))
