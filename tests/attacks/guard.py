"""What reading a file must not do: run or write anything, connect anywhere, or take memory by the gigabyte."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

ROOTS = tuple({str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, Path(__file__).parents[2])})
_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "shutil.", "os.remove")
_MEMORY = 1 << 30
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_seen: list[str] | None = None
_installed = False


def _watch(event: str, arguments: tuple) -> None:
    if _seen is None:
        return
    if event.startswith(_FORBIDDEN):
        _seen.append(f"{event}{arguments!r:.200}")
    elif event == "exec":
        name = getattr(arguments[0], "co_filename", "<string>")
        if not name.startswith((*ROOTS, "<frozen")):
            _seen.append(f"exec of {name}")
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        _seen.append(f"opened {arguments[0]} to write")


def _memory(key: str) -> int:
    """A line of the process's status, in bytes; 0 where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(key)), 0)


@contextlib.contextmanager
def guarded():
    """Fails if anything in the block is run, written or connected to, or a gigabyte of memory is touched."""
    global _seen, _installed
    if not _installed:  # a hook stays until the process ends
        sys.addaudithook(_watch)
        _installed = True
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
    before, _seen = _memory("VmRSS"), []
    try:
        yield
    finally:
        seen, _seen = _seen, None
    assert not seen, seen
    assert _memory("VmHWM") - before < _MEMORY


def refused(read, path, *, match: str | None = None) -> str:
    """Asserts that a reader refuses a file as one that cannot be trusted, within the guard; what it said."""
    from torchrl_pwm import DamagedFileError

    with guarded(), pytest.raises((DamagedFileError, FileNotFoundError), match=match) as raised:
        read(path)
    message = str(raised.value)
    assert len(message) < 2000
    assert "weights_only" not in message and "add_safe_globals" not in message
    return message
