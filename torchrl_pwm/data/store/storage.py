"""A TorchRL storage over episodes on disk."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data.replay_buffers import Storage

from torchrl_pwm.data.store.manifest import TaskRows
from torchrl_pwm.data.store.store import EpisodeStore

__all__ = ["EpisodeStorage"]


class _Floats(NamedTuple):
    """The numbers of a batch, each float32 of its own memory: [..., O], [..., O], [..., A], [..., 1]."""

    observation: torch.Tensor
    next_observation: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor


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
        if _is_sliced(items, step, self.row_length):
            floats = self._read(row[:, 0], step[:, 0], items.shape[1])
        else:
            floats = self._read(row.reshape(-1), step.reshape(-1), 1)
        floats = _Floats(*(tensor.reshape(*items.shape, tensor.shape[-1]) for tensor in floats))
        return self._pack(floats, row, step)

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

    def _row_tasks(self, row: np.ndarray) -> np.ndarray:
        """Position of each selected row's task in ``task_rows``."""
        return np.searchsorted(self._ends, row, side="right")

    def _read(self, row: np.ndarray, step: np.ndarray, length: int) -> _Floats:
        """Blocks of ``length`` transitions from row and step [B], each [B, length, size]."""
        manifest = self.store.manifest
        sizes = (manifest.observation_dim, manifest.observation_dim, manifest.action_dim, 1)
        # one piece of memory for all: several large ones are given back to the system and fetched again at each batch
        counts = [len(row) * length * size for size in sizes]
        parts = torch.empty(sum(counts)).split(counts)
        floats = _Floats(*(part.view(len(row), length, size) for part, size in zip(parts, sizes)))
        observation, following, action, reward = (tensor.numpy() for tensor in floats)
        for here, steps in self.store.blocks(row + self._offsets[self._row_tasks(row)], step, length):
            observation[here] = steps.observation[:, :-1]
            following[here] = steps.observation[:, 1:]
            action[here] = steps.action
            reward[here, :, 0] = steps.reward
        return floats

    def _pack(self, floats: _Floats, row: np.ndarray, step: np.ndarray) -> TensorDict:
        if self.check_finite and not all(_is_finite(tensor.numpy()) for tensor in floats):
            self._refuse_non_finite(floats, row, step)
        task = self._task_ids[self._row_tasks(row)]
        truncated = torch.from_numpy(np.asarray(step == self.row_length - 1))[..., None]
        return TensorDict(
            {
                "observation": floats.observation,
                "action": floats.action,
                "task": torch.from_numpy(np.asarray(task)),
                "next": TensorDict(
                    {
                        "observation": floats.next_observation,
                        "reward": floats.reward,
                        "done": truncated.clone(),
                        "terminated": torch.zeros_like(truncated),
                        "truncated": truncated,
                    },
                    batch_size=row.shape,
                ),
            },
            batch_size=row.shape,
        )

    def _refuse_non_finite(self, floats: _Floats, row: np.ndarray, step: np.ndarray) -> None:
        keys = ("observation", ("next", "observation"), "action", ("next", "reward"))
        for key, tensor in zip(keys, floats, strict=True):
            bad = ~tensor.isfinite().all(-1)
            if not bad.any():
                continue
            place = tuple(bad.nonzero()[0].tolist())
            at, name = int(row[place]), self.task_rows[int(self._row_tasks(row[place]))].name
            raise ValueError(
                f"{key!r} of task {name} is not finite in row {at} of the selection at step {int(step[place])}; the "
                f"file was changed after it was written: check {self.store.root} with verify=True"
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


def _is_sliced(items: np.ndarray, step: np.ndarray, row_length: int) -> bool:
    """Whether each row of items [B, T] is consecutive and within one row of the data, from step ``step[:, 0]`` on."""
    if items.ndim != 2 or not items.size:
        return False
    offset = np.arange(items.shape[1])
    return bool((step[:, 0] + offset[-1] < row_length).all() and (items == items[:, :1] + offset).all())


def _is_finite(array: np.ndarray) -> bool:
    # both extremes are NaN if anything is, and no mask is made
    return array.size == 0 or bool(np.isfinite(array.max()) and np.isfinite(array.min()))
