"""One data set of several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from torchrl_pwm.data.store.appender import ActionBounds, EpisodeAppender
from torchrl_pwm.data.store.manifest import TaskRows
from torchrl_pwm.data.store.store import EpisodeStore
from torchrl_pwm.data.store.writer import EpisodeStoreWriter

__all__ = ["join_datasets"]

_ROWS_AT_ONCE = 256
_DType = Literal["float32", "float16"]


def join_datasets(
    root: str | os.PathLike[str], parts: Sequence[str | os.PathLike[str]], *, progress: bool = True
) -> EpisodeStore:
    """Joins data sets of one task set: of other tasks, or further episodes of the same ones.

    A world model of many tasks learns from one data set. Of those that were collected task by task, or on several
    machines, or in the rounds of several runs (``rounds/N/data`` in their folders), this makes one. The rows of a task
    are in the order of the parts. Where one part is float32, all of it is.

    Args:
        root: folder of the data set to make.
        parts: folders of the data sets.
        progress: whether progress is shown.

    Returns:
        The opened data set. Its manifest says in ``source`` what each part was.

    Raises:
        FileExistsError: if ``root`` holds anything.
        FileNotFoundError: if a folder holds no data set.
        ValueError: for no parts, and for parts of other task sets, of rows of another length, with other bounds of
            their actions, or of which only some say where episodes succeeded. Nothing is left behind.

    Examples:
        >>> import tempfile
        >>> from torchrl_pwm import collect_dataset
        >>> from torchrl_pwm.data import join_datasets
        >>> root = tempfile.mkdtemp()
        >>> for seed, task in enumerate(["pendulum-swingup", "cup-catch", "cup-catch"]):
        ...     _ = collect_dataset(task, f"{root}/{seed}", episodes=1, seed=seed, workers=1, progress=False)
        >>> store = join_datasets(f"{root}/all", [f"{root}/{seed}" for seed in range(3)], progress=False)
        >>> {rows.name: rows.stop - rows.start for rows in store.select()}
        {'pendulum-swingup': 5, 'cup-catch': 10}
    """
    if isinstance(parts, (str, os.PathLike)) or not parts:
        raise ValueError(f"parts are the folders of the data sets to join, one or more in a list, found {parts!r}")
    stores = [EpisodeStore(part) for part in parts]
    for store in stores[1:]:
        _refuse_other(store, stores[0])
    dtypes = {store.manifest.fields["steps"].dtype for store in stores}
    dtype: _DType = "float16" if dtypes == {"float16"} else "float32"
    source = {"kind": "joined", "parts": [dict(store.manifest.source) for store in stores]}
    total = sum(store.num_rows for store in stores)
    with tqdm(total=total, desc=f"writing {Path(root).name}", unit="row", disable=not progress) as bar:
        if stores[0].row_length is None:
            _join_episodes(root, stores, dtype, source, bar)
        else:
            _join_rows(root, stores, dtype, source, bar)
    return EpisodeStore(root)


def write_rows(writer: EpisodeStoreWriter, store: EpisodeStore, rows: TaskRows) -> None:
    """Appends the rows of a task to a data set of rows of the same length."""
    for start in range(rows.start, rows.stop, _ROWS_AT_ONCE):
        here = slice(start, min(start + _ROWS_AT_ONCE, rows.stop))
        success = None if store.success is None else store.success[here]
        writer.write(rows.name, store.observation[here], store.action[here], store.reward[here], success)


def _refuse_other(store: EpisodeStore, first: EpisodeStore) -> None:
    """Raises ValueError if a data set is not of the kind of the first one."""
    for what, found, expected in (
        ("their task set", store.task_set.name, first.task_set.name),
        ("the length of their rows (None: episodes of any length)", store.row_length, first.row_length),
        ("whether they say where episodes succeeded", store.success is not None, first.success is not None),
    ):
        if found != expected:
            raise ValueError(
                f"data sets that are joined must agree in {what}: {first.root} has {expected}, {store.root} {found}; "
                "join those that agree, and train on the others apart"
            )
    if store.row_length is not None and store.task_set != first.task_set:
        raise ValueError(f"{store.root} and {first.root} say different things of the tasks of {first.task_set.name}")


def _of_tasks(stores: Sequence[EpisodeStore]) -> dict[str, list[tuple[EpisodeStore, TaskRows]]]:
    """The rows of each task, in the order of the task set."""
    found: dict[str, list[tuple[EpisodeStore, TaskRows]]] = {}
    each = [(store, rows) for store in stores for rows in store.select()]
    for store, rows in sorted(each, key=lambda pair: pair[1].index):
        found.setdefault(rows.name, []).append((store, rows))
    return found


def _join_rows(root: Any, stores: Sequence[EpisodeStore], dtype: _DType, source: dict[str, Any], bar: tqdm) -> None:
    of_tasks, length = _of_tasks(stores), stores[0].row_length
    assert length is not None
    with EpisodeStoreWriter(
        root,
        stores[0].task_set,
        {task: sum(rows.stop - rows.start for _, rows in found) for task, found in of_tasks.items()},
        row_length=length,
        dtype=dtype,
        success=stores[0].success is not None,
        # where rows are parts of episodes that are not whole, no spread of these was known
        whole_episodes=all(rows.behavior_return_std is not None for store in stores for rows in store.select()),
        source=source,
    ) as writer:
        for store, rows in (each for found in of_tasks.values() for each in found):
            write_rows(writer, store, rows)
            bar.update(rows.stop - rows.start)


def _join_episodes(root: Any, stores: Sequence[EpisodeStore], dtype: _DType, source: dict[str, Any], bar: tqdm) -> None:
    of_tasks, table = _of_tasks(stores), stores[0].task_set
    bounds = {task: _bounds(task, found) for task, found in of_tasks.items()}
    with EpisodeAppender(
        root,
        # what episodes of two recordings show of a task, such as the longest of them, is that of both
        table if all(store.task_set == table for store in stores) else table.name,
        bounds=lambda task, action_dim: bounds[task],
        scaled=True,
        dtype=dtype,
        source=source,
    ) as appender:
        for store, rows in (each for found in of_tasks.values() for each in found):
            spec = store.task_set[rows.name]
            for row in range(rows.start, rows.stop):
                steps = store.episode(row)
                appender.append(
                    rows.name,
                    steps.observation[:, : spec.observation_dim],
                    steps.action[:, : spec.action_dim],
                    steps.reward,
                    terminated=bool(store.terminated[row]),
                    success=None if store.success is None else bool(store.success[row]),
                )
                bar.update()


def _bounds(task: str, found: Sequence[tuple[EpisodeStore, TaskRows]]) -> ActionBounds | None:
    """The bounds that the actions of a task were scaled from.

    Raises:
        ValueError: if those of two data sets differ.
    """
    (first, low, high), *others = [(store.root, rows.action_low, rows.action_high) for store, rows in found]
    for other, *given in others:
        if given != [low, high]:
            raise ValueError(
                f"actions of {task} are scaled from {low} and {high} in {first}, from {given[0]} and {given[1]} in "
                f"{other}: write both with the same action_low and action_high"
            )
    return None if low is None or high is None else (np.asarray(low), np.asarray(high))
