"""Runs in forked processes that are killed at random moments and resumed, and what is left of them at the end."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrl_pwm._utils.checkpoint import load_checkpoint

_KEPT = (".bin", ".yaml", ".csv", ".memmap", ".pt")  # files that hold numbers, byte by byte
MOST = 8  # kills of one run; then it may end
_POLL = 0.0005  # seconds
# What is of a clock, of how a run was called, or a label: TorchRL numbers trajectories anew in a resumed collector.
_TIMES = {
    "resume",
    "traj_pool",
    "traj_ids",
    "seconds",
    "seconds_total",
    "seconds_extraction",
    "phases",
    "made",
}


@dataclass(frozen=True)
class Kind:
    """Something that is killed.

    Args:
        what: in words.
        work: does what is left of it in a folder, as the same call or ``resume=`` of a user does.
        prepare: makes what ``work`` reads, once, in a folder; its result is given to ``work``.
        result: by name, what is left at the end, which must be that of an undisturbed run.
        share: of the kills; one is cheap where there are many.
    """

    what: str
    work: Callable[[Path, Any], object]
    prepare: Callable[[Path], Any] = lambda folder: None
    result: Callable[[Path], dict[str, str]] = lambda folder: fingerprint(folder)
    share: int = 1


@dataclass(frozen=True)
class Ended:
    """How a process ended: by the kill, by itself (0), or by an error; after how many seconds of the processor."""

    killed: bool
    code: int
    seconds: float
    said: str


@dataclass(frozen=True)
class Disturbed:
    """A run that was killed and resumed: after how many seconds each time, and what differs at its end."""

    kills: list[float]
    different: list[str]
    lost: str


def attempt(kind: Kind, folder: Path, prepared: Any, *, seed: int, kill_after: float | None = None) -> Ended:
    """What is left of the work, in a process of its own that is killed after so many seconds of the processor."""
    log = folder.parent / "said.txt"
    pid = os.fork()
    if not pid:
        _work(kind, folder, prepared, seed, log)
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG if kill_after is not None else 0)
        if done:
            break
        if _processor_seconds(pid) >= (kill_after or 0.0):
            os.kill(pid, signal.SIGKILL)
            kill_after = None
            continue
        time.sleep(_POLL)
    code = os.waitstatus_to_exitcode(status)
    said = log.read_text()[-3000:] if log.exists() else ""
    return Ended(code == -signal.SIGKILL, code, usage.ru_utime + usage.ru_stime, said)


def _work(kind: Kind, folder: Path, prepared: Any, seed: int, log: Path) -> None:
    """The forked process. What a new process finds in global generators depends on nothing of the last one."""
    code = 1
    try:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        os.chdir(folder.parent)
        # A kill damages no checkpoint.
        warnings.filterwarnings("error", message=".*is damaged")
        kind.work(folder, prepared)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _processor_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        return time.clock_gettime((~pid << 3) | 2)  # the processor clock of another process, see clock_getcpuclockid(3)
    return 0.0


def undisturbed(kind: Kind, folder: Path, prepared: Any) -> tuple[float, dict[str, str]]:
    """Seconds of the processor that the whole work takes, and what is left of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    ended = attempt(kind, folder, prepared, seed=0)
    if ended.code:
        raise RuntimeError(f"{kind.what}: an undisturbed run ended with {ended.code}:\n{ended.said}")
    return ended.seconds, kind.result(folder)


def disturbed(
    kind: Kind,
    folder: Path,
    prepared: Any,
    *,
    whole: tuple[float, Mapping[str, str]],
    draws: random.Random,
    most: int = MOST,
) -> Disturbed:
    """Kills a run again and again, each time at a moment between its beginning and the length of a whole one."""
    seconds, expected = whole
    folder.parent.mkdir(parents=True, exist_ok=True)
    kills: list[float] = []
    while True:
        after = draws.uniform(0.0, seconds) if len(kills) < most else None
        ended = attempt(kind, folder, prepared, seed=draws.getrandbits(31), kill_after=after)
        if not ended.killed:
            break
        kills.append(round(ended.seconds, 4))
    if ended.code:
        return Disturbed(kills, [], f"ended with {ended.code}:\n{ended.said}")
    found = kind.result(folder)
    different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    return Disturbed(kills, different, "")


def fingerprint(folder: Path) -> dict[str, str]:
    """By name, every number that a run leaves, without its seconds; what is half-written counts as left, too."""
    found: dict[str, str] = {}
    for path in sorted(folder.parent.rglob("*")):
        name = str(path.relative_to(folder.parent))
        if path.name.endswith(".tmp") or ".partial" in path.name:
            found[name] = "half-written"
        elif path.name == "checkpoint.json":
            found[name] = digest(without_times(load_checkpoint(path.parent)))
        elif path.suffix == ".json" and path.name != "seconds.json":
            found[name] = digest(without_times(json.loads(path.read_text())))
        elif path.name == "policies.csv":
            with open(path, newline="") as table:
                found[name] = digest([without_times(row) for row in csv.DictReader(table)])
        elif path.suffix in _KEPT and path.stem != "training_seconds" and not path.name.startswith("checkpoint-"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def without_times(entry: Any) -> Any:
    """Nested entries without those that hold seconds or a date."""
    if isinstance(entry, Mapping):
        return {key: without_times(value) for key, value in entry.items() if key not in (*_TIMES, "stopwatch")}
    return [without_times(value) for value in entry] if isinstance(entry, (list, tuple)) else entry


def digest(entry: Any) -> str:
    """Of nested mappings and lists of tensors and plain values, bit for bit."""
    whole = hashlib.sha256()
    for part in _parts(entry):
        whole.update(part)
    return whole.hexdigest()


def _parts(entry: Any) -> Iterator[bytes]:
    if isinstance(entry, torch.Tensor):
        yield f"{entry.dtype}{list(entry.shape)}".encode()
        yield entry.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if entry.numel() else b""
    elif isinstance(entry, Mapping):
        for key, value in entry.items():
            yield repr(key).encode()
            yield from _parts(value)
    elif isinstance(entry, (list, tuple)):
        yield str(len(entry)).encode()
        for value in entry:
            yield from _parts(value)
    else:
        yield repr(entry).encode()


@contextlib.contextmanager
def cleared(folder: Path) -> Iterator[Path]:
    """A folder that is there for the block alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
