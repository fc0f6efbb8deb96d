"""Transitions in TorchRL's layout: a whole data set in memory, or a memory-mapped TensorDict from a folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_pwm._utils.door import check_memmap
from torchrl_pwm._utils.errors import DamagedFileError, first_line
from torchrl_pwm.data.store.store import EpisodeStore

__all__ = ["read_memmap", "store_transitions"]


def store_transitions(root: str | os.PathLike[str]) -> TensorDictBase:
    """The transitions of a data set of one task, read into memory.

    Args:
        root: folder of the data set.

    Returns:
        TensorDict [N, L] of N episodes with ``observation``, ``action`` and, under ``"next"``, ``observation``,
        ``reward``, ``done`` and ``terminated``; of episodes of different lengths one row [1, T], one after the other.
        The last step of each episode is done.

    Raises:
        FileNotFoundError, ValueError: if there is no data set, or it is damaged.
        ValueError: if it is of several tasks.

    Examples:
        >>> import tempfile, numpy as np
        >>> from torchrl_pwm import write_episodes
        >>> episode = {"observation": np.zeros((6, 3)), "action": np.zeros((5, 1)), "reward": np.ones(5)}
        >>> store = write_episodes(tempfile.mkdtemp() + "/data", [episode, episode])
        >>> store_transitions(store.root).shape
        torch.Size([2, 5])
    """
    store = EpisodeStore(root)
    if len(store.tasks) != 1:
        raise ValueError(f"{store.root} holds the tasks {list(store.tasks)[:8]}, expected one task")
    episodes = [store.episode(row) for row in range(store.num_rows)]
    lengths = store.lengths.tolist()
    ends = np.cumsum(lengths) - 1
    done = torch.zeros(int(sum(lengths)), 1, dtype=torch.bool)
    done[ends] = True
    terminated = torch.zeros_like(done)
    terminated[ends, 0] = torch.from_numpy(np.array(store.terminated, dtype=bool))
    joined = {
        "observation": np.concatenate([episode.observation[:-1] for episode in episodes]),
        "action": np.concatenate([episode.action for episode in episodes]),
        "next_observation": np.concatenate([episode.observation[1:] for episode in episodes]),
        "reward": np.concatenate([episode.reward for episode in episodes])[:, None],
    }
    numbers = {key: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for key, value in joined.items()}
    after = {"observation": numbers["next_observation"], "reward": numbers["reward"]}
    steps = TensorDict(
        {
            "observation": numbers["observation"],
            "action": numbers["action"],
            "next": TensorDict({**after, "done": done, "terminated": terminated}, [len(done)]),
        },
        [len(done)],
    )
    return steps.reshape(len(lengths), -1) if len(set(lengths)) == 1 else steps.unsqueeze(0)


def read_memmap(folder: str | os.PathLike[str]) -> TensorDictBase:
    """The TensorDict that ``td.memmap(folder)`` wrote, memory-mapped; nothing in the folder is executed.

    Raises:
        FileNotFoundError: if one of its files is missing.
        DamagedFileError: if the folder holds something else than tensors, or is damaged.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = TensorDict({"observation": torch.zeros(2, 3, 4)}, [2, 3]).memmap(folder)
        >>> read_memmap(folder).shape
        torch.Size([2, 3])
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"No folder of a memory-mapped TensorDict at {folder}.")
    check_memmap(Path(folder))
    try:
        return TensorDict.load_memmap(folder, allow_pickle=False)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        raise DamagedFileError(
            f"{folder} is no folder of a memory-mapped TensorDict, or damaged: found {first_line(error)}; write it "
            "again with td.memmap(folder), of tensors alone"
        ) from error
