"""An hour, or as long as wanted, of real work, and what its processes hold of the machine meanwhile.

    python -m benchmarks.reliability.soak --minutes 60
    python -m benchmarks.reliability.soak --minutes 0      # only the page, of what a run that was cut short measured

Two things go on side by side: one run of ``torchrl-pwm mt80`` that does not end, with two processes that train and two
that evaluate; and in a process of its own one short run after the other, each resumed, its policy loaded and evaluated,
also in worker processes. Every few seconds a row goes to ``benchmarks/results/soak.csv``; at the end table, numbers and
picture to ``soak.md``, ``.json`` and ``.png``. Exit code 1: something grew, see :mod:`.soak_page`, or ended early.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.learning.jobs import ROOT, commit
from benchmarks.reliability.process_tree import below, held, processor_seconds, size
from benchmarks.reliability.soak_page import write
from benchmarks.reliability.soak_work import LONG, ROUNDS

RESULTS = Path(__file__).parents[1] / "results"
_PATIENCE = 300.0  # seconds in which what is told to end has to, before it is killed


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between rows")
    parser.add_argument("--folder", type=Path, default=Path("build/soak"), help="where runs live; begun anew")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of table and picture")
    options = parser.parse_args()
    about = options.results / "soak.json"
    ended: dict[str, Any] = {}
    if options.minutes:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not before what works has ended
        record = {
            "command": f"python -m benchmarks.reliability.soak --minutes {options.minutes:g}",
            "date": str(datetime.date.today()),
            "commit": commit(),
        }
        about.write_text(json.dumps(record, indent=1) + "\n")
        ended = soak(options.folder.resolve(), options.results / "soak.csv", 60 * options.minutes, options.every)
        about.write_text(json.dumps({**record, "ended": ended}, indent=1) + "\n")
    known = json.loads(about.read_text())
    grown = write(options.results, known, ended or known.get("ended", {}))
    for name in grown:
        print(f"{name}: grew, was not measured, or ended early", file=sys.stderr)
    return int(bool(grown))


def soak(folder: Path, table: Path, seconds: float, every: float) -> dict[str, Any]:
    """Both kinds of work for so long, with rows of a table along the way; how they ended."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    commands = {
        "long": ["-m", "torchrl_pwm.runs.cli", "mt80", *LONG, "folder=long"],
        "short": ["-m", "benchmarks.reliability.soak_work", str(folder), str(seconds)],
    }
    working: dict[str, subprocess.Popen[bytes]] = {}
    begin, number = time.monotonic(), 0
    try:
        for name, command in commands.items():
            with open(folder / f"{name}.log", "wb") as log:
                working[name] = subprocess.Popen(
                    [sys.executable, *command], cwd=folder, env=environment, stdout=log, stderr=log
                )
        with open(table, "w", newline="") as file:
            writer: csv.DictWriter[str] | None = None
            while (passed := time.monotonic() - begin) < seconds and all(
                each.poll() is None for each in working.values()
            ):
                row = {
                    "seconds": round(passed, 1),
                    **sample({name: each.pid for name, each in working.items()}, folder),
                }
                if writer is None:
                    writer = csv.DictWriter(file, row)
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
                number += 1
                time.sleep(max(0.0, begin + number * every - time.monotonic()))
        early = [name for name, each in working.items() if each.poll() is not None]
        started = [pid for each in working.values() for pid in below(each.pid)]
        for each in working.values():
            each.send_signal(signal.SIGTERM)
        codes = {f"{name}_code": each.wait(_PATIENCE) for name, each in working.items()}
        time.sleep(5.0)  # in which workers see that they are alone
        return {"early": early, **codes, "left": sum(held([pid]).threads > 0 for pid in started)}
    finally:
        for each in working.values():
            if each.poll() is None:
                each.kill()


def sample(pids: dict[str, int], folder: Path) -> dict[str, float]:
    """One row: of each kind of work what its first process and those below it hold, how far it is, and its folder."""
    row: dict[str, float] = {}
    for name, pid in pids.items():
        row[f"{name}_processor_seconds"] = round(processor_seconds([pid, *below(pid)]), 1)
        for place, those in (("first", [pid]), ("workers", below(pid))):
            row |= {f"{name}_{place}_{what}": value for what, value in held(those)._asdict().items()}
    row |= {name: round(value, 1) for name, value in row.items() if name.endswith("megabytes")}
    whole, logs, files = size(folder / "long")
    # Text grows by a row for each log; what else there is must not.
    row |= {"folder_megabytes": round(whole, 3), "folder_logs": round(logs, 3), "folder_files": files}
    return row | progress(folder)


def progress(folder: Path) -> dict[str, float]:
    """Updates, evaluations and checkpoints so far, and what the process of short runs held after its last round."""
    intervals = dict(option.split("=", 1) for option in LONG)
    found: dict[str, float] = {"updates": 0, "evaluations": 0, "checkpoints": 0, "rounds": 0}
    for scalars in folder.glob("long/policies/*/*/scalars"):
        updates = int(_rows(scalars / "loss_actor.csv")[-1].split(",")[0] or 0)
        found["updates"] += updates
        found["evaluations"] += len([row for row in _rows(scalars / "real_return.csv") if row])
        found["checkpoints"] += updates // int(intervals["extraction.save_interval"])
    found |= {f"rest_{what}": float("nan") for what in ("megabytes", "handles", "threads", "children")}
    for line in filter(None, _rows(folder / ROUNDS)):
        done = json.loads(line)
        found["rounds"] += 1
        for what in ("updates", "evaluations", "checkpoints"):
            found[what] += done[what]
        found |= {f"rest_{what}": done[what] for what in ("megabytes", "handles", "threads", "children")}
    return found


def _rows(file: Path) -> list[str]:
    """The whole lines of a file; one empty line of a file that is not there yet."""
    return (file.read_text() if file.exists() else "").rpartition("\n")[0].split("\n")


if __name__ == "__main__":
    sys.exit(main())
