"""Reading of files of tensors, without running anything that they hold."""

from __future__ import annotations

import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch

from torchrl_pwm._utils.errors import DamagedFileError

#: What may be rebuilt beside tensors: a stand-in, and the pickled name that it stands in for.
Allowed = Sequence[tuple[Callable[..., Any], str]]

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_HEAD = 512
# Whatever torch, zipfile and the unpickler raise for bytes that are not what they expect.
_UNREADABLE = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error),
)


def read_tensors(
    path: str | os.PathLike[str], *, what: str = "checkpoint", allowed: Allowed = (), mmap: bool = False
) -> Any:
    """What ``torch.save`` wrote to a file, on the CPU: tensors, numbers, strings and containers of them.

    Args:
        path: the file.

    Keyword Args:
        what: name of what is expected, for messages.
        allowed: stand-ins for classes and functions that the file may refer to beside tensors; nothing else is
            looked up.
        mmap: map the tensors from the file, where its form allows that.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no file of tensors; the message says what it is.

    Examples:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/weights.pt"
        >>> torch.save({"weight": torch.ones(2)}, path)
        >>> read_tensors(path)
        {'weight': tensor([1., 1.])}
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No {what} at {path}.")
    if path.is_dir():
        raise DamagedFileError(f"{path} is no {what}: it is a folder; name the file in it")
    try:
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols and classes to come, which the refusal tells better
            zipped = mmap and _head(path).startswith(_ZIP)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise DamagedFileError(f"{path} {_refusal(path, what, error)}") from error
    except _UNREADABLE as error:
        raise DamagedFileError(f"{path} is no {what}: {_description(path)}") from error


def read_safetensors(
    path: str | os.PathLike[str], *, what: str = "checkpoint"
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and the strings of its header.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no safetensors file, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No {what} at {path}.")
    if path.is_dir():
        raise DamagedFileError(f"{path} is no {what}: it is a folder; name the file in it")
    try:
        with safetensors.safe_open(path, "pt") as archive:
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
            return tensors, dict(archive.metadata() or {})
    except (safetensors.SafetensorError, *_UNREADABLE) as error:
        raise DamagedFileError(f"{path} is no {what}: {_description(path)}") from error


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as safetensors files do: the length of a JSON header, and the header."""
    head = _head(Path(path))
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEAD)


def _description(path: Path) -> str:
    """What a file is that could not be read, and what to do."""
    head = _head(path)
    text = _as_text(head)
    if not head:
        return "it is empty; download or copy it again"
    if text is not None and re.match(r"\s*(<!doctype html|<html|<\?xml|<head|<body)", text, re.IGNORECASE):
        return "it is a web page, for instance of a download that needs a login; download the file itself"
    if text is not None and text.startswith("version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if text is not None:
        return f"it is text, beginning {text.strip()[:40]!r}; name the file of the weights"
    state = "cut short or damaged" if head.startswith((_ZIP, _PICKLE)) else "of another kind, or damaged"
    return f"it is {state} ({path.stat().st_size} bytes); download or copy it again"


def _refusal(path: Path, what: str, error: pickle.UnpicklingError) -> str:
    """Why the unpickler stopped: at a name that is not allowed, or at bytes that are no pickle."""
    names = re.findall(r"(?:GLOBAL|function|class|global) `?<?(?:built-in function )?([\w.]+)", str(error))
    if not names and (not _head(path).startswith((_ZIP, _PICKLE)) or _as_text(_head(path)) is not None):
        return f"is no {what}: {_description(path)}"
    refers = f"refers to {names[0]}" if names else "holds something else"
    return (
        f"was refused: it {refers}, but nothing except tensors, numbers and strings is read, since a pickled file can "
        "run any code; get it from its publisher as plain tensors"
    )


def _as_text(head: bytes) -> str | None:
    """The beginning of a file as text, or None if it is none."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        # A character cut in two at the end.
        if error.start < len(head) - 3:
            return None
        text = head[: error.start].decode()
    return text if text.isprintable() or all(c.isprintable() or c in "\n\r\t\f" for c in text) else None
