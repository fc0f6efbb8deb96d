"""Converts the published TD-MPC2 shards to episodes on disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from torchrl import torchrl_logger
from tqdm import tqdm

from torchrl_pwm._utils.files import file_sha256, refuse_existing
from torchrl_pwm._utils.versions import versions
from torchrl_pwm.data.published.shards import open_shard, sorted_paths
from torchrl_pwm.data.store.store import EpisodeStore
from torchrl_pwm.data.store.writer import EpisodeStoreWriter
from torchrl_pwm.envs.tasks import TaskSet, get_task_set

__all__ = ["SHARD_COUNTS", "convert_shards", "shard_names"]

SHARD_COUNTS = {"mt30": 4, "mt80": 20}
_CHUNK_BYTES = 1 << 25


def shard_names(task_set: str) -> tuple[str, ...]:
    """File names of the published shards of a task set."""
    return tuple(f"chunk_{i}.pt" for i in range(SHARD_COUNTS[task_set]))


def convert_shards(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    root: str | os.PathLike[str],
    *,
    task_set: str | TaskSet,
    episode_length: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    progress: bool = True,
) -> EpisodeStore:
    """Converts published TD-MPC2 shards to a data set for :class:`~torchrl_pwm.data.TDMPC2ExperienceReplay`.

    A shard is a pickled TensorDict, or a plain dict, of *arrival* entries: entry t holds the observation reached
    after its action, and the action and reward of entry 0 are filler (NaN or numbers), which is dropped. All shards
    are read twice, to check them and count the rows of each task and to move them to their place, and never more than
    one is open. A shard in the zip format of ``torch.save`` is compared with the checksums inside it. No code in a
    shard is run: a file that refers to anything but tensors and TensorDicts is refused.

    Source of the format: TD-MPC2 (Hansen et al., ICLR 2024, arXiv 2310.16828), project page.

    Args:
        sources: folder with ``chunk_0.pt`` to ``chunk_3.pt`` (MT30) or ``chunk_19.pt`` (MT80), which must be complete;
            or a list of files, taken as it is.
        root: folder of the data set to make.
        task_set: ``"mt30"``, ``"mt80"`` or a :class:`~torchrl_pwm.envs.TaskSet`.
        episode_length: transitions of a row, where it is not the published 500 (MT30) or 100 (MT80).
        dtype: floating-point type on disk. Shards of any floating-point type are taken: float16 ones are widened
            without loss, and ``dtype="float16"`` keeps them as they are; samples are float32 whatever it is.
        progress: whether progress is shown.

    Returns:
        The opened data set.

    Raises:
        FileExistsError: if ``root`` holds anything.
        FileNotFoundError: if a shard is missing.
        ValueError: if a shard cannot be read or is refused, comes twice, is of another task set or row length, has a
            row of several tasks, was damaged, or holds a NaN or infinity outside of the filler. Nothing is left behind.

    Examples:
        >>> import tempfile, torch
        >>> from torchrl_pwm import convert_shards
        >>> folder = tempfile.mkdtemp()
        >>> shard = {
        ...     "obs": torch.zeros(2, 6, 24),
        ...     "action": torch.zeros(2, 6, 6),
        ...     "reward": torch.ones(2, 6),
        ...     "task": torch.full((2, 6), 7),
        ... }
        >>> torch.save(shard, f"{folder}/own.pt")
        >>> store = convert_shards(
        ...     [f"{folder}/own.pt"], f"{folder}/data", task_set="mt30", episode_length=5, progress=False
        ... )
        >>> store.tasks, store.num_rows
        (('pendulum-swingup',), 2)
    """
    refuse_existing(root)
    table = get_task_set(task_set)
    length = min(spec.episode_length for spec in table) if episode_length is None else episode_length
    if length < 1:
        raise ValueError(f"episode_length is a number of transitions and at least 1, found {length}")
    paths = _find_shards(sources, table)

    rows: Counter[str] = Counter()
    records: list[dict[str, Any]] = []
    for path in tqdm(paths, desc="checking shards", unit="shard", disable=not progress):
        record, tasks = _examine(path, table, length + 1)
        for earlier in records:
            if earlier["sha256"] == record["sha256"]:
                raise ValueError(
                    f"{path.name} and {earlier['name']} hold the same bytes; each shard counts once: one of them is "
                    "a copy under the wrong name, download it again"
                )
        records.append(record)
        rows.update({table[index].name: count for index, count in tasks.items()})

    if dtype == "float32" and all(record["dtypes"]["obs"] in ("float16", "bfloat16") for record in records):
        torchrl_logger.info(
            "the shards hold 16-bit numbers, which float32 keeps exactly; dtype='float16' takes half of the space on "
            "disk and keeps those of float16 exactly, too"
        )
    source = {"kind": "shards", "shards": records, "versions": versions()}
    chunk = max(1, _CHUNK_BYTES // (4 * (length + 1) * table.observation_dim))
    writer = EpisodeStoreWriter(root, table, rows, row_length=length, dtype=dtype, source=source)
    bar = tqdm(total=sum(rows.values()), desc="converting", unit="row", unit_scale=True, disable=not progress)
    with bar, writer:
        for path in paths:
            for part in open_shard(path, table, length + 1, verify=False).read(table, chunk):
                writer.write(part.task, part.observation, part.action, part.reward)
                bar.update(len(part.reward))
    return EpisodeStore(root)


def _examine(path: Path, table: TaskSet, entries: int) -> tuple[dict[str, Any], Counter[int]]:
    """Identity of a shard for the manifest, and its number of rows of each task."""
    shard = open_shard(path, table, entries)
    record = {
        "name": path.name,
        "size": path.stat().st_size,
        "sha256": file_sha256(path),
        "rows": shard.num_rows,
        "dtypes": shard.dtypes,
    }
    return record, Counter(shard.row_tasks(table).tolist())


def _find_shards(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    table: TaskSet,
) -> list[Path]:
    if isinstance(sources, (str, os.PathLike)):
        folder = Path(sources)
        if folder.is_file():
            return [folder]
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder or shard {folder}")
        return _complete_folder(folder, table)
    paths = [Path(source) for source in sources]
    if not paths:
        raise ValueError("no shards were given; pass a folder or at least one file")
    repeated = [str(path) for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if repeated:
        raise ValueError(f"each shard counts once, but {', '.join(repeated)} was given several times")
    return paths


def _complete_folder(folder: Path, table: TaskSet) -> list[Path]:
    paths = sorted_paths(folder.glob("*.pt"))
    if table.name not in SHARD_COUNTS:
        if not paths:
            raise FileNotFoundError(f"{folder} holds no .pt files")
        return paths
    names = shard_names(table.name)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)} of the {len(names)} shards of {table.name} (found "
            f"{', '.join(path.name for path in paths) or 'no .pt file'}); download what is missing, or pass a list of "
            "files to convert a part on purpose"
        )
    extra = [path.name for path in paths if path.name not in names]
    if extra:
        raise ValueError(
            f"{folder} holds {', '.join(extra)} besides the {len(names)} shards of {table.name}; is it the folder of "
            "another task set? Pass a list of files if it is not"
        )
    return [folder / name for name in names]
