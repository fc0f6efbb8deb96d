"""Kills at random moments of everything that writes, shared out over its kinds; each run is a line of a file."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.learning.jobs import commit
from benchmarks.reliability.forks import Kind, cleared, disturbed, undisturbed
from benchmarks.reliability.kinds import kinds

_FILE = "kills.jsonl"


def kill_all(
    folder: Path,
    place: Path,
    *,
    kills: int,
    only: Sequence[str] | None = None,
    most: int = 8,
    seed: int = 0,
    minutes: float | None = None,
) -> None:
    """Makes what is left of the kills.

    Args:
        folder: where records of them are kept.
        place: disk that the runs live on.
        kills: in all; each kind gets its share.
        only: names of kinds.
        most: kills of one run.
        seed: of the moments.
        minutes: no run begins later.
    """
    torch.set_num_threads(1)  # and no thread of this process, which a forked one would lack
    tqdm.monitor_interval = 0
    resource_tracker.ensure_running()
    folder.mkdir(parents=True, exist_ok=True)
    known = kinds()
    chosen = {name: known[name] for name in only or known}
    end = time.monotonic() + 60 * (minutes or 1e9)
    shares = {
        name: -(-kills * kind.share // sum(kind.share for kind in chosen.values())) for name, kind in chosen.items()
    }
    done = {name: counted(folder, name) for name in chosen}
    with tqdm(total=sum(shares.values()), desc="kills", unit="kill") as bar:
        bar.update(sum(min(done[name][1], shares[name]) for name in chosen))
        for name, kind in chosen.items():
            runs, killed = done[name]
            if killed >= shares[name] or time.monotonic() > end:
                continue
            with cleared(place / f"pwm-kills-{os.getpid()}") as here:
                prepared, whole = _prepare(kind, here)
                while killed < shares[name] and time.monotonic() < end:
                    bar.set_postfix_str(name, refresh=False)
                    draws = random.Random(f"{seed} {name} {runs}")
                    with cleared(here / "killed") as mine:
                        result = disturbed(kind, mine / "run", prepared, whole=whole, draws=draws, most=most)
                    runs, killed = runs + 1, killed + len(result.kills)
                    bar.update(len(result.kills))
                    _append(folder, name, runs - 1, seed, whole[0], place, vars(result))


def _prepare(kind: Kind, here: Path) -> tuple[Any, tuple[float, Mapping[str, str]]]:
    """What the work reads, and an undisturbed run, after one here has imported what it needs."""
    (here / "data").mkdir()
    prepared, back = kind.prepare(here / "data"), os.getcwd()
    with cleared(here / "first") as first, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        os.chdir(first)
        try:
            kind.work(first / "run", prepared)
        finally:
            os.chdir(back)
    return prepared, undisturbed(kind, here / "whole" / "run", prepared)


def _append(
    folder: Path, name: str, run: int, seed: int, seconds: float, place: Path, result: Mapping[str, Any]
) -> None:
    entry = {
        "kind": name,
        "run": run,
        "seed": seed,
        "seconds": round(seconds, 3),
        **result,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "disk": str(place),
    }
    with open(folder / _FILE, "a") as file:
        file.write(json.dumps(entry) + "\n")


def go_on_from(folder: Path, recorded: Path) -> None:
    """In a folder that is new, of what was recorded before: a later page shall not lose what another machine did."""
    if not (folder / _FILE).exists() and recorded.exists():
        folder.mkdir(parents=True, exist_ok=True)
        runs = json.loads(recorded.read_text())["runs"]
        (folder / _FILE).write_text("".join(json.dumps(run) + "\n" for run in runs))


def records(folder: Path) -> list[dict[str, Any]]:
    """What was done so far; a line that was cut short is left out."""
    found = []
    if (folder / _FILE).exists():
        for line in (folder / _FILE).read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
    return found


def counted(folder: Path, name: str) -> tuple[int, int]:
    """Runs and kills of a kind so far."""
    mine = [record for record in records(folder) if record["kind"] == name]
    return len(mine), sum(len(record["kills"]) for record in mine)
