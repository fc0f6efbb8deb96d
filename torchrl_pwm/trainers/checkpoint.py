"""The one writer and reader of training checkpoints: atomic, verified, and free of executable content."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_MANIFEST = "checkpoint.json"


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
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getvalue()
    path = folder / f"checkpoint-{step}.pt"
    replace_file(path, data)
    manifest = {"file": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "step": step}
    replace_file(folder / _MANIFEST, json.dumps(manifest, indent=2).encode())
    for old in folder.glob("checkpoint-*.pt*"):
        if old != path:
            old.unlink()
    return path


def load_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the folder's current checkpoint, without executing anything it holds.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
        ValueError: if the data are not those that were written.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"No checkpoint in {folder}: expected {_MANIFEST} there.") from None
    path = folder / Path(manifest["file"]).name
    data = path.read_bytes() if path.exists() else b""
    if len(data) != manifest["size"] or hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise ValueError(
            f"The checkpoint {path} is damaged: expected {manifest['size']} bytes with sha256 "
            f"{manifest['sha256'][:12]}..., found {len(data)} bytes that differ. Restore the file, or remove the "
            "folder to begin anew."
        )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a checkpoint."""
    return (Path(folder) / _MANIFEST).exists()


def replace_file(path: Path, data: bytes) -> None:
    """Puts ``data`` at ``path`` in one step: write aside, flush to disk, rename."""
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
