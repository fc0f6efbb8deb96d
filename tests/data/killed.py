"""Processes of their own for this project's code: killed at a chosen place, or measured."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run(code: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    """Runs ``code``, which finds the arguments in ``sys.argv``."""
    finished = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or finished.returncode == 0, finished.stderr
    return finished


def run_until_killed(code: str, *arguments: object) -> None:
    """Runs ``code`` and asserts that it ended by SIGKILL, not by itself and not by an error."""
    finished = run(code, *arguments, check=False)
    assert finished.returncode == -signal.SIGKILL, finished.stderr


def memory(key: str) -> float:
    """MiB of this process: ``"VmRSS"`` now, ``"VmHWM"`` at the most."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def restart_peak() -> float:
    """Counts ``memory("VmHWM")`` from here on; returns what it begins with."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")
