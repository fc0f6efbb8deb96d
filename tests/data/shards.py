"""Shards in the published layout whose values say where they come from, and their conversion."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tests.data.counting import counting_rows
from torchrl_pwm.data import convert_shards
from torchrl_pwm.envs.tasks import MT80

LENGTH = 6


def make_shard(rows, *, task_set=MT80, length=LENGTH, dtype=torch.float32, filler=float("nan")):
    """Arrival entries of counting rows; ``rows`` lists (task name, number of the row within the task)."""
    parts = collections.defaultdict(list)
    for task, number in rows:
        observation, action, reward = counting_rows(task_set, task, number + 1, length)
        parts["obs"].append(torch.tensor(observation[-1]))
        parts["action"].append(torch.tensor(np.concatenate([np.full_like(action[-1, :1], filler), action[-1]])))
        parts["reward"].append(torch.tensor(np.concatenate([[np.float32(filler)], reward[-1]])))
        parts["task"].append(torch.full((length + 1,), task_set[task].index))
    return {k: torch.stack(v) if k == "task" else torch.stack(v).to(dtype) for k, v in parts.items()}


SHARDS = (
    [("mw-reach", 0), ("walker-stand", 0), ("mw-reach", 1)],
    [("walker-stand", 1), ("cheetah-run", 0), ("mw-reach", 2)],
)


def save_shards(folder, *, layout="tensordict", **kwargs):
    folder.mkdir(exist_ok=True)
    paths = []
    for i, rows in enumerate(SHARDS):
        shard = make_shard(rows, **kwargs)
        if layout == "tensordict":
            shard = TensorDict(shard, batch_size=shard["task"].shape)
        paths.append(folder / f"chunk_{i}.pt")
        torch.save(shard, paths[-1], _use_new_zipfile_serialization=layout != "legacy")
    return paths


def convert(paths, root, **kwargs):
    kwargs = {"task_set": "mt80", "episode_length": LENGTH, "progress": False, **kwargs}
    return convert_shards(paths, root, **kwargs)


def refused(tmp_path, error, message, paths=None, **kwargs):
    """Asserts the error and that it leaves the folder as it was."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error, match=message):
        convert(save_shards(tmp_path / "shards") if paths is None else paths, tmp_path / "data", **kwargs)
    assert sorted({path.name for path in tmp_path.iterdir()} - {"shards"}) == [n for n in before if n != "shards"]
