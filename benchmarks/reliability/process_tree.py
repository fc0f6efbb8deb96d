"""What a process and all that it started hold of the machine, read from ``/proc`` (Linux)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Held(NamedTuple):
    """Of one process or several: megabytes resident, open handles, threads, and how many processes they are."""

    megabytes: float
    handles: int
    threads: int
    processes: int


def held(pids: list[int]) -> Held:
    """By these processes together; one that has just ended counts for nothing.

    Resident memory is added up, so that pages which processes share, such as torch's code, count for each of them.
    """
    found = []
    for pid in pids:
        here = Path("/proc") / str(pid)
        try:
            pages = int((here / "statm").read_text().split()[1])
            found.append((pages * _PAGE / 2**20, len(os.listdir(here / "fd")), len(os.listdir(here / "task")), 1))
        except OSError:
            continue
    return Held(*(sum(each) for each in zip(*found))) if found else Held(0.0, 0, 0, 0)


def processor_seconds(pids: list[int]) -> float:
    """Of these processes, and of those that they started and that have ended."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that these started, without those that wait to be collected."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                state, parent = (Path("/proc") / entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry))
    found, left = [], [pid]
    while left:
        each = children.get(left.pop(), [])
        found += each
        left += each
    return sorted(found)


def size(folder: Path) -> tuple[float, float, int]:
    """Megabytes of a folder's files, of these those of its logs (CSV), and how many files there are."""
    whole, logs, count = 0, 0, 0
    for place, _, names in os.walk(folder):  # which passes over what is removed meanwhile
        for name in names:
            with contextlib.suppress(OSError):
                found = os.stat(os.path.join(place, name)).st_size
                whole, logs, count = whole + found, logs + found * name.endswith(".csv"), count + 1
    return whole / 2**20, logs / 2**20, count
