"""Checkpoints and files of tensors: written in one step, verified, and free of executable content."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from torchrl_pwm._utils.door import read_json, read_tensors
from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm._utils.files import file_sha256, replace_file, replaced_file

_MANIFEST = "checkpoint.json"


class Component(Protocol):
    """A part of a checkpoint; one whose attribute ``optional`` is True begins anew where a checkpoint has none."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def save_checkpoint(folder: str | os.PathLike[str], state: Mapping[str, Any], *, step: int) -> Path:
    """Writes ``state`` as the folder's current checkpoint.

    The data go to a new file that is flushed to disk before the manifest, which names it with its size and sha256, is
    replaced in one rename. A process killed anywhere leaves the previous checkpoint in force.

    Args:
        folder: where the checkpoint lives; made if missing.
        state (mapping): nested dictionaries and lists of tensors, numbers, strings and ``None``.

    Keyword Args:
        step (int): number of updates done; part of the file's name.

    Returns:
        The path of the data file.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = save_checkpoint(folder, {"weight": torch.ones(2)}, step=1)
        >>> load_checkpoint(folder)["weight"]
        tensor([1., 1.])
    """
    folder = Path(folder)

    def name() -> str:
        # One of its own for other content, so that saving a step again never touches the checkpoint in force.
        return f"checkpoint-{step}-{file.sha256[:12]}.pt"

    with replaced_file(folder / f"checkpoint-{step}.pt", name) as temporary, _HashedFile(temporary) as file:
        torch.save(_own_storage(dict(state)), file)
    path = folder / name()
    manifest = {"file": path.name, "size": file.size, "sha256": file.sha256, "step": step}
    replace_file(folder / _MANIFEST, json.dumps(manifest, indent=2).encode())
    for old in {*folder.glob("checkpoint-*.pt"), *folder.glob("*.tmp")}:
        if old != path:
            old.unlink()
    return path


class _HashedFile(io.BufferedWriter):
    """Counts its bytes and takes their checksum while they are written, so that none are held or read again."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.size, self._digest = 0, hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.size += len(data)
        return super().write(data)


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

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
        DamagedFileError: if the data are not those that were written.
    """
    folder = Path(folder)
    if not (folder / _MANIFEST).exists():
        raise FileNotFoundError(f"No checkpoint in {folder}: expected {_MANIFEST} there.")
    name, size, digest = _read_manifest(folder / _MANIFEST)
    path = folder / name
    size_found = path.stat().st_size if path.exists() else 0
    if size_found != size or file_sha256(path) != digest:
        raise DamagedFileError(
            f"The checkpoint {path} is damaged: expected {size} bytes with sha256 {digest[:12]}..., found "
            f"{size_found} bytes that differ. Restore the file, or remove the folder to begin anew."
        )
    try:
        return read_tensors(path, verify=False)  # the checksum of all of it was compared
    except DamagedFileError as error:
        raise DamagedFileError(
            f"The checkpoint was refused, although it has the checksum of its manifest: {error}"
        ) from error


def _read_manifest(path: Path) -> tuple[str, int, str]:
    """Name, size and sha256 of the data file."""
    try:
        manifest = read_json(path, what="manifest", keys=["file", "size", "sha256"])
        # Only a name: a manifest must not lead out of its folder.
        return Path(manifest["file"]).name, int(manifest["size"]), str(manifest["sha256"])
    except (ValueError, TypeError, OverflowError) as error:
        raise DamagedFileError(
            f"The manifest {path} is damaged: expected JSON with file, size and sha256 ({type(error).__name__}: "
            f"{error}). Restore the file, or remove the folder to begin anew."
        ) from error


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a checkpoint."""
    return (Path(folder) / _MANIFEST).exists()
