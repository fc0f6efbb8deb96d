"""Writes data sets of an earlier format anew."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from torchrl_pwm._utils.files import file_sha256, refuse_existing
from torchrl_pwm.data.store.manifest import FORMAT, MANIFEST_NAME, record_checksum
from torchrl_pwm.data.store.store import EpisodeStore
from torchrl_pwm.data.store.writer import EpisodeStoreWriter
from torchrl_pwm.envs.tasks import TaskSet, get_task_set

__all__ = ["upgrade_dataset"]

_FIELDS = ("observation", "action", "reward")
_ROWS_AT_ONCE = 1000


def upgrade_dataset(
    root: str | os.PathLike[str], target: str | os.PathLike[str], *, progress: bool = True
) -> EpisodeStore:
    """Writes a data set of format version 1, which has a file of each field, anew in the present format.

    All values stay as they are, and so does what the manifest says about their origin; the old data set is only read.
    Checkpoints of runs with the old data set are not resumed with the new one.

    Args:
        root: folder of the old data set.
        target: folder of the data set to make.
        progress: whether progress is shown.

    Returns:
        The opened data set.

    Raises:
        FileExistsError: if ``target`` holds anything.
        FileNotFoundError: if there is no data set in ``root``, or it lacks a file.
        ValueError: if it is not of version 1, or damaged.

    Examples:
        >>> from torchrl_pwm.data import upgrade_dataset
        >>> store = upgrade_dataset("old", "new")  # doctest: +SKIP
    """
    root = Path(root)
    refuse_existing(target)
    path = root / MANIFEST_NAME
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != FORMAT or record.get("version") != 1:
        raise ValueError(
            f"{path} is no manifest of {FORMAT!r} version 1, found {record.get('format')!r} version "
            f"{record.get('version')!r}; only that is written anew"
        )
    if record.get("sha256", record_checksum(record)) != record_checksum(record):
        raise ValueError(
            f"{path} does not have the checksum that it holds itself; restore it or make the data set again"
        )
    try:
        return _rewritten(root, Path(target), record, progress)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks or misnames an entry ({error}); the data set is damaged") from error


def _rewritten(root: Path, target: Path, record: Mapping[str, Any], progress: bool) -> EpisodeStore:
    name = record["task_set"]
    table = get_task_set(name if name in ("mt30", "mt80") else TaskSet(name, record["task_names"]))
    length = record["row_length"]
    arrays = {name: _opened(root, field) for name, field in record["fields"].items()}
    tasks = record["tasks"]
    writer = EpisodeStoreWriter(
        target,
        table,
        {task["name"]: task["stop"] - task["start"] for task in tasks},
        row_length=length,
        dtype=record["fields"]["observation"]["dtype"],
        success="success" in arrays,
        # the spread of returns is known of tasks with several rows an episode only where they follow each other
        whole_episodes=any(
            task["behavior_return_std"] is not None and table[task["name"]].episode_length > length for task in tasks
        ),
        source=record["source"],
    )
    bar = tqdm(total=tasks[-1]["stop"], desc="upgrading", unit="row", unit_scale=True, disable=not progress)
    with bar, writer:
        for task in tasks:
            for start in range(task["start"], task["stop"], _ROWS_AT_ONCE):
                here = slice(start, min(start + _ROWS_AT_ONCE, task["stop"]))
                observation, action, reward = (arrays[field][here] for field in _FIELDS)
                success = arrays["success"][here] if "success" in arrays else None
                writer.write(task["name"], observation, action, reward, success)
                bar.update(here.stop - start)
    return EpisodeStore(target)


def _opened(root: Path, field: Mapping[str, Any]) -> np.ndarray:
    path = root / Path(field["file"]).name
    found = file_sha256(path)
    if found != field["sha256"]:
        raise ValueError(
            f"{path} has sha256 {found[:12]}..., the manifest says {field['sha256'][:12]}...; the file was changed "
            "after it was written: restore it or make the data set again"
        )
    return np.memmap(path, field["dtype"], mode="r", shape=tuple(field["shape"]))
