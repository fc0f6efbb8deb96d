"""Files and folders that appear whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows: what a killed process left half-written stays until it is deleted by hand
    fcntl = None  # type: ignore[assignment]

_BLOCK = 1 << 22
BAR_DELAY = 1.0  # seconds before progress is shown


def default_root() -> Path:
    """Folder of everything that is downloaded."""
    return Path.home() / ".cache" / "torchrl" / "torchrl_pwm"


def file_sha256(path: str | os.PathLike[str], progress: Callable[[int], object] | None = None) -> str:
    """Checksum of a file, read in blocks. ``progress`` is called with the number of bytes of each block."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def byte_bar(total: int, desc: str, *, progress: bool) -> tqdm:
    """A progress bar in bytes."""
    return tqdm(total=total, desc=desc, unit="B", unit_scale=True, delay=BAR_DELAY, disable=not progress)


def flush_file(path: str | os.PathLike[str]) -> None:
    """Wait until a written file is on the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """Wait until the entries of a folder are on the disk; nothing to do where folders cannot be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike[str], name: Callable[[], str] | None = None) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that takes its place when the block ends without an exception.

    What killed processes left half-written beside ``path`` is removed first; what living ones are writing stays.

    Args:
        path: where the file goes; its folder is made if missing.
        name: gives another name for it when it is written, for one that depends on the content.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    temporary = _temporary(target)
    temporary.touch()
    try:
        with locked(temporary):
            yield temporary
            flush_file(temporary)
            os.replace(temporary, target if name is None else target.with_name(name()))
        flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Puts ``data`` at ``path`` in one step: write aside, flush to disk, rename."""
    with replaced_file(path) as temporary:
        temporary.write_bytes(data)


def picture_path(path: str | os.PathLike[str]) -> Path:
    """The path, as a PNG if it has no suffix."""
    target = Path(path)
    return target if target.suffix else target.with_suffix(".png")


@contextlib.contextmanager
def staged_folder(root: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary folder beside ``root`` that takes its name when the block ends without an exception.

    After an exception the temporary folder is removed. The files in it must have been flushed by their writer. What
    killed processes left half-written beside ``root`` is removed first; what living ones are writing stays.

    Raises:
        FileExistsError: if ``root`` is there already and holds anything.
    """
    target = Path(root)
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    stage = _temporary(target)
    stage.mkdir()
    with locked(stage):
        try:
            yield stage
            flush_folder(stage)
            if target.is_dir():
                target.rmdir()
            os.rename(stage, target)
            flush_folder(target.parent)
        finally:
            if stage.exists():
                shutil.rmtree(stage)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}-{secrets.token_hex(4)}.tmp")


def _remove_abandoned(target: Path) -> None:
    """Removes temporary files and folders of ``target`` whose process is gone: its lock went with it."""
    if fcntl is None:
        return
    pattern = re.compile(rf"\.{re.escape(target.name)}-[0-9a-f]{{8}}\.tmp")
    for stage in target.parent.iterdir():
        if pattern.fullmatch(stage.name):
            with contextlib.suppress(FileNotFoundError), locked(stage) as free:
                if free and stage.is_dir():
                    shutil.rmtree(stage)
                elif free:
                    stage.unlink()


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[bool | None]:
    """Holds the lock of a file or folder for the block; it ends with the process, however that ends.

    Yields:
        Whether the lock was free, None where files cannot be locked (Windows, some network disks).
    """
    if fcntl is None:
        yield None
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        free: bool | None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError:
            free = None
        yield free
    finally:
        os.close(handle)


def refuse_existing(root: str | os.PathLike[str]) -> None:
    """Raise FileExistsError if ``root`` is a file or a folder that holds anything."""
    target = Path(root)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists already; give another folder, or delete it to write it again")
