"""Episodes on disk, opened for reading."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm._utils.files import byte_bar, file_sha256
from torchrl_pwm.data.store.manifest import MANIFEST_NAME, FieldRecord, Manifest, TaskRows
from torchrl_pwm.data.store.steps import Steps, StepsFile, split_steps
from torchrl_pwm.envs.tasks import TaskSet

__all__ = ["EpisodeStore"]


class EpisodeStore:
    """A data set on disk, opened for reading.

    A data set is a folder with ``manifest.json`` and ``steps.bin``, one plain row-major array of steps: observation,
    action and reward. A *row* holds L transitions and L + 1 observations: transition t is
    ``observation[t], action[t], reward[t], observation[t + 1]``; the action and reward of its last step are zero and
    mean nothing. The rows of a task follow each other, and consecutive transitions are one piece of the file. The
    return of each row is in ``returns.bin``. There are two kinds of data sets:

    - *Rows of one length*, as in the published ones: ``steps.bin`` is [N, L + 1, O + A + 1], so the place of any
      transition is arithmetic. A row is an episode or, where the tasks of a set differ in length, an equal part of one.
      Nothing terminates.
    - *Episodes of any length*, as :func:`~torchrl_pwm.write_episodes` writes them: each row is one whole episode of
      E_i transitions and E_i + 1 steps, one after the other in ``steps.bin`` [S, O + A + 1]. ``lengths.bin`` has the
      E_i, ``terminated.bin`` which of them ended by termination; the others were cut off.

    The arrays are read-only views of memory maps: opening reads the manifest only. The pages of a view that were
    looked at count as memory of the process; :meth:`blocks` reads without.

    Args:
        root: folder of the data set.
        verify: compare the checksum of every file, which reads all of them. The sizes are always compared.

    Attributes:
        manifest: the :class:`~torchrl_pwm.data.store.manifest.Manifest`.
        observation: [N, L + 1, O] array, or [S, O] of episodes of any length, whose steps :meth:`episode` finds.
            ``action`` [N, L, A] or [S - 1, A] and ``reward`` [N, L] or [S - 1] likewise; ``success`` is bool [N, L],
            of episodes [N] (at their last step), or None.
        returns: undiscounted reward sum of each row, float64 [N].
        lengths: transitions of each row, int64 [N].
        terminated: which rows ended by termination, bool [N].

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        DamagedFileError: if the manifest is damaged, a file has the wrong size or, with ``verify``, the wrong checksum.

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
    lengths: np.ndarray
    terminated: np.ndarray

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
        rows, length = self.num_rows, self.row_length
        if length is None:
            self.lengths, self.terminated = self._mapped(fields["lengths"]), self._mapped(fields["terminated"])
            self._check_lengths()
            self._first = self.lengths.cumsum() - self.lengths + np.arange(rows)
        else:
            self.lengths = np.broadcast_to(np.int64(length), (rows,))
            self.terminated = np.broadcast_to(np.False_, (rows,))
        self.success = self._mapped(fields["success"]) if "success" in fields else None
        if verify:
            self.verify()

    def _check_size(self, field: FieldRecord) -> None:
        path = self.root / field.file
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, though the manifest lists it; the data set is damaged")
        size = path.stat().st_size
        if size != field.size:
            raise DamagedFileError(
                f"{path} has {size} bytes, the manifest says {field.size}; the file was cut or replaced: restore it or "
                "make the data set again"
            )

    def _check_lengths(self) -> None:
        total = self.manifest.num_transitions
        if self.lengths.min() < 1 or int(self.lengths.sum()) != total:
            raise DamagedFileError(
                f"{self.root / self.manifest.fields['lengths'].file} describes {int(self.lengths.sum())} transitions, "
                f"the file of steps holds {total}; one was changed after it was written: make the data set again"
            )

    def _mapped(self, field: FieldRecord) -> np.ndarray:
        return np.asarray(np.memmap(self.root / field.file, field.dtype, mode="r", shape=field.shape))

    def verify(self, *, progress: bool = True) -> None:
        """Compares the checksum of every file with the manifest.

        Args:
            progress: whether progress is shown if it takes longer than a second.

        Raises:
            DamagedFileError: naming the first file whose bytes are not those that were written.
        """
        fields = self.manifest.fields.values()
        with byte_bar(sum(field.size for field in fields), f"checking {self.root.name}", progress=progress) as bar:
            for field in fields:
                digest = file_sha256(self.root / field.file, bar.update)
                if digest != field.sha256:
                    raise DamagedFileError(
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
        first = row * (self.row_length + 1) if self.row_length is not None else self._first[row]
        for here, steps in self._steps.blocks(first + step, length + 1):
            yield here, split_steps(steps, self.manifest.action_dim)

    def episode(self, row: int) -> Steps:
        """Views of the steps of one row: observation [E + 1, O], action [E, A] and reward [E]."""
        if not 0 <= row < self.num_rows:
            raise IndexError(f"{self.root} has rows 0 to {self.num_rows - 1}, found {row}")
        if self.row_length is not None:
            return Steps(self.observation[row], self.action[row], self.reward[row])
        steps = self._steps.array[self._first[row] : self._first[row] + self.lengths[row] + 1]
        return split_steps(steps, self.manifest.action_dim)

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
    def row_length(self) -> int | None:
        """Transitions of a row, L; None for episodes of any length."""
        return self.manifest.row_length

    @property
    def num_transitions(self) -> int:
        return self.manifest.num_transitions

    @property
    def terminates(self) -> bool:
        """Whether any episode ended by termination."""
        return bool(self.terminated.any())

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
                "transitions": int(self.lengths[rows.start : rows.stop].sum()),
                "behavior_return_mean": rows.behavior_return_mean,
                "behavior_return_std": rows.behavior_return_std,
                "success_mean": rows.success_mean,
            }
            for rows in self.manifest.tasks
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root,)

    def __repr__(self) -> str:
        many = f"{self.num_rows} rows of {self.row_length} transitions"
        if self.row_length is None:
            many = f"{self.num_rows} episodes of {self.num_transitions} transitions together"
        return f"EpisodeStore({str(self.root)!r}, {self.manifest.task_set}, {len(self.tasks)} tasks, {many})"


def _shortened(names: tuple[str, ...], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
