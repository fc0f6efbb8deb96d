"""Reads published TD-MPC2 shards: pickled TensorDicts, of which only tensors are taken and no code is run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm.data.published.pickled import read_pickled_tensordict
from torchrl_pwm.data.store.checks import refuse_actions, refuse_non_finite
from torchrl_pwm.envs.tasks import TaskSet

__all__ = ["Shard", "ShardRows", "open_shard"]

_KEYS = ("obs", "action", "reward", "task")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class ShardRows:
    """Some rows of one task in the layout of the store: observation [n, T, O], action [n, T - 1, A], reward."""

    task: str
    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray


@dataclasses.dataclass(frozen=True)
class Shard:
    """An opened shard: R rows of T entries. The tensors are memory maps where the file allows it.

    An entry holds the observation reached *after* its action, with the reward of that move; entry 0 is the first
    observation, and its action and reward are filler.
    """

    path: Path
    obs: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    task: torch.Tensor

    @property
    def num_rows(self) -> int:
        return self.obs.shape[0]

    @property
    def dtypes(self) -> dict[str, str]:
        """Type of each tensor in the file."""
        return {key: str(getattr(self, key).dtype).removeprefix("torch.") for key in _KEYS}

    def row_tasks(self, table: TaskSet) -> np.ndarray:
        """Task index of each row [R].

        Raises:
            ValueError: if a row changes its task or an index is not of the task set.
        """
        task = self.task.numpy()
        changes = (task != task[:, :1]).any(1)
        if changes.any():
            row = int(changes.nonzero()[0][0])
            indices = sorted({int(i) for i in task[row]})
            raise ValueError(
                f"row {row} of {self.path.name} belongs to several tasks ({indices}); a row holds one episode of one "
                "task: the shard is damaged or was cut at other places than its episodes"
            )
        first = task[:, 0].astype(np.int64)
        outside = (first != task[:, 0]) | (first < 0) | (first >= len(table))
        if outside.any():
            row = int(outside.nonzero()[0][0])
            raise ValueError(
                f"row {row} of {self.path.name} has the task index {task[row, 0]}, but {table.name} has the indices 0 "
                f"to {len(table) - 1}; is it a shard of another task set?"
            )
        return first

    def read(self, table: TaskSet, chunk: int) -> Iterator[ShardRows]:
        """Rows in their order, at most ``chunk`` at a time, moved from arrival entries to transitions.

        Raises:
            ValueError: for a NaN or infinity anywhere but in the filler, or an action outside [-1, 1].
        """
        tasks = self.row_tasks(table)
        for start in range(0, self.num_rows, chunk):
            here = slice(start, min(start + chunk, self.num_rows))
            arrays = {
                "observation": _numpy(self.obs[here]),
                "action": _numpy(self.action[here, 1:]),
                "reward": _numpy(self.reward[here, 1:]),
            }
            for index in np.unique(tasks[here]):
                rows = (tasks[here] == index).nonzero()[0]
                name = table[int(index)].name
                taken = {key: array[rows] for key, array in arrays.items()}
                places = [f"row {row} of {self.path.name}" for row in rows + start]
                for key, array in taken.items():
                    refuse_non_finite(array, key, name, places)
                refuse_actions(taken["action"], name, places, "is it a shard of another data set?")
                yield ShardRows(name, **taken)


def open_shard(path: Path, table: TaskSet, entries: int, *, verify: bool = True) -> Shard:
    """Opens a shard without running any of its code, and checks its shapes and types.

    Args:
        path: file written by ``torch.save``: a TensorDict or a plain dict with ``obs`` [R, T, O], ``action``
            [R, T, A] and ``reward`` [R, T] of any floating-point type and ``task`` [R, T] of whole numbers.
        table: task set that it should belong to.
        entries: expected T.
        verify: compare it with the checksums inside it, which ``torch.save`` writes; older files have none.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it cannot be read, was changed, refers to anything but tensors and TensorDicts, or has
            other shapes or types.
    """
    if not path.is_file():
        raise FileNotFoundError(f"shard {path} does not exist")
    tensors = read_pickled_tensordict(path, what="shard", verify=verify)
    missing = [key for key in _KEYS if not isinstance(tensors.get(key), torch.Tensor)]
    if missing:
        raise DamagedFileError(
            f"{path} has no tensor {', '.join(map(repr, missing))}; a shard holds obs, action, reward and task, "
            f"found {sorted(map(str, tensors))}"
        )
    obs, action, reward, task = (tensors[key] for key in _KEYS)
    if obs.ndim != 3 or obs.shape[0] == 0:
        raise DamagedFileError(
            f"{path} has obs of shape {tuple(obs.shape)}, expected (rows, T, {table.observation_dim})"
        )
    rows, length = obs.shape[:2]
    if obs.shape[2] != table.observation_dim or length != entries:
        raise DamagedFileError(
            f"{path} has obs of shape {tuple(obs.shape)}, but a shard of {table.name} has (rows, {entries}, "
            f"{table.observation_dim}); {_guess(obs.shape[2], length)}"
        )
    reward, task = (x[..., 0] if x.ndim == 3 and x.shape[2] == 1 else x for x in (reward, task))
    expected = {"action": (rows, entries, table.action_dim), "reward": (rows, entries), "task": (rows, entries)}
    for key, tensor in (("action", action), ("reward", reward), ("task", task)):
        if tuple(tensor.shape) != expected[key]:
            raise DamagedFileError(f"{path} has {key} of shape {tuple(tensor.shape)}, expected {expected[key]}")
    for key, tensor in (("obs", obs), ("action", action), ("reward", reward)):
        if tensor.dtype not in _FLOATS:
            raise DamagedFileError(
                f"{path} has {key} of type {tensor.dtype}, expected a floating-point type; numbers that were scaled to "
                "integers cannot be read back without their scale: save the shard as float32 or float16"
            )
    if task.is_floating_point():
        task = task.double()
    return Shard(path, obs, action, reward, task)


def _guess(width: int, entries: int) -> str:
    for name, shape in (("mt30", (24, 501)), ("mt80", (39, 101))):
        if (width, entries) == shape:
            return (
                f"this is what a shard of {name} looks like: pass task_set={name!r}, or get the shards of the right set"
            )
    return "rows of another length or width belong to another data set (episode_length= says the length of your own)"


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to(torch.float32).numpy()


def sorted_paths(paths: Iterable[Path]) -> list[Path]:
    """Paths by the number in their name, then by name, so that chunk_10 comes after chunk_9."""

    def key(path: Path) -> tuple[int, str]:
        digits = re.findall(r"\d+", path.stem)
        return (int(digits[-1]) if digits else -1, path.name)

    return sorted(paths, key=key)
