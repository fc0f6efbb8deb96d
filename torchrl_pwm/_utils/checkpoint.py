"""Checkpoints and files of tensors: written in one step, verified, and free of executable content."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from torchrl_pwm._utils.door import read_json, read_tensors
from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm._utils.files import file_sha256, replace_file, replaced_file

_MANIFEST = "checkpoint.json"
_damaged: set[Path] = set()  # data files that this process has found to be


class Component(Protocol):
    """A part of a checkpoint; one whose attribute ``optional`` is True begins anew where a checkpoint has none."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class _Entry(NamedTuple):
    """A data file of a folder, as its manifest describes it."""

    file: str
    size: int
    sha256: str
    step: int


def save_checkpoint(folder: str | os.PathLike[str], state: Mapping[str, Any], *, step: int, keep: int = 2) -> Path:
    """Writes ``state`` as the folder's current checkpoint.

    The data go to a new file that is flushed to disk before the manifest, which names it with its size and sha256, is
    replaced in one rename. A process killed anywhere leaves the previous checkpoint in force. What such a process left
    half-written is removed.

    Args:
        folder: where the checkpoint lives; made if missing.
        state (mapping): nested dictionaries and lists of tensors, numbers, strings and ``None``.

    Keyword Args:
        step (int): number of updates done; part of the file's name.
        keep (int): checkpoints that are kept, this one and those before it.

    Returns:
        The path of the data file.

    Raises:
        OSError: if the disk is full or cannot be written; the previous checkpoint is still in force.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = save_checkpoint(folder, {"weight": torch.ones(2)}, step=1)
        >>> load_checkpoint(folder)["weight"]
        tensor([1., 1.])
    """
    folder = Path(folder)
    earlier = _earlier(folder)
    _remove_others(folder, earlier)

    def name() -> str:
        # One of its own for other content, so that saving a step again never touches the checkpoint in force.
        return f"checkpoint-{step}-{file.sha256[:12]}.pt"

    with replaced_file(folder / f"checkpoint-{step}.pt", name) as temporary, _HashedFile(temporary) as file:
        torch.save(_own_storage(dict(state)), file)
        file.check()
    newest = _Entry(name(), file.size, file.sha256, step)
    kept = [newest, *(entry for entry in earlier if entry.file != newest.file)][:keep]
    manifest = {**newest._asdict(), "earlier": [entry._asdict() for entry in kept[1:]]}
    replace_file(folder / _MANIFEST, json.dumps(manifest, indent=2).encode())
    _remove_others(folder, kept)
    _damaged.discard(folder / newest.file)
    return folder / newest.file


def _earlier(folder: Path) -> list[_Entry]:
    """The checkpoints of a folder that are there, the newest first, without those found to be damaged."""
    try:
        entries = _read_manifest(folder)
    except (FileNotFoundError, DamagedFileError):
        return []
    return [entry for entry in entries if folder / entry.file not in _damaged and (folder / entry.file).exists()]


def _remove_others(folder: Path, kept: list[_Entry]) -> None:
    names = {entry.file for entry in kept}
    for old in {*folder.glob("checkpoint-*.pt"), *folder.glob("*.tmp")}:
        if old.name not in names:
            old.unlink()


class _HashedFile(io.BufferedWriter):
    """Counts its bytes and takes their checksum while they are written, so that none are held or read again.

    An error of the disk is kept for :meth:`check`: torch, which calls this from a destructor too, would not pass it on.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.size, self._digest, self._path = 0, hashlib.sha256(), path
        self._error: OSError | None = None

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.size += len(data)
        if self._error is None:
            try:
                return super().write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        if self._error is None:
            try:
                super().flush()
            except OSError as error:
                self._error = error

    def check(self) -> None:
        """Raises the first error of the disk, with the name of the file."""
        self.flush()
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self._path)) from self._error


def save_tensors(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes ``state`` to ``path`` in one step, for ``torch.load(path, weights_only=True)``.

    Args:
        path: the file.
        state (mapping): nested dictionaries and lists of tensors, numbers, strings and ``None``.

    Examples:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/weights.pt"
        >>> save_tensors(path, {"weight": torch.ones(2)})
        >>> torch.load(path, weights_only=True)
        {'weight': tensor([1., 1.])}
    """
    # not a path: torch.save would write its name, which is another each time, into the file
    with replaced_file(path) as temporary, open(temporary, "wb") as file:
        # a state dict as it is: its metadata say how its module was built
        torch.save(_own_storage(state if isinstance(state, dict) else dict(state)), file)


