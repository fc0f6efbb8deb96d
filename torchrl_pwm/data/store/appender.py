"""Writes a data set of episodes of any length, one after the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from torchrl_pwm._utils.files import file_sha256, flush_file, replace_file, staged_folder
from torchrl_pwm.data.store.checks import refuse_actions, refuse_lost_variation, refuse_non_finite
from torchrl_pwm.data.store.manifest import MANIFEST_NAME, FieldRecord, Manifest, TaskRows
from torchrl_pwm.data.store.moments import ObservationMoments
from torchrl_pwm.envs.tasks import TaskSet, TaskSpec

__all__ = ["ActionBounds", "EpisodeAppender"]

ActionBounds = tuple[np.ndarray, np.ndarray]
_OUT_OF_RANGE = (
    "pass action_low and action_high, the bounds of your action space, to have them scaled (the data set keeps both), "
    "or clip_actions=True to have outliers clipped"
)
_OUT_OF_BOUNDS = "widen the bounds, or pass clip_actions=True to have what is beyond them clipped"
_STEPS_AT_ONCE = 1 << 16


class EpisodeAppender:
    """Writes episodes of any length for :class:`~torchrl_pwm.data.EpisodeStore`; a context manager.

    An episode is written to disk when it is appended. When the block ends, the folder appears whole under ``root``;
    after an exception nothing is left behind. See :func:`~torchrl_pwm.write_episodes` for what is checked.

    Args:
        root: folder to make; must not hold anything.
        task_set: set of the tasks that episodes may be of; or a name, for a set of those that come, with the sizes and
            lengths of their episodes.
        bounds: gives lower and upper bounds [A], by name and action size A of a task, where actions are to be scaled to
            [-1, 1].
        scaled: whether actions are scaled from these bounds already.
        clip_actions: whether actions beyond [-1, 1] are clipped, else refused.
        dtype: floating-point type on disk.
        source: how the data was made, for the manifest; JSON values only.

    Raises:
        FileExistsError: if ``root`` holds anything.
        ValueError: at :meth:`append` and at the end, for what cannot be written.

    Examples:
        >>> import tempfile, numpy as np
        >>> from torchrl_pwm.data import EpisodeAppender, EpisodeStore
        >>> root = tempfile.mkdtemp()
        >>> with EpisodeAppender(root, "arm") as appender:
        ...     for length in (3, 7):
        ...         observation = np.zeros((length + 1, 5))
        ...         appender.append("reach", observation, np.zeros((length, 2)), np.ones(length), terminated=True)
        >>> EpisodeStore(root).lengths.tolist()
        [3, 7]
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        task_set: str | TaskSet,
        *,
        bounds: Callable[[str, int], ActionBounds | None] | None = None,
        scaled: bool = False,
        clip_actions: bool = False,
        dtype: Literal["float32", "float16"] = "float32",
        source: Mapping[str, Any] | None = None,
    ) -> None:
        if dtype not in ("float32", "float16"):
            raise ValueError(f"data is stored as 'float32' or 'float16', found {dtype!r}")
        self.root, self.task_set, self.dtype = Path(root), task_set, dtype
        self.bounds, self.scaled, self.clip_actions = bounds, scaled, clip_actions
        self.source: dict[str, Any] = dict(source or {})
        self.clipped = 0
        self._tasks: dict[str, _TaskFile] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> EpisodeAppender:
        with contextlib.ExitStack() as stack:
            self._stage = stack.enter_context(staged_folder(self.root))
            self._files = stack.enter_context(contextlib.ExitStack())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if kind is not None:
            self._stack.__exit__(kind, *details)
            return
        with self._stack:
            self._finish()

    def append(
        self,
        task: str,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        *,
        terminated: bool,
        success: bool | None = None,
    ) -> None:
        """Writes one episode of E transitions.

        Args:
            task: task name.
            observation: [E + 1, O], the last one being that which the last transition leads to.
            action: [E, A].
            reward: [E].
            terminated: whether the episode ended by termination, else it was cut off.
            success: whether it succeeded, for all episodes of a data set or none.

        Raises:
            ValueError: for another number of entries than those of the task, and for values that are not finite or do
                not fit, named by episode and step.
        """
        label = f"episode {sum(len(each.lengths) for each in self._tasks.values())}"
        file = self._tasks.get(task) or self._open(task, observation.shape[1], action.shape[1])
        widths = (file.observation_dim, file.action_dim)
        if (observation.shape[1], action.shape[1]) != widths:
            raise ValueError(
                f"{label} has observations of {observation.shape[1]} and actions of {action.shape[1]} entries, but "
                f"{task} has {widths[0]} and {widths[1]}: give each task one size"
            )
        if any((each.successes is None) != (success is None) for each in self._tasks.values() if each.lengths):
            raise ValueError(f"{label}: either all episodes say whether they succeeded, or none does")
        for key, array in (("observation", observation), ("action", action), ("reward", reward)):
            refuse_non_finite(array[None], key, task, [label])
        steps = np.zeros((len(observation), sum(widths) + 1), self.dtype)
        with np.errstate(over="ignore"):
            steps[:, : widths[0]] = observation
            steps[:-1, widths[0] : -1] = self._scaled(file, task, action, label)
            steps[:-1, -1] = reward
        refuse_non_finite(steps[None], f"an entry as {self.dtype}", task, [label])
        file.add(steps, observation, reward, terminated, success)

    def _open(self, task: str, observation_dim: int, action_dim: int) -> _TaskFile:
        if isinstance(self.task_set, TaskSet):
            spec = self.task_set[task]
            observation_dim, action_dim = spec.observation_dim, spec.action_dim
        path = self._stage / f"task-{len(self._tasks)}.bin"
        bounds = None if self.bounds is None else self.bounds(task, action_dim)
        opened = self._files.enter_context(path.open("w+b"))
        file = self._tasks[task] = _TaskFile(path, opened, observation_dim, action_dim, bounds)
        return file

    def _scaled(self, file: _TaskFile, task: str, action: np.ndarray, label: str) -> np.ndarray:
        """Actions in [-1, 1].

        Raises:
            ValueError: if they are not, and are not to be clipped.
        """
        if file.bounds is not None and not self.scaled:
            low, high = file.bounds
            action = (action - low) / (high - low) * 2.0 - 1.0
        if self.clip_actions:
            self.clipped += int((np.abs(action) > 1.0).sum())
            return np.clip(action, -1.0, 1.0)
        refuse_actions(action[None], task, [label], _OUT_OF_RANGE if file.bounds is None else _OUT_OF_BOUNDS)
        return action

    def _table(self) -> TaskSet:
        if isinstance(self.task_set, TaskSet):
            return self.task_set
        return TaskSet(self.task_set, (file.spec(task) for task, file in self._tasks.items()))

    def _finish(self) -> None:
        if not self._tasks:
            raise ValueError(f"no episodes were given for {self.root}; a data set holds at least one")
        for task, file in self._tasks.items():
            refuse_lost_variation(task, self.dtype, file.rounding, file.moments.mean, file.moments.std)
        table = self._table()
        files = {task: self._tasks[task] for task in table.names if task in self._tasks}
        fields = {"steps": self._join(table, files)}
        arrays = {
            "returns": np.concatenate([np.array(file.returns, np.float64) for file in files.values()]),
            "lengths": np.concatenate([np.array(file.lengths, np.int64) for file in files.values()]),
            "terminated": np.concatenate([np.array(file.terminated, bool) for file in files.values()]),
        }
        if all(file.successes is not None for file in files.values()):
            arrays["success"] = np.concatenate([np.array(file.successes, bool) for file in files.values()])
        for name, array in arrays.items():
            (self._stage / f"{name}.bin").write_bytes(array.tobytes())
            fields[name] = self._record(name, str(array.dtype), array.shape)
        if self.clipped:
            self.source["clipped_action_entries"] = self.clipped
        tasks, start = [], 0
        for task, file in files.items():
            tasks.append(self._task_rows(table[task], file, start, table.observation_dim))
            start = tasks[-1].stop
        manifest = Manifest(
            task_set=table.name,
            task_names=table.names,
            row_length=None,
            observation_dim=table.observation_dim,
            action_dim=table.action_dim,
            fields=fields,
            tasks=tuple(tasks),
            source=self.source,
            task_specs=Manifest.specs_to_keep(table),
        )
        replace_file(self._stage / MANIFEST_NAME, manifest.to_json().encode())

    def _join(self, table: TaskSet, files: Mapping[str, _TaskFile]) -> FieldRecord:
        """One file of the steps of all tasks, padded to the sizes of the set."""
        width = table.observation_dim + table.action_dim + 1
        total = sum(sum(file.lengths) + len(file.lengths) for file in files.values())
        target = self._stage / "steps.bin"
        with open(target, "wb") as steps:
            for number, file in enumerate(files.values()):
                # as in the published data, a model learns to ignore what pads an action
                draws = np.random.default_rng(number)
                for block in file.blocks(self.dtype):
                    padded = np.zeros((len(block), width), self.dtype)
                    padded[:, : file.observation_dim] = block[:, : file.observation_dim]
                    action = padded[:, table.observation_dim : -1]
                    action[...] = draws.uniform(-1.0, 1.0, action.shape)
                    action[:, : file.action_dim] = block[:, file.observation_dim : -1]
                    padded[:, -1] = block[:, -1]
                    steps.write(padded.data)
        self._files.close()
        for file in files.values():
            file.path.unlink()
        return self._record("steps", self.dtype, (total, width))

    def _record(self, name: str, dtype: str, shape: tuple[int, ...]) -> FieldRecord:
        path = self._stage / f"{name}.bin"
        flush_file(path)
        return FieldRecord(path.name, dtype, shape, file_sha256(path))

    def _task_rows(self, spec: TaskSpec, file: _TaskFile, start: int, observation_dim: int) -> TaskRows:
        low, high = file.bounds or (None, None)
        mean, std = np.zeros(observation_dim), np.zeros(observation_dim)
        mean[: file.observation_dim], std[: file.observation_dim] = file.moments.mean, file.moments.std
        return TaskRows(
            name=spec.name,
            index=spec.index,
            start=start,
            stop=start + len(file.lengths),
            return_mean=float(np.mean(file.returns)),
            return_std=float(np.std(file.returns)),
            behavior_return_mean=float(np.mean(file.returns)),
            observation_mean=tuple(mean.tolist()),
            observation_std=tuple(std.tolist()),
            behavior_return_std=float(np.std(file.returns)),
            success_mean=None if file.successes is None else float(np.mean(file.successes)),
            action_low=None if low is None else tuple(low.tolist()),
            action_high=None if high is None else tuple(high.tolist()),
        )


