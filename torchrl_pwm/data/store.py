"""Memory-mapped episodes: the one place that knows the format on disk."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from torchrl_pwm.data.files import file_sha256
from torchrl_pwm.data.manifest import MANIFEST_NAME, Manifest, TaskRows
from torchrl_pwm.envs.tasks import TaskSet

__all__ = ["EpisodeStore"]

# Slices are drawn anywhere in a file. Reading ahead fills the cache of a file that fits into it, but around each slice
# of a larger one it only reads what is thrown away again.
_READAHEAD_LIMIT = 4 << 30
_BAR_DELAY = 1.0  # seconds before progress is shown
# Pages of the files that were read count as memory of the process until they are unmapped.
_MAPPED_LIMIT = 6 << 30


class EpisodeStore:
    """A data set on disk, opened for reading.

    A data set is a folder with ``manifest.json`` and one plain row-major array per field. A *row* holds L transitions
    and L + 1 observations: transition t is ``observation[t], action[t], reward[t], observation[t + 1]``. All rows are
    equally long and the rows of a task follow each other, so the place of any transition is arithmetic. A row is an
    episode or, where the tasks of a set differ in length, an equal part of one.

    The arrays are read-only views of memory maps: opening reads the manifest only.

    Args:
        root: folder of the data set.
        verify: compare the checksum of every file, which reads all of them. The sizes are always compared.

    Attributes:
        manifest: the :class:`~torchrl_pwm.data.manifest.Manifest`.
        observation: [N, L + 1, O] array. ``action`` [N, L, A] and ``reward`` [N, L] likewise; ``success`` is bool
            [N, L] or None.

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
    success: np.ndarray | None

    def __init__(self, root: str | os.PathLike[str], *, verify: bool = False) -> None:
        self.root = Path(root)
        self.manifest = Manifest.read(self.root)
        self.digest = hashlib.sha256((self.root / MANIFEST_NAME).read_bytes()).hexdigest()
        self.success = None
        self._mappings: list[mmap.mmap] = []
        self._others = _mapped_bytes()  # files in memory that are none of these
        for name, field in self.manifest.fields.items():
            path = self.root / field.file
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing, though the manifest lists it; the data set is damaged")
            size = path.stat().st_size
            if size != field.size:
                raise ValueError(
                    f"{path} has {size} bytes, the manifest says {field.size}; the file was cut or replaced: restore "
                    "it or make the data set again"
                )
            with open(path, "rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if size > _READAHEAD_LIMIT and hasattr(mmap, "MADV_RANDOM"):
                mapping.madvise(mmap.MADV_RANDOM)
            self._mappings.append(mapping)
            setattr(self, name, np.frombuffer(mapping, dtype=field.dtype).reshape(field.shape))
        if verify:
            self.verify()

    def verify(self, *, progress: bool = True) -> None:
        """Compares the checksum of every file with the manifest.

        Args:
            progress: whether progress is shown if it takes longer than a second.

        Raises:
            ValueError: naming the first file whose bytes are not those that were written.
        """
        fields = self.manifest.fields.values()
        with tqdm(
            total=sum(field.size for field in fields),
            desc=f"checking {self.root.name}",
            unit="B",
            unit_scale=True,
            delay=_BAR_DELAY,
            disable=not progress,
        ) as bar:
            for field in fields:
                found = file_sha256(self.root / field.file, bar.update)
                if found != field.sha256:
                    raise ValueError(
                        f"{self.root / field.file} has sha256 {found[:12]}..., the manifest says "
                        f"{field.sha256[:12]}...; the file was changed after it was written: restore it or make the "
                        "data set again"
                    )

    def limit_memory(self, limit: int | None = None) -> bool:
        """Unmaps pages that were read, if the process has more than ``limit`` bytes more of files in memory than when
        the data set was opened.

        The system counts every page of a file that a process has read as its memory (RssFile), which at random places
        of a large file grows up to the size of the file. Unmapped pages stay in the system's cache, and reading them
        again is no disk access; it costs about a microsecond a page. Other threads may read meanwhile.

        Args:
            limit: bytes; default 6 GiB.

        Returns:
            Whether pages were unmapped; False where the system does not tell or cannot do it.
        """
        limit = _MAPPED_LIMIT if limit is None else limit
        if sum(map(len, self._mappings)) <= limit:
            return False
        mapped = _mapped_bytes()
        self._others = min(self._others, mapped)
        if not hasattr(mmap, "MADV_DONTNEED") or mapped - self._others <= limit:
            return False
        # the largest first: the small ones are soon read whole and then cost nothing, if they stay
        for mapping in sorted(self._mappings, key=len, reverse=True):
            mapping.madvise(mmap.MADV_DONTNEED)
            if _mapped_bytes() - self._others <= limit // 2:
                break
        else:
            self._others = _mapped_bytes()
        return True

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


def _mapped_bytes() -> int:
    """Files in the memory of this process, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[2]) * mmap.PAGESIZE
    except (OSError, IndexError, ValueError):
        return 0


def _shortened(names: tuple[str, ...], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
