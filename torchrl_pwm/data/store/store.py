"""Episodes on disk, opened for reading."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_pwm._utils.files import byte_bar, file_sha256
from torchrl_pwm.data.store.manifest import MANIFEST_NAME, FieldRecord, Manifest, TaskRows
from torchrl_pwm.data.store.steps import Steps, StepsFile, split_steps
from torchrl_pwm.envs.tasks import TaskSet

__all__ = ["EpisodeStore"]


class EpisodeStore:
    """A data set on disk, opened for reading.

    A data set is a folder with ``manifest.json`` and ``steps.bin``, one plain row-major array [N, L + 1, O + A + 1] of
    steps: observation, action and reward. A *row* holds L transitions and L + 1 observations: transition t is
    ``observation[t], action[t], reward[t], observation[t + 1]``; the action and reward of its last step are zero and
    mean nothing. All rows are equally long and the rows of a task follow each other, so the place of any transition is
    arithmetic, and consecutive transitions are one piece of the file. A row is an episode or, where the tasks of a set
    differ in length, an equal part of one. The return of each row is in ``returns.bin``.

    The arrays are read-only views of memory maps: opening reads the manifest only. The pages of a view that were
    looked at count as memory of the process; :meth:`blocks` reads without.

    Args:
        root: folder of the data set.
        verify: compare the checksum of every file, which reads all of them. The sizes are always compared.

    Attributes:
        manifest: the :class:`~torchrl_pwm.data.store.manifest.Manifest`.
        observation: [N, L + 1, O] array. ``action`` [N, L, A] and ``reward`` [N, L] likewise; ``success`` is bool
            [N, L] or None.
        returns: undiscounted reward sum of each row, float64 [N].

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if the manifest is damaged, a file has the wrong size or, with ``verify``, the wrong checksum.

    Examples:
        >>> import tempfile, numpy as np
        >>> from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter
        >>> root = tempfile.mkdtemp()
        >>> with EpisodeStoreWriter(root, "mt30", {"pendulum-swingup": 2}, row_length=10) as writer:
        ...     writer.write("pendulum-swingup", np.zeros((2, 11, 24)), np.zeros((2, 10, 6)), np.ones((2, 10)))
        >>> store = EpisodeStore(root, verify=True)
        >>> store.num_rows, store.row_length, store.num_transitions, store.tasks
        (2, 10, 20, ('pendulum-swingup',))
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    returns: np.ndarray
    success: np.ndarray | None

    def __init__(self, root: str | os.PathLike[str], *, verify: bool = False) -> None:
        self.root = Path(root)
        self.manifest = Manifest.read(self.root)
        self.digest = hashlib.sha256((self.root / MANIFEST_NAME).read_bytes()).hexdigest()
        fields = self.manifest.fields
        for field in fields.values():
            self._check_size(field)
        steps = fields["steps"]
        self._steps = StepsFile(self.root / steps.file, steps.dtype, steps.shape)
        self.observation, self.action, self.reward = split_steps(self._steps.array, self.manifest.action_dim)
        self.returns = self._mapped(fields["returns"])
        self.success = self._mapped(fields["success"]) if "success" in fields else None
        if verify:
            self.verify()

    def _check_size(self, field: FieldRecord) -> None:
        path = self.root / field.file
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, though the manifest lists it; the data set is damaged")
        size = path.stat().st_size
        if size != field.size:
            raise ValueError(
                f"{path} has {size} bytes, the manifest says {field.size}; the file was cut or replaced: restore it or "
                "make the data set again"
            )

    def _mapped(self, field: FieldRecord) -> np.ndarray:
        return np.asarray(np.memmap(self.root / field.file, field.dtype, mode="r", shape=field.shape))

    def verify(self, *, progress: bool = True) -> None:
        """Compares the checksum of every file with the manifest.

        Args:
            progress: whether progress is shown if it takes longer than a second.

        Raises:
            ValueError: naming the first file whose bytes are not those that were written.
        """
        fields = self.manifest.fields.values()
        with byte_bar(sum(field.size for field in fields), f"checking {self.root.name}", progress=progress) as bar:
            for field in fields:
                digest = file_sha256(self.root / field.file, bar.update)
                if digest != field.sha256:
                    raise ValueError(
                        f"{self.root / field.file} has sha256 {digest[:12]}..., the manifest says "
                        f"{field.sha256[:12]}...; the file was changed after it was written: restore it or make the "
                        "data set again"
                    )

    def blocks(self, row: np.ndarray, step: np.ndarray, length: int) -> Iterator[tuple[slice, Steps]]:
        """Reads blocks of ``length`` consecutive transitions, each by one read of the file, and maps nothing.

        Args:
            row: rows of the store [B].
            step: first transition of each block [B].
            length: transitions of a block, T; they must not go beyond the row.

        Yields:
            Which of the B blocks follow, and their observation [b, T + 1, O], action [b, T, A] and reward [b, T] in
            the type on disk, in memory that the next ones overwrite.

        Raises:
            ValueError: if the file was cut after the data set was opened.
        """
        for here, steps in self._steps.blocks(row, step, length + 1):
            yield here, split_steps(steps, self.manifest.action_dim)

    @property
    def task_set(self) -> TaskSet:
        """Task set whose sizes and indices the data has."""
        return self.manifest.get_task_set()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that have rows."""
        return tuple(task.name for task in self.manifest.tasks)

    @property
    def num_rows(self) -> int:
        return self.manifest.num_rows

    @property
    def row_length(self) -> int:
        """Transitions of a row, L."""
        return self.manifest.row_length

    @property
    def num_transitions(self) -> int:
        return self.num_rows * self.row_length

    def select(self, tasks: str | int | Iterable[str | int] | None = None) -> tuple[TaskRows, ...]:
        """Row ranges of tasks, in the order of the store.

        Args:
            tasks: task names or indices in the task set; None means every task of the store.

        Raises:
            ValueError: for a task that is unknown or has no rows.
        """
        if tasks is None:
            return self.manifest.tasks
        wanted = set()
        for task in [tasks] if isinstance(tasks, (str, int, np.integer)) else list(tasks):
            name = self._task_name(task)
            if name not in self.tasks:
                raise ValueError(
                    f"{self.root} holds no data of {name!r}; it has {len(self.tasks)} tasks: {_shortened(self.tasks)}"
                )
            wanted.add(name)
        if not wanted:
            raise ValueError("tasks is empty; name at least one task, or pass None for all of them")
        return tuple(rows for rows in self.manifest.tasks if rows.name in wanted)

    def _task_name(self, task: str | int) -> str:
        if isinstance(task, str):
            return self.task_set[task].name
        names = self.manifest.task_names
        if isinstance(task, bool) or not isinstance(task, (int, np.integer)) or not 0 <= task < len(names):
            raise ValueError(
                f"a task is a name or an index from 0 to {len(names) - 1} of {self.manifest.task_set}, found {task!r}"
            )
        return names[int(task)]

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Per task: rows, transitions, ``behavior_return_mean``, ``behavior_return_std`` and ``success_mean``."""
        return {
            rows.name: {
                "rows": rows.stop - rows.start,
                "transitions": (rows.stop - rows.start) * self.row_length,
                "behavior_return_mean": rows.behavior_return_mean,
                "behavior_return_std": rows.behavior_return_std,
                "success_mean": rows.success_mean,
            }
            for rows in self.manifest.tasks
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root,)

    def __repr__(self) -> str:
        return (
            f"EpisodeStore({str(self.root)!r}, {self.manifest.task_set}, {len(self.tasks)} tasks, "
            f"{self.num_rows} rows of {self.row_length} transitions)"
        )


def _shortened(names: tuple[str, ...], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
