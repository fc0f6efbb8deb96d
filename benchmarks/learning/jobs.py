"""Runs of Hydra scripts, each in a folder of its own: done ones are skipped, interrupted ones go on."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.machine import machine
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.processes import process_pool

ROOT = Path(__file__).parents[2]
#: Where reports are written.
RESULTS = ROOT / "benchmarks" / "results"
_JOB, _LOG = "job.json", "log.txt"


def study_parser(name: str, description: str | None, **options: Any) -> argparse.ArgumentParser:
    """The command line that studies have in common: run or report, the seeds, and where runs and report are."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / name, help="of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of the report")
    return parser


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Runs a Hydra script, named from the root of the repository, in this process; SystemExit where it fails."""
    file = ROOT / script
    sys.argv = [str(file), *arguments]
    sys.path[:0] = [str(ROOT), str(file.parent)]
    runpy.run_path(str(file), run_name="__main__")


@dataclass(frozen=True)
class Job:
    """One run of a Hydra script.

    Args:
        name: what the progress bar calls it.
        script: its file, below the root of the repository.
        settings: ``key=value`` of the command line that decide what it computes.
        folder: where it writes ``config.yaml`` first and ``summary.json`` last.
        needs: files of other jobs that must be there first.
    """

    name: str
    script: str
    settings: tuple[str, ...]
    folder: Path
    needs: tuple[Path, ...] = ()

    @property
    def command(self) -> str:
        """The command line that computes the same."""
        return " ".join(["python", self.script, *self.settings])

    @property
    def done(self) -> bool:
        """Whether its results are there."""
        return (self.folder / "summary.json").exists()

    def check(self) -> None:
        """Raises ValueError if the folder holds a run with other settings."""
        file = self.folder / _JOB
        if not file.exists():
            return
        settings = json.loads(file.read_text())["settings"]
        if differing := sorted(set(settings) ^ set(self.settings)):
            raise ValueError(
                f"{self.folder} holds a run with other settings ({', '.join(differing)}): give the same ones, choose "
                "another folder with --folder, or remove it to begin anew"
            )

    def run(self) -> None:
        """Runs the script in this process, or what is left of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        started = (self.folder / "config.yaml").exists()
        if not started:
            content: dict[str, Any] = {"script": self.script, "settings": list(self.settings), "commit": commit()}
            content["machine"] = machine(torch.device("cpu"))
            replace_file(self.folder / _JOB, json.dumps(content, indent=2).encode())
        place = [f"resume={self.folder}"] if started else [*self.settings, f"folder={self.folder}"]
        run_script(self.script, [*place, "progress=false", "device=cpu"])


def _work(job: Job) -> None:
    """Runs a job in a process of its own, with its output in the folder's ``log.txt``.

    Raises:
        RuntimeError: if it fails, with the end of its output.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / _LOG
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        job.run()
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            return
        if isinstance(error, SystemExit):
            print(error.code, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-6:])
        raise RuntimeError(f"{job.name} failed; the end of {log}:\n{tail}") from None
    finally:
        sys.stdout.flush()


def commit() -> str | None:
    """The commit of the code, with a mark if the tree differs from it; None outside a repository."""
    try:
        name = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip()


def run_jobs(jobs: Sequence[Job], workers: int) -> list[str]:
    """Runs what is not done, ``workers`` at a time with one thread each; returns what went wrong.

    Where a job fails, those that need its files are left out and the others go on.

    Raises:
        ValueError: before anything starts, if a folder holds a run with other settings.
    """
    for job in jobs:
        job.check()
    pending = [job for job in jobs if not job.done]
    failures = []
    # Read by the workers when they import torch; one thread each makes times comparable.
    os.environ["OMP_NUM_THREADS"] = "1"
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(pending), unit="run", desc="suite")
    running: dict[Future[None], Job] = {}
    with process_pool(workers, max_tasks_per_child=1) as pool, bar:
        while pending or running:
            for job in [job for job in pending if all(file.exists() for file in job.needs)]:
                if len(running) < workers:
                    pending.remove(job)
                    running[pool.submit(_work, job)] = job
            if not running:
                failures += [f"{job.name} was left out: {job.needs[0]} is missing" for job in pending]
                break
            bar.set_postfix_str(", ".join(job.name for job in running.values()))
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                running.pop(future)
                if error := future.exception():
                    failures.append(str(error))
                    bar.write(str(error), file=sys.stderr)
                else:
                    bar.update()
    return failures


def complete(jobs: Sequence[Job], workers: int = 1) -> None:
    """:func:`run_jobs`; where runs are missing afterwards, ends the process with their number."""
    if failures := run_jobs(jobs, workers):
        sys.exit(f"{len(failures)} runs are missing; the same command goes on with them.")


def split_settings(arguments: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...]]:
    """The options of a command line, and the settings of the runs, which follow ``--``."""
    mark = [*arguments, "--"].index("--")
    return arguments[:mark], tuple(arguments[mark + 1 :])
