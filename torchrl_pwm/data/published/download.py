"""Downloads the published TD-MPC2 data sets and checkpoints."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from torchrl_pwm._utils.errors import first_line
from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.files import byte_bar, default_root, file_sha256, flush_file, flush_folder, locked
from torchrl_pwm.data.published.convert import SHARD_COUNTS, shard_names

__all__ = ["HUB_REPOSITORY", "download_checkpoint", "download_shards"]

HUB_REPOSITORY = "nicklashansen/tdmpc2"


class _HubFile(NamedTuple):
    """A file of the hub, and what the hub says about it."""

    name: str
    repository: str
    url: str
    size: int
    sha256: str


def download_shards(
    task_set: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    endpoint: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Downloads the shards of a published data set from the Hugging Face hub.

    A download that was interrupted, however, goes on where it stopped. Size and sha256 of every file are compared with
    those that the hub states, also of files that are there already. MT30 is about 20 GB and MT80 about 34 GB;
    converted to float32 they take about 42 GB and 98 GB, and the shards can then be deleted.

    Args:
        task_set: ``"mt30"`` or ``"mt80"``.
        folder: where ``<task_set>/chunk_*.pt`` go; default ``~/.cache/torchrl/torchrl_pwm/shards``.
        endpoint: address of a mirror of the hub; default is the environment variable ``HF_ENDPOINT`` or the hub itself.
        progress: whether progress is shown.

    Returns:
        Paths of the shards in order.

    Raises:
        ValueError: for another task set, or if a file is not what the hub says.
        ConnectionError: if the hub cannot be reached; what has arrived is kept.
        RuntimeError: if another process is downloading the same file.
        ImportError: without the ``hub`` extra.

    Examples:
        >>> from torchrl_pwm.data import convert_shards, download_shards
        >>> convert_shards(download_shards("mt30"), "data/mt30", task_set="mt30")  # doctest: +SKIP
    """
    if task_set not in SHARD_COUNTS:
        raise ValueError(f"published data sets are {', '.join(SHARD_COUNTS)}, found {task_set!r}")
    target = Path(folder) if folder is not None else default_root() / "shards"
    return [
        _download(HUB_REPOSITORY, f"{task_set}/{name}", target, "dataset", endpoint, progress)
        for name in shard_names(task_set)
    ]


def download_checkpoint(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    repository: str = HUB_REPOSITORY,
    endpoint: str | None = None,
    progress: bool = True,
) -> Path:
    """Downloads a published checkpoint for :meth:`~torchrl_pwm.PWMWorldModel.from_tdmpc2`.

    It is resumed and compared as in :func:`~torchrl_pwm.data.download_shards`.

    Args:
        name: a multi-task model, ``"mt80-48M"`` and the like (``mt30``, ``mt80``; 1M, 5M, 19M, 48M, 317M), or a path
            in the repository, such as ``"dmcontrol/dog-run-1.pt"``.
        folder: where the path goes; default ``~/.cache/torchrl/torchrl_pwm/checkpoints``.
        repository: model repository of the hub.
        endpoint: address of a mirror of the hub; default is the environment variable ``HF_ENDPOINT`` or the hub itself.
        progress: whether progress is shown.

    Returns:
        Path of the file.

    Raises:
        ValueError: if the name is no path of a file, or the file is not what the hub says.
        ConnectionError: if the hub cannot be reached or has no such file.
        RuntimeError: if another process is downloading the same file.
        ImportError: without the ``hub`` extra.

    Examples:
        >>> from torchrl_pwm import PWMWorldModel
        >>> from torchrl_pwm.data import download_checkpoint
        >>> PWMWorldModel.from_tdmpc2(download_checkpoint("mt80-48M"))  # doctest: +SKIP
    """
    path = name if "/" in name else f"multitask/{name}"
    path = path if path.endswith((".pt", ".pth", ".safetensors")) else f"{path}.pt"
    if path.startswith("/") or ".." in path.split("/") or "\\" in path:
        raise ValueError(f"a checkpoint is a name such as 'mt80-48M' or a path in the repository, found {name!r}")
    target = Path(folder) if folder is not None else default_root() / "checkpoints"
    return _download(repository, path, target, None, endpoint, progress)


def _download(
    repository: str, name: str, folder: Path, repo_type: str | None, endpoint: str | None, progress: bool
) -> Path:
    hub = require("huggingface_hub", extra="hub", purpose="a download")
    url = hub.hf_hub_url(repository, name, repo_type=repo_type, endpoint=endpoint)
    try:
        metadata = hub.get_hf_file_metadata(url)
    except Exception as error:  # of three libraries, according to the release of the hub's client
        raise ConnectionError(
            f"{name} of {repository} was not found at {url} ({first_line(error)}); check the connection and the name, "
            "or get the file in another way: no download is needed where it is passed as a path"
        ) from error
    if metadata.size is None or not re.fullmatch("[0-9a-f]{64}", metadata.etag or ""):
        raise ValueError(
            f"{url} states no size and sha256 (found size {metadata.size} and etag {metadata.etag}), so a download "
            "could not be checked; is it a mirror that is not compatible with the hub?"
        )
    file = _HubFile(name, repository, url, metadata.size, metadata.etag)
    target = folder / name
    if target.exists():
        _check(target, file, "delete it to download it again", progress)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}-{file.sha256[:16]}.part")
    part.touch()
    with locked(part) as free:
        if free is False:
            raise RuntimeError(f"another process is downloading {target}; wait until it has finished, then call again")
        if not target.exists():
            _fetch(hub, file, part, progress)
            try:
                _check(part, file, "nothing of it was kept: call again to download it from the start", progress)
            except ValueError:
                part.unlink()
                raise
            flush_file(part)
            os.replace(part, target)
            flush_folder(target.parent)
    return target


def _fetch(hub: ModuleType, file: _HubFile, part: Path, progress: bool) -> None:
    """Appends to ``part`` what is missing; the client's ``hf_hub_download`` would begin again with each call."""
    client = require("huggingface_hub.file_download", extra="hub", purpose="a download")
    headers = hub.utils.build_hf_headers()
    with open(part, "r+b", buffering=0) as content, _bars(hub, progress):
        here = content.seek(0, os.SEEK_END)
        if here > file.size:
            here = content.truncate(content.seek(0))
        try:
            client.http_get(file.url, content, resume_size=here, headers=headers, expected_size=file.size)
        except Exception as error:
            raise ConnectionError(
                f"the download of {file.name} of {file.repository} stopped at {part.stat().st_size} of {file.size} "
                f"bytes ({first_line(error)}); what has arrived is kept: call again to go on"
            ) from error


def _check(path: Path, file: _HubFile, advice: str, progress: bool) -> None:
    size = path.stat().st_size
    if size != file.size:
        raise ValueError(
            f"{path} has {size} bytes, but {file.name} of {file.repository} has {file.size} on the hub; {advice}"
        )
    with byte_bar(size, f"checking {file.name}", progress=progress) as bar:
        digest = file_sha256(path, bar.update)
    if digest != file.sha256:
        raise ValueError(
            f"{path} has sha256 {digest[:12]}..., but the hub says {file.sha256[:12]}... for {file.name} of "
            f"{file.repository}: it was damaged on its way or changed; {advice}"
        )


@contextlib.contextmanager
def _bars(hub: ModuleType, progress: bool) -> Iterator[None]:
    """The bars of the hub's client, or none."""
    if progress or hub.utils.are_progress_bars_disabled():
        yield
        return
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.utils.enable_progress_bars()
