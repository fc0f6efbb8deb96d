"""The manifest of a data set: what its files are, which rows belong to which task, and how it was made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl_pwm._utils.door import read_json
from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm.envs.tasks import TaskSet, TaskSpec, get_task_set

__all__ = ["FORMAT", "MANIFEST_NAME", "VERSION", "FieldRecord", "Manifest", "TaskRows"]

FORMAT = "torchrl_pwm.episodes"
VERSION = 2  # rows of one length
EPISODES_VERSION = 3  # episodes of any length
MANIFEST_NAME = "manifest.json"
_DTYPES = {
    "steps": ("float32", "float16"),
    "returns": ("float64",),
    "success": ("bool",),
    "lengths": ("int64",),
    "terminated": ("bool",),
}
_NAMED = ("mt30", "mt80")
_ITEM_SIZES = {"float64": 8, "int64": 8, "float32": 4, "float16": 2, "bool": 1}


@dataclasses.dataclass(frozen=True)
class FieldRecord:
    """One file: a plain row-major array.

    Args:
        file: file name inside the data set's folder.
        dtype: ``"float64"``, ``"int64"``, ``"float32"``, ``"float16"`` or ``"bool"``.
        shape: shape of the array, rows first.
        sha256: checksum of the file.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return math.prod(self.shape) * _ITEM_SIZES[self.dtype]


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """The rows of one task and the statistics of the behaviour that made them.

    Args:
        name: task name.
        index: index of the task in the task set.
        start: first row.
        stop: row after the last.
        return_mean: mean undiscounted reward sum of a row.
        return_std: standard deviation of it over rows (population form).
        behavior_return_mean: ``return_mean`` scaled from a row to a whole episode of the task.
        observation_mean: mean of each observation entry over all steps, O numbers.
        observation_std: standard deviation likewise (population form).
        behavior_return_std: standard deviation of the return of whole episodes, None where it is not known (rows
            of published data are parts of episodes).
        success_mean: rate of success at the last step of episodes, None where it is not known.
        action_low: lower bounds of the actions that were scaled to [-1, 1], in their own units; None where they were
            not scaled. The action ``a`` of a policy is ``low + (a + 1) / 2 * (high - low)`` there.
        action_high: upper bounds likewise.
    """

    name: str
    index: int
    start: int
    stop: int
    return_mean: float
    return_std: float
    behavior_return_mean: float
    observation_mean: tuple[float, ...]
    observation_std: tuple[float, ...]
    behavior_return_std: float | None = None
    success_mean: float | None = None
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Description of a data set, grouped by task in ascending order of task index.

    Args:
        task_set: name of the task set.
        task_names: task names of the set in order; says what the indices mean for sets of your own, too.
        row_length: transitions of a row, L; None for episodes of any length, each of which is a row then.
        observation_dim: padded observation size, O.
        action_dim: padded action size, A.
        fields: the files. Of rows of one length ``steps`` [N, L + 1, O + A + 1], ``returns`` [N] and optionally
            ``success`` [N, L]. Of episodes ``steps`` [S, O + A + 1], with E + 1 steps of an episode of E transitions,
            ``returns``, ``lengths`` (E), ``terminated`` and optionally ``success``, each [N].
        tasks: row ranges; they follow each other without gaps.
        source: how the data was made.
        task_specs: the tasks of a set that is not one of the named ones; None where only names were kept.
    """

    task_set: str
    task_names: tuple[str, ...]
    row_length: int | None
    observation_dim: int
    action_dim: int
    fields: Mapping[str, FieldRecord]
    tasks: tuple[TaskRows, ...]
    source: Mapping[str, Any]
    task_specs: tuple[TaskSpec, ...] | None = None

    @classmethod
    def specs_to_keep(cls, task_set: TaskSet) -> tuple[TaskSpec, ...] | None:
        """What a manifest says of the tasks of a set; None for the named sets, which are known."""
        return None if _is_named(task_set) else tuple(task_set)

    @property
    def num_rows(self) -> int:
        return self.tasks[-1].stop if self.tasks else 0

    @property
    def num_transitions(self) -> int:
        if self.row_length is None:
            return self.fields["steps"].shape[0] - self.num_rows
        return self.num_rows * self.row_length

    def get_task_set(self) -> TaskSet:
        """The task set, also where it is not one of the named ones."""
        if self.task_specs is None and self.task_set in _NAMED:
            return get_task_set(self.task_set)
        return TaskSet(self.task_set, self.task_names if self.task_specs is None else self.task_specs)

    def to_json(self) -> str:
        version = EPISODES_VERSION if self.row_length is None else VERSION
        record: dict[str, Any] = {"format": FORMAT, "version": version, **dataclasses.asdict(self)}
        for name, field in self.fields.items():
            record["fields"][name]["size"] = field.size
        record["sha256"] = _checksum(record)
        return json.dumps(record, indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Reads and checks ``manifest.json`` of a data set.

        Raises:
            FileNotFoundError: if there is none.
            DamagedFileError: if it is not a manifest of this format or contradicts itself.
        """
        path = root / MANIFEST_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{root} holds no {MANIFEST_NAME}, so it is not a data set; make one with convert_shards (published "
                "shards), collect_dataset (simulators), write_episodes, import_minari or import_d4rl (your own)"
            )
        record = read_json(path, what="manifest", advice="the data set is damaged, make it again")
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            kind = record.get("format") if isinstance(record, dict) else type(record).__name__
            raise DamagedFileError(
                f"{path} is not a manifest of this package: expected format {FORMAT!r}, found {kind!r}"
            )
        if record.get("version") not in (VERSION, EPISODES_VERSION):
            raise DamagedFileError(
                f"{path} has format version {record.get('version')!r}, this package reads versions {VERSION} and "
                f"{EPISODES_VERSION}; convert or collect the data again, or install the version that wrote it"
            )
        try:
            manifest = cls._from_record(record)
            manifest._check(path)
        except DamagedFileError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise DamagedFileError(f"{path} lacks or misnames an entry ({error}); the data set is damaged") from error
        if record.get("sha256", _checksum(record)) != _checksum(record):
            raise DamagedFileError(
                f"{path} was changed after it was written: it does not have the checksum that it holds itself; restore "
                "it or make the data set again (or remove its entry sha256, if you changed it on purpose)"
            )
        return manifest

    @classmethod
    def _from_record(cls, record: Mapping[str, Any]) -> Manifest:
        fields = {
            name: FieldRecord(field["file"], field["dtype"], tuple(map(int, field["shape"])), field["sha256"])
            for name, field in record["fields"].items()
        }
        specs = record.get("task_specs")
        return cls(
            task_set=record["task_set"],
            task_names=tuple(record["task_names"]),
            row_length=int(record["row_length"]) if record["version"] == VERSION else None,
            observation_dim=int(record["observation_dim"]),
            action_dim=int(record["action_dim"]),
            fields=fields,
            tasks=tuple(_task_rows(task) for task in record["tasks"]),
            source=record["source"],
            task_specs=None if specs is None else tuple(map(TaskSpec.from_record, specs)),
        )

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each file, as far as the rest of the manifest says; those without a default are needed."""
        rows, width = self.num_rows, self.observation_dim + self.action_dim + 1
        if self.row_length is not None:
            length = self.row_length
            return {"steps": (rows, length + 1, width), "returns": (rows,), "success": (rows, length)}
        steps = self.fields["steps"].shape[:1] if "steps" in self.fields else (0,)
        return {"steps": (*steps, width), **dict.fromkeys(("returns", "lengths", "terminated", "success"), (rows,))}

    def _check(self, path: Path) -> None:
        """Everything that later arithmetic relies on."""
        rows, shapes = self.num_rows, self._shapes
        if missing := [name for name in shapes if name != "success" and name not in self.fields]:
            raise DamagedFileError(f"{path} lists no file for {missing}; the data set is damaged")
        if rows < 1 or self.num_transitions < rows or self.observation_dim < 1 or self.action_dim < 1:
            raise DamagedFileError(
                f"{path} describes no data: {rows} rows of {self.num_transitions} transitions together"
            )
        for name, field in self.fields.items():
            if shapes.get(name) != field.shape:
                raise DamagedFileError(f"{path} gives {name} the shape {field.shape}, expected {shapes.get(name)}")
            if field.dtype not in _DTYPES[name]:
                raise DamagedFileError(
                    f"{path} gives {name} the dtype {field.dtype!r}, expected one of {_DTYPES[name]}"
                )
            if Path(field.file).name != field.file:
                raise DamagedFileError(f"{path} points at {field.file!r}, which is not a file name inside its folder")
        if self.task_specs is not None and tuple(spec.name for spec in self.task_specs) != self.task_names:
            raise DamagedFileError(f"{path} describes other tasks than it names; the data set is damaged")
        start = 0
        for previous, task in zip((None, *self.tasks), self.tasks):
            if task.start != start or task.stop <= task.start:
                raise DamagedFileError(
                    f"{path} gives {task.name} the rows {task.start} to {task.stop}, expected {start} on"
                )
            if not 0 <= task.index < len(self.task_names) or self.task_names[task.index] != task.name:
                raise DamagedFileError(f"{path} gives {task.name} the index {task.index}, which is another task's")
            for values in (task.observation_mean, task.observation_std):
                if len(values) != self.observation_dim:
                    raise DamagedFileError(
                        f"{path} gives {task.name} the statistics of {len(values)} observation entries, expected "
                        f"{self.observation_dim}"
                    )
            bounds = (task.action_low, task.action_high)
            if any(bound is not None and len(bound) > self.action_dim for bound in bounds):
                raise DamagedFileError(f"{path} gives {task.name} bounds of more than {self.action_dim} action entries")
            if previous is not None and previous.index >= task.index:
                raise DamagedFileError(f"{path} lists {task.name} after {previous.name}, against the order of the set")
            start = task.stop


def _is_named(task_set: TaskSet) -> bool:
    return task_set.name in _NAMED and get_task_set(task_set.name) == task_set


def _task_rows(record: Mapping[str, Any]) -> TaskRows:
    entries: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in record.items()}
    return TaskRows(**entries)


def _checksum(record: Mapping[str, Any]) -> str:
    """Of everything a manifest says, in one form whatever its layout."""
    said = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
