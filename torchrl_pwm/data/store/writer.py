"""Writes a data set: preallocated files, checked rows, statistics, and a folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from torchrl_pwm._utils.files import file_sha256, replace_file, staged_folder
from torchrl_pwm.data.store.checks import refuse_actions, refuse_non_finite
from torchrl_pwm.data.store.manifest import MANIFEST_NAME, FieldRecord, Manifest, TaskRows
from torchrl_pwm.data.store.moments import ObservationMoments
from torchrl_pwm.data.store.steps import split_steps
from torchrl_pwm.envs.tasks import TaskSet, get_task_set

__all__ = ["EpisodeStoreWriter"]


class EpisodeStoreWriter:
    """Writes a data set for :class:`~torchrl_pwm.data.EpisodeStore`; a context manager.

    The files are preallocated and rows are written to their place at once, so memory holds no more than what is
    passed to :meth:`write` and a copy of it. When the block ends, the files are flushed, hashed and published under
    ``root`` in one rename; after an exception nothing is left behind.

    Args:
        root: folder to make; must not hold anything.
        task_set: ``"mt30"``, ``"mt80"`` or a :class:`~torchrl_pwm.envs.TaskSet`; fixes sizes and indices.
        rows: number of rows of each task.
        row_length: transitions of a row.
        dtype: floating-point type on disk; samples are float32 whatever it is.
        success: whether a ``success`` file is written.
        whole_episodes: whether consecutive rows of a task are the consecutive parts of whole episodes, so that the
            spread of returns and the success rate of episodes can be computed.
        source: how the data was made, for the manifest; JSON values only. More can be added to the attribute of this
            name until the block ends.

    Raises:
        FileExistsError: if ``root`` holds anything.
        ValueError: for an unknown task, a count below one, or a dtype that is not offered.

    Examples:
        See :class:`~torchrl_pwm.data.EpisodeStore`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        task_set: str | TaskSet,
        rows: Mapping[str, int],
        *,
        row_length: int,
        dtype: Literal["float32", "float16"] = "float32",
        success: bool = False,
        whole_episodes: bool = False,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        self.task_set = get_task_set(task_set)
        self.source: dict[str, Any] = dict(source or {})
        if dtype not in ("float32", "float16"):
            raise ValueError(f"data is stored as 'float32' or 'float16', found {dtype!r}")
        if not rows or any(count < 1 for count in rows.values()):
            raise ValueError(f"each task needs at least one row, found {dict(rows)}")
        if row_length < 1:
            raise ValueError(f"row_length is a number of transitions and at least 1, found {row_length}")
        self.row_length = row_length
        self._whole_episodes = whole_episodes
        self._specs = sorted((self.task_set[name] for name in rows), key=lambda spec: spec.index)
        total = sum(rows.values())
        self._start: dict[str, int] = {}
        start = 0
        for spec in self._specs:
            self._start[spec.name] = start
            start += rows[spec.name]
        self._written = dict.fromkeys(self._start, 0)
        self._returns = {name: np.zeros(rows[name]) for name in self._start}
        self._success = {name: np.zeros(rows[name], dtype=bool) for name in self._start} if success else None
        self._moments = {name: ObservationMoments() for name in self._start}
        width = self.task_set.observation_dim + self.task_set.action_dim + 1
        self._fields: dict[str, tuple[str, tuple[int, ...]]] = {
            "steps": (dtype, (total, row_length + 1, width)),
            "returns": ("float64", (total,)),
        }
        if success:
            self._fields["success"] = ("bool", (total, row_length))
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> EpisodeStoreWriter:
        with contextlib.ExitStack() as stack:
            self._stage = stack.enter_context(staged_folder(self.root))
            self._files: dict[str, BinaryIO] = {}
            for name, (dtype, shape) in self._fields.items():
                file = stack.enter_context(open(self._stage / f"{name}.bin", "w+b"))
                file.truncate(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
                self._files[name] = file
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if kind is not None:
            self._stack.__exit__(kind, *details)
            return
        with self._stack:
            self._finish()

    def write(
        self,
        task: str,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        success: np.ndarray | None = None,
    ) -> None:
        """Appends n rows to a task.

        Args:
            task: task name.
            observation: [n, L + 1, O].
            action: [n, L, A].
            reward: [n, L].
            success: bool [n, L]; needed exactly when the data set has the field.

        Raises:
            ValueError: for shapes that do not fit, more rows than announced, a value that is NaN or infinite (also
                after the cast to the type on disk), or an action outside [-1, 1], named by task, row, step and key.
        """
        if task not in self._start:
            raise ValueError(f"{task!r} was not announced to the writer; its tasks are {list(self._start)}")
        if (success is not None) != (self._success is not None):
            raise ValueError("success must be given exactly when the data set is written with success=True")
        count, first = len(reward), self._written[task]
        if first + count > len(self._returns[task]):
            raise ValueError(
                f"{task} has {len(self._returns[task])} rows, but row {first + count - 1} was to be written"
            )
        dtype, shape = self._fields["steps"]
        steps = np.zeros((count, *shape[1:]), dtype)
        parts = split_steps(steps, self.task_set.action_dim)
        for name, given, part in zip(parts._fields, (observation, action, reward), parts, strict=True):
            _check_shape(given, part.shape, name, task)
            with np.errstate(over="ignore"):  # an overflow of the cast is an infinity, which is named below
                part[...] = given
            refuse_non_finite(part, name, task, range(first, first + count))
            if name == "action":
                refuse_actions(part, task, range(first, first + count))
        if success is not None and self._success is not None:
            _check_shape(success, parts.reward.shape, "success", task)
            self._put("success", task, np.ascontiguousarray(success, dtype=bool))
            self._success[task][first : first + count] = success[:, -1]
        self._put("steps", task, steps)
        self._moments[task].update(parts.observation)
        self._returns[task][first : first + count] = np.asarray(reward, dtype=np.float64).sum(1)
        self._written[task] += count

    def _put(self, name: str, task: str, rows: np.ndarray) -> None:
        """Writes the next rows of a task to their place."""
        file = self._files[name]
        file.seek((self._start[task] + self._written[task]) * rows.strides[0])
        file.write(rows.data)

    def _finish(self) -> None:
        for name, count in self._written.items():
            if count != len(self._returns[name]):
                raise ValueError(f"{name} was announced with {len(self._returns[name])} rows, but {count} were written")
        self._files["returns"].write(np.concatenate(list(self._returns.values())).data)
        fields = {}
        for name, (dtype, shape) in self._fields.items():
            file = self._files[name]
            file.flush()
            os.fsync(file.fileno())
            path = self._stage / f"{name}.bin"
            fields[name] = FieldRecord(path.name, dtype, shape, file_sha256(path))
        manifest = Manifest(
            task_set=self.task_set.name,
            task_names=self.task_set.names,
            row_length=self.row_length,
            observation_dim=self.task_set.observation_dim,
            action_dim=self.task_set.action_dim,
            fields=fields,
            tasks=tuple(self._task_rows(spec.name) for spec in self._specs),
            source=self.source,
            task_specs=Manifest.specs_to_keep(self.task_set),
        )
        replace_file(self._stage / MANIFEST_NAME, manifest.to_json().encode())

    def _task_rows(self, name: str) -> TaskRows:
        spec, returns, start = self.task_set[name], self._returns[name], self._start[name]
        moments = self._moments[name]
        parts, rest = divmod(spec.episode_length, self.row_length)
        episode_std = success_mean = None
        if rest == 0 and (self._whole_episodes or parts == 1) and len(returns) % parts == 0:
            episode_std = float(returns.reshape(-1, parts).sum(1).std())
            if self._success is not None and spec.score_rule == "success":
                success_mean = float(self._success[name].reshape(-1, parts)[:, -1].mean())
        return TaskRows(
            name=name,
            index=spec.index,
            start=start,
            stop=start + len(returns),
            return_mean=float(returns.mean()),
            return_std=float(returns.std()),
            behavior_return_mean=float(returns.mean() * spec.episode_length / self.row_length),
            observation_mean=tuple(moments.mean.tolist()),
            observation_std=tuple(moments.std.tolist()),
            behavior_return_std=episode_std,
            success_mean=success_mean,
        )


def _check_shape(array: np.ndarray, shape: tuple[int, ...], name: str, task: str) -> None:
    if np.shape(array) != shape:
        raise ValueError(f"{name} of {task} must have shape {shape}, found {np.shape(array)}")
