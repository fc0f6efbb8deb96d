"""Checkpoints of which every process writes its own part, and which any number of processes reads.

The tensors that are shared out are written by ``torch.distributed.checkpoint``, in safetensors files: its own format
keeps pickled objects, which are executed when they are read. All else is one file of plain tensors and numbers.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.door import check_safetensors, making, read_json, read_tensors
from torchrl_pwm._utils.errors import DamagedFileError, first_line
from torchrl_pwm._utils.files import file_sha256, flush_file, flush_folder, replace_file
from torchrl_pwm.trainers.ranks import Ranks

MANIFEST = "checkpoint.json"  # as of every checkpoint
_REST, _SHARD = "rest.pt", "(shard)"  # the file beside the shards, and where in it one is left out


def save_shards(folder: Path, state: Mapping[str, Any], *, step: int, ranks: Ranks) -> None:
    """Writes ``state`` as the folder's current checkpoint; every process has to call it.

    The data go to a new folder, flushed to disk before the manifest, which names its files with their sizes and
    checksums, is replaced in one rename. Processes killed anywhere leave the previous checkpoint in force.

    Args:
        folder: where the checkpoint lives, on a disk that all processes share.
        state: nested dictionaries and lists of tensors, of which some are shared out, numbers, strings and ``None``.

    Keyword Args:
        step: number of updates done.
        ranks (Ranks): the processes.
    """
    target = folder / f"step-{step}"
    if ranks.agreed(ranks.first and (folder / MANIFEST).exists() and _manifest(folder)["file"] == target.name):
        return
    if ranks.first:
        shutil.rmtree(target, ignore_errors=True)  # of a save that was cut short
        target.mkdir(parents=True)
    ranks.wait()
    shards: dict[str, Any] = {}
    rest = _without_shards(state, "", shards)
    dcp.save(shards, storage_writer=HuggingFaceStorageWriter(str(target), save_distributed=True))
    if ranks.first:
        save_tensors(target / _REST, {"rest": rest})
        for file in target.iterdir():
            flush_file(file)
        flush_folder(target)
        files = {file.name: [file.stat().st_size, file_sha256(file)] for file in sorted(target.iterdir())}
        manifest = {"file": target.name, "step": step, "files": files}
        replace_file(folder / MANIFEST, json.dumps(manifest, indent=2).encode())
        for old in folder.glob("step-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    ranks.wait()


def load_shards(folder: Path, state: Mapping[str, Any], *, ranks: Ranks) -> dict[str, Any]:
    """Reads the folder's current checkpoint into the shards of ``state``, and returns it with all else that was saved.

    Raises:
        DamagedFileError: in every process, if the data are not those that were written, or not of this state.
    """
    manifest = _manifest(folder)
    target = folder / Path(manifest["file"]).name  # a manifest must not lead out of its folder
    if not ranks.agreed(not ranks.first or _is_whole(target, manifest["files"])):
        raise DamagedFileError(
            f"The checkpoint {target} is damaged: its files are not those of {folder / MANIFEST}. Restore them, or "
            "remove the folder to begin anew."
        )
    shards: dict[str, Any] = {}
    _without_shards(state, "", shards)
    with _reading(target):
        dcp.load(shards, storage_reader=HuggingFaceStorageReader(str(target)))
    rest = read_tensors(target / _REST, what="checkpoint")
    with making("checkpoint", target / _REST):
        loaded: dict[str, Any] = _with_shards(rest["rest"], shards)
    return loaded


@contextlib.contextmanager
def _reading(target: Path) -> Iterator[None]:
    """What torch says of shards that do not fit, which is no ``Exception``, as an error of the files."""
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, OSError) or not isinstance(cause, Exception):
            raise cause from error
        raise DamagedFileError(
            f"The checkpoint {target} is not one of this model: {first_line(cause)}. Name the options it was made "
            "with, restore it, or remove the folder to begin anew."
        ) from error


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = read_json(path, what="manifest", keys=["file", "files"])
        dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(
            f"The manifest {path} is not one of shards: expected JSON with file and files ({type(error).__name__}: "
            f"{error}). A run goes on with the engine it began with; otherwise restore the file, or remove the folder "
            "to begin anew."
        ) from error
    return manifest


def _is_whole(folder: Path, files: Mapping[str, Any]) -> bool:
    """Whether a folder has these files, with these sizes and checksums, and no other shards."""
    if not folder.is_dir() or {file.name for file in folder.iterdir()} != set(files):
        return False
    try:
        for shard in folder.glob("*.safetensors"):
            check_safetensors(shard, what="shard")
    except DamagedFileError:
        return False
    return all([(folder / name).stat().st_size, file_sha256(folder / name)] == said for name, said in files.items())


def _without_shards(state: Any, name: str, shards: dict[str, Any]) -> Any:
    """``state`` with the name of each shared tensor, by which it is put into ``shards``, in its place."""
    if isinstance(state, DTensor):
        shards[name] = state.detach()
        return {_SHARD: name}
    if isinstance(state, Mapping):
        return {key: _without_shards(value, f"{name}/{key}", shards) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_without_shards(value, f"{name}/{index}", shards) for index, value in enumerate(state))
    return state


def _with_shards(rest: Any, shards: Mapping[str, Any]) -> Any:
    """The inverse of :func:`_without_shards`."""
    if isinstance(rest, dict):
        if set(rest) == {_SHARD}:
            return shards[rest[_SHARD]]
        return {key: _with_shards(value, shards) for key, value in rest.items()}
    if isinstance(rest, (list, tuple)):
        return type(rest)(_with_shards(value, shards) for value in rest)
    return rest