def _own_storage(state: Any) -> Any:
    """``state`` with a copy of each tensor that is a part of a larger one, all of which torch would write."""
    if isinstance(state, torch.Tensor):
        whole = state.untyped_storage().nbytes() == state.numel() * state.element_size()
        return state if whole or state.layout is not torch.strided else state.detach().clone()
    if isinstance(state, dict):
        copy = type(state)((key, _own_storage(value)) for key, value in state.items())
        if hasattr(state, "_metadata"):  # of a state dict: how its module was built
            copy._metadata = state._metadata  # type: ignore[attr-defined]
        return copy
    if type(state) in (list, tuple):
        return type(state)(_own_storage(value) for value in state)
    return state


def load_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the folder's current checkpoint, without executing anything it holds.

    Where that is damaged, a warning names it, and the newest one before it that is whole is read.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
        DamagedFileError: if the data are not those that were written, of none that is kept.
    """
    folder = Path(folder)
    found: list[DamagedFileError] = []
    for entry in _read_manifest(folder):
        try:
            state = _read(folder, entry)
        except DamagedFileError as error:
            _damaged.add(folder / entry.file)
            found.append(error)
            continue
        for damage in found:
            warnings.warn(f"{damage} What goes on here is the checkpoint of step {entry.step}.", stacklevel=2)
        return state
    raise found[0]


def _read(folder: Path, entry: _Entry) -> dict[str, Any]:
    path = folder / entry.file
    size_found = path.stat().st_size if path.exists() else 0
    if size_found != entry.size or file_sha256(path) != entry.sha256:
        raise DamagedFileError(
            f"The checkpoint {path} is damaged: expected {entry.size} bytes with sha256 {entry.sha256[:12]}..., found "
            f"{size_found} bytes that differ. Restore the file, or remove the folder to begin anew."
        )
    try:
        return read_tensors(path, verify=False)  # the checksum of all of it was compared
    except DamagedFileError as error:
        raise DamagedFileError(
            f"The checkpoint was refused, although it has the checksum of its manifest: {error}"
        ) from error


def _read_manifest(folder: Path) -> list[_Entry]:
    """The checkpoints of a folder, the newest first."""
    path = folder / _MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"No checkpoint in {folder}: expected {_MANIFEST} there.")
    try:
        manifest = read_json(path, what="manifest", keys=["file", "size", "sha256"])
        # Those of before have no others.
        return [_entry(found) for found in (manifest, *manifest.get("earlier", []))]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if entries := _named(folder):
            warnings.warn(f"The manifest {path} is damaged; the checkpoints are found by their names.", stacklevel=3)
            return entries
        raise DamagedFileError(
            f"The manifest {path} is damaged: expected JSON with file, size and sha256 ({type(error).__name__}: "
            f"{error}). Restore the file, or remove the folder to begin anew."
        ) from error


def _entry(found: Mapping[str, Any]) -> _Entry:
    # Only a name: a manifest must not lead out of its folder.
    name = Path(found["file"]).name
    return _Entry(name, int(found["size"]), str(found["sha256"]), int(found.get("step", 0)))


def _named(folder: Path) -> list[_Entry]:
    """The data files of a folder whose name has the beginning of their checksum, the newest first."""
    entries = []
    for path in folder.glob("checkpoint-*-*.pt"):
        step, beginning = path.stem.split("-")[1:3]
        if step.isdecimal() and len(beginning) == 12 and (digest := file_sha256(path)).startswith(beginning):
            entries.append(_Entry(path.name, path.stat().st_size, digest, int(step)))
    return sorted(entries, key=lambda entry: entry.step, reverse=True)


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a checkpoint."""
    return (Path(folder) / _MANIFEST).exists()
