"""A TorchRL storage over memory-mapped episodes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from tensordict import TensorDict
from torchrl.data.replay_buffers import Storage

from torchrl_pwm.data.manifest import TaskRows
from torchrl_pwm.data.store import EpisodeStore

__all__ = ["EpisodeStorage"]


class _Arrays(NamedTuple):
    """What is read for a batch: [..., O], [..., O], [..., A], [...]."""

    observation: np.ndarray
    next_observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray


class EpisodeStorage(Storage):
    """The transitions of a data set as a read-only TorchRL :class:`~torchrl.data.replay_buffers.Storage`.

    Item i is transition ``i % L`` of row ``i // L`` among the selected rows, so an index says its row and step by
    arithmetic, and a selection of tasks is a list of row ranges: nothing is copied.

    Args:
        store: the data set.
        tasks: task names or indices to keep; None keeps all.
        check_finite: whether every batch is checked for NaN and infinity (a few percent of the time of a sample).

    Raises:
        ValueError: for a task that is unknown or has no rows.

    Examples:
        >>> from torchrl_pwm.data import EpisodeStorage, EpisodeStore
        >>> storage = EpisodeStorage(EpisodeStore(root), tasks=["walker-run"])  # doctest: +SKIP
        >>> storage[:3]["observation"].shape  # doctest: +SKIP
        torch.Size([3, 39])
    """

    def __init__(
        self,
        store: EpisodeStore,
        tasks: str | int | list[str | int] | None = None,
        *,
        check_finite: bool = True,
    ) -> None:
        self.store = store
        self.task_rows: tuple[TaskRows, ...] = store.select(tasks)
        self.check_finite = check_finite
        counts = np.array([rows.stop - rows.start for rows in self.task_rows])
        self._ends = counts.cumsum()  # last selected row of each task, plus one
        # added to a selected row's number, this is its row in the store
        self._offsets = np.array([rows.start for rows in self.task_rows]) - (self._ends - counts)
        self._task_ids = np.array([rows.index for rows in self.task_rows])
        self.num_rows = int(self._ends[-1])
        super().__init__(max_size=self.num_rows * store.row_length)

    @property
    def row_length(self) -> int:
        """Transitions of a row, L."""
        return self.store.row_length

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the selected tasks."""
        return tuple(rows.name for rows in self.task_rows)

    def __len__(self) -> int:
        return self.max_size

    def get(self, index: Any) -> TensorDict:
        """Transitions of an index.

        Args:
            index: int, slice, list, array or tensor of item numbers, of any shape. Rows of a two-dimensional index
                that are consecutive items of one data row, as the slice sampler draws them, are read as one block.

        Returns:
            TensorDict of the index's shape with ``observation``, ``action``, ``task`` and, under ``next``,
            ``observation``, ``reward``, ``done``, ``terminated`` and ``truncated``. ``truncated`` is True at the last
            transition of a row, ``terminated`` nowhere.

        Raises:
            IndexError: for an item out of range.
            ValueError: if the data holds a NaN or infinity.
        """
        items = self._items(index)
        row, step = np.divmod(items, self.row_length)
        if items.ndim == 2 and items.shape[1] > 1 and self._is_windows(row, items):
            return self._pack(self._windows(row[:, 0], step[:, 0], items.shape[1]), row, step)
        return self._pack(self._single(row, step), row, step)

    def _items(self, index: Any) -> np.ndarray:
        if isinstance(index, slice) or index is Ellipsis:
            index = range(*(index if isinstance(index, slice) else slice(None)).indices(len(self)))
        if isinstance(index, torch.Tensor):
            index = index.cpu().numpy()
        items = np.asarray(index)
        if items.dtype == bool:
            items = items.nonzero()[0]
        if items.size == 0:
            items = items.astype(np.int64)
        if items.dtype.kind not in "iu":
            raise IndexError(f"items are numbered by integers, found an index of type {items.dtype}")
        items = items.astype(np.int64, copy=False)
        if items.size and not (-len(self) <= items.min() and items.max() < len(self)):
            raise IndexError(f"index out of range: {len(self)} transitions, found {items.min()} to {items.max()}")
        return np.where(items < 0, items + len(self), items)

    @staticmethod
    def _is_windows(row: np.ndarray, items: np.ndarray) -> bool:
        return bool((row[:, 0] == row[:, -1]).all()) and bool((np.diff(items, axis=1) == 1).all())

    def _row_tasks(self, row: np.ndarray) -> np.ndarray:
        """Position of each selected row's task in ``task_rows``."""
        return np.searchsorted(self._ends, row, side="right")

    def _windows(self, row: np.ndarray, step: np.ndarray, length: int) -> _Arrays:
        """Blocks of ``length`` transitions: row, step [B] -> observation and next observation [B, T, O], ..."""
        store, steps = self.store, self.row_length
        at = row + self._offsets[self._row_tasks(row)]
        observation = _blocks(store.observation, at * (steps + 1) + step, length + 1)
        action = _blocks(store.action, at * steps + step, length)
        reward = _blocks(store.reward, at * steps + step, length)
        return _Arrays(observation[:, :-1], observation[:, 1:], action, reward)

    def _single(self, row: np.ndarray, step: np.ndarray) -> _Arrays:
        store = self.store
        at = row + self._offsets[self._row_tasks(row)]
        observation, following = store.observation[at, step], store.observation[at, step + 1]
        return _Arrays(observation, following, store.action[at, step], store.reward[at, step])

    def _pack(self, arrays: _Arrays, row: np.ndarray, step: np.ndarray) -> TensorDict:
        task = self._task_ids[self._row_tasks(row)]
        tensors = {
            "observation": _float32(arrays.observation),
            "action": _float32(arrays.action),
            ("next", "observation"): _float32(arrays.next_observation),
            ("next", "reward"): _float32(np.asarray(arrays.reward)[..., None]),
        }
        if self.check_finite:
            for key, tensor in tensors.items():
                # one pass without a mask; a sum may overflow, so look closer before complaining
                if not tensor.sum().isfinite():
                    self._refuse_non_finite(key, tensor, row, step)
        truncated = torch.from_numpy(np.asarray(step == self.row_length - 1))[..., None]
        return TensorDict(
            {
                "observation": tensors["observation"],
                "action": tensors["action"],
                "task": torch.from_numpy(np.asarray(task)),
                "next": TensorDict(
                    {
                        "observation": tensors["next", "observation"],
                        "reward": tensors["next", "reward"],
                        "done": truncated.clone(),
                        "terminated": torch.zeros_like(truncated),
                        "truncated": truncated,
                    },
                    batch_size=row.shape,
                ),
            },
            batch_size=row.shape,
        )

    def _refuse_non_finite(self, key: Any, tensor: torch.Tensor, row: np.ndarray, step: np.ndarray) -> None:
        bad = ~tensor.isfinite().all(-1)
        if not bad.any():
            return
        place = tuple(bad.nonzero()[0].tolist())
        at, name = int(row[place]), self.task_rows[int(self._row_tasks(row[place]))].name
        raise ValueError(
            f"{key!r} of task {name} is not finite in row {at} of the selection at step {int(step[place])}; the file "
            f"was changed after it was written: check {self.store.root} with verify=True"
        )

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        raise RuntimeError("the data set is read-only; collect_dataset and convert_shards make new ones")

    def _empty(self) -> None:
        raise RuntimeError("the data set is read-only and cannot be emptied")

    def contains(self, item: Any) -> Any:
        items = torch.as_tensor(item)
        return (items >= 0) & (items < len(self))

    def state_dict(self) -> dict[str, Any]:
        """Identity of the data, so that a sampler's state is not loaded on other data."""
        return {"digest": self.store.digest, "tasks": list(self.tasks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares the identity of the data.

        Raises:
            ValueError: if the state was saved with other data or another selection of tasks.
        """
        own = self.state_dict()
        if state_dict["digest"] != own["digest"]:
            raise ValueError(
                f"the state was saved with another data set: expected manifest {own['digest'][:12]}... of "
                f"{self.store.root}, found {state_dict['digest'][:12]}...; open the data it was saved with"
            )
        if state_dict["tasks"] != own["tasks"]:
            raise ValueError(f"the state was saved with tasks={state_dict['tasks']}, this buffer has {own['tasks']}")

    def __repr__(self) -> str:
        return f"EpisodeStorage({self.store!r}, tasks={self.tasks}, transitions={len(self)})"


def _blocks(array: np.ndarray, start: np.ndarray, length: int) -> np.ndarray:
    """Blocks of consecutive steps: array [N, S, ...] seen as [N * S, ...], start [B] -> [B, length, ...].

    A strided view makes every block one contiguous row, so a block is one copy instead of ``length``.
    """
    tail = array.shape[2:]
    width = int(np.prod(tail))
    steps = array.shape[0] * array.shape[1]
    size = array.itemsize
    view = as_strided(
        array.reshape(-1),
        shape=(steps - length + 1, length * width),
        strides=(width * size, size),
        writeable=False,
    )
    return view[start].reshape(len(start), length, *tail)


def _float32(array: np.ndarray) -> torch.Tensor:
    """A tensor of its own memory: the source may be a read-only view, or shared by two keys."""
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