class _TaskFile:
    """The steps of one task [S, O + A + 1] in a file of their own, and what is known of its episodes."""

    def __init__(
        self, path: Path, file: BinaryIO, observation_dim: int, action_dim: int, bounds: ActionBounds | None
    ) -> None:
        self.path, self.file, self.bounds = path, file, bounds
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.terminated: list[bool] = []
        self.successes: list[bool] | None = None
        self.moments = ObservationMoments()
        self.rounding = np.zeros(observation_dim)  # largest difference of each entry from what is on disk

    def add(
        self, steps: np.ndarray, observation: np.ndarray, reward: np.ndarray, terminated: bool, success: bool | None
    ) -> None:
        self.file.write(steps.data)
        exact = observation.astype(np.float64)
        self.moments.update(exact[None])
        self.rounding = np.maximum(self.rounding, np.abs(exact - steps[:, : self.observation_dim]).max(0))
        self.returns.append(float(reward.astype(np.float64).sum()))
        self.lengths.append(len(reward))
        self.terminated.append(terminated)
        if success is not None:
            self.successes = self.successes or []
            self.successes.append(success)

    def blocks(self, dtype: str) -> Iterable[np.ndarray]:
        """The steps that were written, some at a time."""
        self.file.flush()
        width = self.observation_dim + self.action_dim + 1
        size = width * np.dtype(dtype).itemsize * _STEPS_AT_ONCE
        self.file.seek(0)
        while block := self.file.read(size):
            yield np.frombuffer(block, dtype).reshape(-1, width)

    def spec(self, name: str) -> TaskSpec:
        """The task as its episodes show it."""
        return TaskSpec(
            name,
            observation_fields=(("observation", self.observation_dim),),
            action_dim=self.action_dim,
            episode_length=max(self.lengths),
        )
