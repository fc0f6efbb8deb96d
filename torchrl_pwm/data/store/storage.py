"""A TorchRL storage over episodes on disk."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data.replay_buffers import Storage

from torchrl_pwm.data.store.checks import ACTION_LIMIT, is_in_range
from torchrl_pwm.data.store.layout import EpisodeLayout, RowLayout
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

    Items number the transitions of the selected rows one after the other. Of rows of one length, item i is transition
    ``i % L`` of row ``i // L``, so an index says its row and step by arithmetic, and a selection of tasks is a list of
    row ranges: nothing is copied.

    Args:
        store: the data set.
        tasks: task names or indices to keep; None keeps all.
        episodes: rows to keep, by their numbers in the data set or as bool [N], such as those that were not held out;
            None keeps all of the tasks.
        check_finite: whether every batch is checked for NaN and infinity, and for actions outside [-1, 1] (a few
            percent of the time of a sample).

    Raises:
        ValueError: for a task that is unknown or has no rows, or rows that there are none of.

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
        episodes: Any = None,
        check_finite: bool = True,
    ) -> None:
        self.store = store
        self.task_rows: tuple[TaskRows, ...] = store.select(tasks)
        self.check_finite = check_finite
        self._episodes = None if episodes is None else _row_numbers(episodes, store.num_rows)
        if self._episodes is not None:
            self.task_rows = tuple(rows for rows in self.task_rows if len(self._kept(rows)))
            if not self.task_rows:
                raise ValueError(f"none of the selected episodes of {store.root} is of the tasks that were selected")
            self._selected = np.concatenate([self._kept(rows) for rows in self.task_rows])
        counts = np.array([len(self._kept(rows)) for rows in self.task_rows])
        self._ends = counts.cumsum()  # last selected row of each task, plus one
        # added to a selected row's number, this is its row in the store
        self._offsets = np.array([rows.start for rows in self.task_rows]) - (self._ends - counts)
        self._task_ids = np.array([rows.index for rows in self.task_rows])
        self.num_rows = int(self._ends[-1])
        if store.row_length is not None:
            self.layout: RowLayout | EpisodeLayout = RowLayout(self.num_rows, store.row_length)
        else:
            self.layout = EpisodeLayout(store.lengths[self.store_rows()])
        super().__init__(max_size=self.layout.num_transitions)

    def _kept(self, rows: TaskRows) -> Any:
        """Rows of the store that are kept of those of a task."""
        if self._episodes is None:
            return range(rows.start, rows.stop)
        return self._episodes[np.searchsorted(self._episodes, rows.start) : np.searchsorted(self._episodes, rows.stop)]

    @property
    def row_length(self) -> int | None:
        """Transitions of a row, L; None for episodes of any length."""
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
            ``observation``, ``reward``, ``done``, ``terminated`` and ``truncated``. ``done`` is True at the last
            transition of a row, and so is ``terminated`` where the episode ended by termination, else ``truncated``.

        Raises:
            IndexError: for an item out of range.
            ValueError: if the data holds a NaN or infinity, or an action outside [-1, 1].
        """
        items = self._items(index)
        row, step = self.layout.locate(items)
        length = self.layout.lengths(row)
        whole = _whole_blocks(items, step, length)
        if whole is True:
            floats = self._read(row[:, 0], step[:, 0], items.shape[1])
        elif whole is not False:
            floats = self._read_both(whole, row, step)
        else:
            floats = self._read(row.reshape(-1), step.reshape(-1), 1)
        floats = _Floats(*(tensor.reshape(*items.shape, tensor.shape[-1]) for tensor in floats))
        return self._pack(floats, row, step, length)

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
        for here, steps in self.store.blocks(self._store_row(row), step, length):
            observation[here] = steps.observation[:, :-1]
            following[here] = steps.observation[:, 1:]
            action[here] = steps.action
            reward[here, :, 0] = steps.reward
        return floats

    def _read_both(self, whole: np.ndarray, row: np.ndarray, step: np.ndarray) -> _Floats:
        """Transitions [B, T, size]: blocks where ``whole`` [B], others (padded ones) step by step."""
        size = row.shape
        blocks = self._read(row[whole, 0], step[whole, 0], size[1])
        singles = self._read(row[~whole].reshape(-1), step[~whole].reshape(-1), 1)
        floats = _Floats(*(torch.empty(*size, block.shape[-1]) for block in blocks))
        at = torch.from_numpy(whole)
        for tensor, block, single in zip(floats, blocks, singles):
            tensor[at], tensor[~at] = block, single.reshape(-1, size[1], block.shape[-1])
        return floats

    def store_rows(self) -> np.ndarray:
        """Numbers in the data set of the selected rows, int64 [number of selected rows]."""
        return self._store_row(np.arange(self.num_rows))

    def _store_row(self, row: np.ndarray) -> np.ndarray:
        """Rows of the store, of numbers of selected rows."""
        return row + self._offsets[self._row_tasks(row)] if self._episodes is None else self._selected[row]

    def _pack(self, floats: _Floats, row: np.ndarray, step: np.ndarray, length: int | np.ndarray) -> TensorDict:
        if self.check_finite:
            observation, following, action, reward = floats
            # an action that is not finite is not in its range
            if not (all(map(_is_finite, (observation, following, reward))) and is_in_range(action.numpy())):
                self._refuse_non_finite(floats, row, step)
                self._refuse_action(action.numpy(), row, step)
        task = self._task_ids[self._row_tasks(row)]
        done = torch.from_numpy(np.asarray(step == length - 1))[..., None]
        if self.row_length is None:
            terminated = done & torch.from_numpy(np.asarray(self.store.terminated[self._store_row(row)]))[..., None]
            truncated = done & ~terminated
        else:
            terminated, truncated = torch.zeros_like(done), done.clone()
        return TensorDict(
            {
                "observation": floats.observation,
                "action": floats.action,
                "task": torch.from_numpy(np.asarray(task)),
                "next": TensorDict(
                    {
                        "observation": floats.next_observation,
                        "reward": floats.reward,
                        "done": done,
                        "terminated": terminated,
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

    def _refuse_action(self, action: np.ndarray, row: np.ndarray, step: np.ndarray) -> None:
        place = tuple(np.argwhere(~(np.abs(action) <= ACTION_LIMIT))[0].tolist())
        at, name = int(row[place[:-1]]), self.task_rows[int(self._row_tasks(row[place[:-1]]))].name
        raise ValueError(
            f"the action of task {name} is {action[place]:.4g} in row {at} of the selection at step "
            f"{int(step[place[:-1]])}; actions lie in [-1, 1]: {self.store.root} was written before this was checked, "
            "write it again with scaled actions"
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
        state = {"digest": self.store.digest, "tasks": list(self.tasks)}
        if self._episodes is not None:
            state["episodes"] = hashlib.sha256(self._episodes.tobytes()).hexdigest()
        return state

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
        if state_dict.get("episodes") != own.get("episodes"):
            raise ValueError("the state was saved with another selection of episodes; select those it was saved with")

    def __repr__(self) -> str:
        return f"EpisodeStorage({self.store!r}, tasks={self.tasks}, transitions={len(self)})"


def _row_numbers(episodes: Any, num_rows: int) -> np.ndarray:
    """Numbers of rows in ascending order, each once, from numbers or a bool for each row.

    Raises:
        ValueError: for none, or numbers of rows that there are none of.
    """
    given = np.asarray(episodes)
    if given.dtype == bool and given.shape == (num_rows,):
        given = given.nonzero()[0]
    if given.ndim != 1 or given.dtype.kind not in "iu" or not given.size or given.min() < 0 or given.max() >= num_rows:
        raise ValueError(
            f"episodes are selected by their numbers, 0 to {num_rows - 1}, or by a bool for each of the {num_rows}, "
            f"and at least one, found {given.dtype} of shape {given.shape}"
        )
    return np.unique(given).astype(np.int64)


def _whole_blocks(items: np.ndarray, step: np.ndarray, length: int | np.ndarray) -> bool | np.ndarray:
    """Which rows of items [B, T] are consecutive and within one row of the data, from step ``step[:, 0]`` on.

    Returns:
        True for all, False for none, else a bool for each [B].
    """
    if items.ndim != 2 or not items.size:
        return False
    offset = np.arange(items.shape[1])
    fits = step[:, 0] + offset[-1] < (length if isinstance(length, int) else length[:, 0])
    consecutive = items == items[:, :1] + offset
    if fits.all() and consecutive.all():
        return True
    whole = fits & consecutive.all(1)
    return whole if whole.any() else False


def _is_finite(tensor: torch.Tensor) -> bool:
    # both extremes are NaN if anything is, and no mask is made
    array = tensor.numpy()
    return array.size == 0 or bool(np.isfinite(array.max()) and np.isfinite(array.min()))
