"""Folders that ``TensorDict.memmap`` wrote: what they list is there, as long as it should be, and tensors alone."""

from __future__ import annotations

import math
import urllib.parse
from pathlib import Path
from typing import Any

import torch
from tensordict import NonTensorData, TensorDict

from torchrl_pwm._utils.door.records import read_json
from torchrl_pwm._utils.errors import DamagedFileError, first_line

_DEPTH_LIMIT = 16
_PICKLED = "pickled objects beside tensors, which can run any code"


def check_memmap(folder: Path, *, shape: tuple[int, ...] = (), depth: int = 0) -> None:
    """Checks each tensor that a folder of a memory-mapped TensorDict lists, and each TensorDict in it.

    tensordict leaves out what is missing, lengthens with zeros what was cut short, and unpickles what is no tensor.

    Args:
        folder: the folder.
        shape: batch size that the TensorDict must have in front.
        depth: of the TensorDicts that it is in.

    Raises:
        FileNotFoundError: if a file that is listed is missing.
        DamagedFileError: if one has another size, or something else is listed.
    """
    listing = folder / "meta.json"
    try:
        entries = read_json(listing, keys=["shape", "_type"])
    except DamagedFileError as error:
        raise _damaged(folder, first_line(error)) from error
    batch = _shape(entries["shape"])
    if entries["_type"] != str(TensorDict):
        raise _damaged(folder, f"found a {str(entries['_type'])[:60]} where a TensorDict is expected")
    if batch is None or batch[: len(shape)] != shape or depth > _DEPTH_LIMIT:
        raise _damaged(folder, f"found the batch size {str(entries['shape'])[:60]}")
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            continue
        if not key.strip("."):
            raise _damaged(folder, f"found an entry named {key!r}")
        if entry.get("type") == "TensorDict":
            check_memmap(_place(folder, key), shape=batch, depth=depth + 1)
        elif entry.get("type") is not None:
            _check_plain(_place(folder, key))
        else:
            _check_file(folder, key, entry, batch)


def _check_plain(folder: Path) -> None:
    """Checks that what is no tensor stands in the listing itself, where it can be nothing but JSON."""
    entries = read_json(folder / "meta.json", keys=["_type"])
    if entries["_type"] != str(NonTensorData) or len(list(folder.iterdir())) > 1:
        raise _damaged(folder, f"found {_PICKLED}")


def _place(folder: Path, key: str, suffix: str = "") -> Path:
    """Where tensordict puts an entry: under its name, with the characters escaped that are none of file names."""
    escaped = folder / f"{urllib.parse.quote(key, safe='')}{suffix}"
    return escaped if escaped.exists() or "/" in key else folder / f"{key}{suffix}"


def _check_file(folder: Path, key: str, entry: dict[str, Any], batch: tuple[int, ...]) -> None:
    """Checks the file of one tensor."""
    shape = _shape(entry.get("shape"))
    name = entry.get("dtype")
    dtype = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    if shape is None or not isinstance(dtype, torch.dtype) or entry.get("is_nested", False):
        raise _damaged(folder, f"found {_PICKLED}, or an entry that is none: {key[:60]}")
    if shape[: len(batch)] != batch:
        raise _damaged(folder, f"found {key} of shape {list(shape)}, expected {list(batch)} in front")
    file, size = _place(folder, key, ".memmap"), math.prod(shape) * dtype.itemsize
    if not file.is_file() and size:
        raise FileNotFoundError(f"{file} is missing, though {folder / 'meta.json'} lists it; copy the folder again")
    if size and file.stat().st_size != size:
        raise _damaged(folder, f"found {file.name} of {file.stat().st_size} bytes, expected {size}")


def _shape(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(length) is int and 0 <= length < 1 << 40 for length in value):
        return None
    return tuple(value)


def _damaged(folder: Path, found: str) -> DamagedFileError:
    return DamagedFileError(
        f"{folder} is no folder of a memory-mapped TensorDict, or damaged: {found}; write it "
        "again with td.contiguous().memmap(folder), of tensors alone"
    )
