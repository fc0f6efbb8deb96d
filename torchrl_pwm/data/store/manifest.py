"""The manifest of a data set: what its files are, which rows belong to which task, and how it was made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl_pwm.envs.tasks import TaskSet, get_task_set

__all__ = ["FORMAT", "MANIFEST_NAME", "VERSION", "FieldRecord", "Manifest", "TaskRows"]

FORMAT = "torchrl_pwm.episodes"
VERSION = 2
MANIFEST_NAME = "manifest.json"
_REQUIRED_FIELDS = ("steps", "returns")
_DTYPES = {"steps": ("float32", "float16"), "returns": ("float64",), "success": ("bool",)}
_ITEM_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bool": 1}


@dataclasses.dataclass(frozen=True)
class FieldRecord:
    """One file: a plain row-major array.

    Args:
        file: file name inside the data set's folder.
        dtype: ``"float64"``, ``"float32"``, ``"float16"`` or ``"bool"``.
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


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Description of a data set of fixed-length rows, grouped by task in ascending order of task index.

    Args:
        task_set: name of the task set.
        task_names: task names of the set in order; says what the indices mean for sets of your own, too.
        row_length: transitions of a row, L.
        observation_dim: padded observation size, O.
        action_dim: padded action size, A.
        fields: the files: ``steps`` [N, L + 1, O + A + 1], ``returns`` [N] and optionally ``success`` [N, L].
        tasks: row ranges; they follow each other without gaps.
        source: how the data was made.
    """

    task_set: str
    task_names: tuple[str, ...]
    row_length: int
    observation_dim: int
    action_dim: int
    fields: Mapping[str, FieldRecord]
    tasks: tuple[TaskRows, ...]
    source: Mapping[str, Any]

    @property
    def num_rows(self) -> int:
        return self.tasks[-1].stop if self.tasks else 0

    def get_task_set(self) -> TaskSet:
        """The task set, also where it is not one of the named ones."""
        if self.task_set in ("mt30", "mt80"):
            return get_task_set(self.task_set)
        return TaskSet(self.task_set, self.task_names)

    def to_json(self) -> str:
        record = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        for name, field in self.fields.items():
            record["fields"][name]["size"] = field.size
        record["sha256"] = _checksum(record)
        return json.dumps(record, indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Reads and checks ``manifest.json`` of a data set.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is not a manifest of this format or contradicts itself.
        """
        path = root / MANIFEST_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"{root} holds no {MANIFEST_NAME}, so it is not a data set; make one with convert_shards (published "
                "shards) or collect_dataset (simulators)"
            )
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON ({error}); the data set is damaged, make it again") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            kind = record.get("format") if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"{path} is not a manifest of this package: expected format {FORMAT!r}, found {kind!r}")
        if record.get("version") != VERSION:
            raise ValueError(
                f"{path} has format version {record.get('version')!r}, this package reads version {VERSION}; convert "
                "or collect the data again, or install the version that wrote it"
            )
        try:
            manifest = cls._from_record(record)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} lacks or misnames an entry ({error}); the data set is damaged") from error
        manifest._check(path)
        if record.get("sha256", _checksum(record)) != _checksum(record):
            raise ValueError(
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
        return cls(
            task_set=record["task_set"],
            task_names=tuple(record["task_names"]),
            row_length=int(record["row_length"]),
            observation_dim=int(record["observation_dim"]),
            action_dim=int(record["action_dim"]),
            fields=fields,
            tasks=tuple(_task_rows(task) for task in record["tasks"]),
            source=record["source"],
        )

    def _check(self, path: Path) -> None:
        """Everything that later arithmetic relies on."""
        rows, length = self.num_rows, self.row_length
        shapes = {
            "steps": (rows, length + 1, self.observation_dim + self.action_dim + 1),
            "returns": (rows,),
            "success": (rows, length),
        }
        if rows < 1 or length < 1 or self.observation_dim < 1 or self.action_dim < 1:
            raise ValueError(f"{path} describes no data: {rows} rows of {length} transitions")
        if missing := [name for name in _REQUIRED_FIELDS if name not in self.fields]:
            raise ValueError(f"{path} lists no file for {missing}; the data set is damaged")
        for name, field in self.fields.items():
            if shapes.get(name) != field.shape:
                raise ValueError(f"{path} gives {name} the shape {field.shape}, expected {shapes.get(name)}")
            if field.dtype not in _DTYPES[name]:
                raise ValueError(f"{path} gives {name} the dtype {field.dtype!r}, expected one of {_DTYPES[name]}")
            if Path(field.file).name != field.file:
                raise ValueError(f"{path} points at {field.file!r}, which is not a file name inside its folder")
        start = 0
        for previous, task in zip((None, *self.tasks), self.tasks):
            if task.start != start or task.stop <= task.start:
                raise ValueError(f"{path} gives {task.name} the rows {task.start} to {task.stop}, expected {start} on")
            if not 0 <= task.index < len(self.task_names) or self.task_names[task.index] != task.name:
                raise ValueError(f"{path} gives {task.name} the index {task.index}, which is another task's")
            for values in (task.observation_mean, task.observation_std):
                if len(values) != self.observation_dim:
                    raise ValueError(
                        f"{path} gives {task.name} the statistics of {len(values)} observation entries, expected "
                        f"{self.observation_dim}"
                    )
            if previous is not None and previous.index >= task.index:
                raise ValueError(f"{path} lists {task.name} after {previous.name}, against the order of the set")
            start = task.stop


def _task_rows(record: Mapping[str, Any]) -> TaskRows:
    entries: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in record.items()}
    return TaskRows(**entries)


def _checksum(record: Mapping[str, Any]) -> str:
    """Of everything a manifest says, in one form whatever its layout."""
    said = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
