"""What a file is, told by its first bytes, and whether it is one that can be opened at all."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from torchrl_pwm._utils.errors import DamagedFileError, first_line

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
_HEAD = 512


def ordinary_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path of a file, if it is one: reading a pipe or a device might never end.

    Raises:
        FileNotFoundError: if there is none; a loop of links leads to none.
        DamagedFileError: if it is something else than a file.
    """
    path = Path(path)
    if not path.exists():
        looped = " (a link that leads nowhere)" if path.is_symlink() else ""
        raise FileNotFoundError(f"No {what} at {path}{looped}.")
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise DamagedFileError(f"{path} is no {what}: it is a folder; name the file in it")
    if not stat.S_ISREG(mode):
        raise DamagedFileError(f"{path} is no {what}: it is a pipe, a socket or a device; name a file")
    return path


@contextlib.contextmanager
def making(result: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever is raised while something is made of a file's contents, as an error of the file.

    To be put around what reads nothing but contents that passed the door: they may still lack an entry, or have one of
    another kind. What a caller gave is checked before, and code of a user's own is called outside: their errors are
    none of the file.

    Args:
        result: what is made, for messages.
        path: the file.

    Raises:
        DamagedFileError: in place of errors of types, entries and shapes; others go through.
    """
    try:
        yield
    except (RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError) as error:
        said = first_line(error) if not isinstance(error, LookupError) else f"no entry {error}"
        raise DamagedFileError(
            f"{path} does not make a {result}, it is of another kind or damaged ({said}); name another file, or "
            "restore it"
        ) from error


def first_bytes(path: Path) -> bytes:
    """The beginning of a file."""
    with open(path, "rb") as file:
        return file.read(_HEAD)


def describe(path: Path) -> str:
    """What a file is that could not be read, and what to do."""
    head = first_bytes(path)
    text = as_text(head)
    if not head:
        return "it is empty; download or copy it again"
    if text is not None and re.match(r"\s*(<!doctype html|<html|<\?xml|<head|<body)", text, re.IGNORECASE):
        return "it is a web page, for instance of a download that needs a login; download the file itself"
    if text is not None and text.startswith("version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if text is not None:
        return f"it is text, beginning {text.strip()[:40]!r}; name the file of the weights"
    state = "cut short or damaged" if head.startswith((ZIP, PICKLE)) else "of another kind, or damaged"
    return f"it is {state} ({path.stat().st_size} bytes); download or copy it again"


def as_text(head: bytes) -> str | None:
    """The beginning of a file as text, or None if it is none."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        # A character cut in two at the end.
        if error.start < len(head) - 3:
            return None
        text = head[: error.start].decode()
    return text if text.isprintable() or all(c.isprintable() or c in "\n\r\t\f" for c in text) else None
