"""Runs of a suite on an engine: done ones are skipped, interrupted ones go on, failures leave the others alone."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.learning.jobs import Job
from torchrl_pwm._utils.stopping import Stopped, check_stop, stoppable
from torchrl_pwm.runs.engines.work import Engine, Report, Work

_LOG = "log.txt"


def run_jobs(jobs: Sequence[Job], engine: Engine, folder: Path) -> list[str]:
    """Has an engine run what is not done, with one thread each; returns what went wrong.

    Where a job fails, those that need its files are left out and the others go on.

    Args:
        jobs: the runs.
        engine: where they run.
        folder: around theirs, which the engine keeps its own files in.

    Raises:
        ValueError: before anything starts, if a folder holds a run with other settings.
        Stopped: where a signal ended the runs, which have saved.
    """
    for job in jobs:
        job.check()
    pending = [job for job in jobs if not job.done]
    failures: list[str] = []
    begun: dict[str, None] = {}
    # Read by the workers when they import torch; one thread each makes times comparable.
    os.environ["OMP_NUM_THREADS"] = "1"
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(pending), unit="run", desc="suite")

    def begins(name: str) -> None:
        begun[name] = None
        bar.set_postfix_str(", ".join(list(begun)))

    def ended(work: Work) -> None:
        begun.pop(work.name, None)
        bar.update()

    def failed(work: Work, error: BaseException) -> None:
        begun.pop(work.name, None)
        failures.append(str(error) if work.name in str(error) else f"{work.name}: {error}")
        bar.write(failures[-1], file=sys.stderr)

    with bar:
        while ready := [job for job in pending if all(file.exists() for file in job.needs)]:
            pending = [job for job in pending if job not in ready]
            works = [Work(_work, job, job.name, needs=job.needs, folders=(job.folder,), alone=True) for job in ready]
            engine.run(works, folder, report=begins, ended=ended, failed=failed)
    return failures + [f"{job.name} was left out: {job.needs[0]} is missing" for job in pending]


def complete(jobs: Sequence[Job], engine: Engine, folder: Path) -> None:
    """:func:`run_jobs`; where runs are missing afterwards, ends the process with their number.

    A first SIGINT, SIGTERM or SIGHUP lets those that run save, a second ends them at once.
    """
    try:
        with stoppable():
            failures = run_jobs(jobs, engine, folder)
    except Stopped as stopped:
        print("The same command goes on.", file=sys.stderr)
        sys.exit(stopped.exit_code)
    if failures:
        sys.exit(f"{len(failures)} runs are missing; the same command goes on with them.")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The options of a command line that say where runs are made."""
    parser.add_argument("--workers", type=int, default=1, help="runs at a time on this machine, one thread each")
    parser.add_argument(
        "--engine",
        nargs="+",
        default=["local"],
        metavar=("{local,ray,submitit}", "key=value"),
        help="processes of this machine, tasks of Ray or jobs of Slurm, with options of conf/engine/, such as hours=8",
    )


def chosen_engine(options: argparse.Namespace) -> Engine:
    """The engine that the options of :func:`add_engine` name.

    Raises:
        ImportError, ValueError, ConnectionError: if it is not there or cannot do what is asked.
        HydraException: if there is none of this name.
    """
    # here, since workers do without, and it takes a second
    from torchrl_pwm.runs.cli import compose_config
    from torchrl_pwm.runs.engines import make_engine

    name, *further = options.engine
    settings = [f"engine={name}", *(f"engine.{setting.removeprefix('engine.')}" for setting in further)]
    return make_engine(compose_config("pwm_mt80", ["device=cpu", f"workers={options.workers}", *settings]))


def _work(job: Job, report: Report) -> None:
    """Runs a job in this process, which does nothing else, with its output in the folder's ``log.txt``.

    Raises:
        RuntimeError: if it fails, with the end of its output.
        Stopped: where a signal ended it.
    """
    report(job.name)
    # On this machine the environment has said so before torch was imported.
    torch.set_num_threads(1)
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / _LOG
    with _written_to(log):
        try:
            if not job.done:
                job.run()
            return
        except SystemExit as error:
            if not error.code:
                return
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
            elif error.code < 0:  # from a signal of Slurm's, after which submitit has queued the job again
                raise
        except Exception:
            traceback.print_exc()
    check_stop()
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-6:])
    raise RuntimeError(f"{job.name} failed; the end of {log}:\n{tail}")


@contextlib.contextmanager
def _written_to(file: Path) -> Iterator[None]:
    """Adds what this process and its children print to a file for the block."""
    before = {number: os.dup(number) for number in (1, 2)}
    try:
        with open(file, "ab") as log:
            for number in before:
                os.dup2(log.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in before.items():
            os.dup2(copy, number)
            os.close(copy)
