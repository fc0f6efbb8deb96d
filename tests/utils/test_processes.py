from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from torchrl_pwm._utils.processes import LazyPool, run_apart, run_jobs


def wait_for(*files):
    while not all(file.exists() for file in files):
        time.sleep(0.01)


def double(job, report):
    for number in range(job):
        report(job, number)
    return os.getpid(), 2 * job


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_every_message_arrives(workers):
    messages = []
    results = run_jobs(double, [3, 0, 5000], workers=workers, report=lambda *message: messages.append(message))
    assert [result for _, result in results] == [6, 0, 10000]
    assert sorted(messages) == [(job, number) for job in (3, 5000) for number in range(job)]
    assert (os.getpid() in {pid for pid, _ in results}) == (workers == 1)


def test_one_job_is_done_in_this_process_and_none_gives_nothing():
    assert run_jobs(double, [4], workers=3) == [(os.getpid(), 8)]
    assert run_jobs(double, [], workers=3) == []


def answer(folder, job, report):
    report(job)
    wait_for(folder / f"answer {job}")
    return job


def test_messages_arrive_while_the_jobs_run(tmp_path):
    def report(job):
        (tmp_path / f"answer {job}").touch()

    assert run_jobs(functools.partial(answer, tmp_path), ["a", "b"], workers=2, report=report) == ["a", "b"]


def chatter(job, report):
    for number in range(20_000):
        report(job, number)
    return job


def test_a_report_that_fails_is_raised_and_blocks_no_worker():
    def report(job, number):
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        run_jobs(chatter, [0, 1], workers=2, report=report)


def be_killed(job, report):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_says_what_to_do():
    with pytest.raises(ChildProcessError, match="take fewer workers"):
        run_jobs(be_killed, [0, 1], workers=2)


def test_what_is_handed_to_killed_workers_is_broken_as_what_they_did_is():
    """Whoever asks for the results in their order hears of the first: nothing is raised before."""
    with LazyPool(1) as pool:
        assert isinstance(pool.submit(be_killed, 0, None).exception(), BrokenProcessPool)
        assert isinstance(pool.submit(abs, -2).exception(), BrokenProcessPool)


def begin(place, report):
    if place.exists():
        place = place.with_name(f"{place.name} again")
    place.write_text(str(os.getpid()))
    report(place.name)
    if place.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if place.name == "failing":
        raise ValueError("as it should")


def test_works_apart_have_a_process_each_and_end_without_the_others(tmp_path):
    said, ends = [], []

    def over(number, error):
        ends.append((number, type(error)))
        return isinstance(error, ChildProcessError)

    works = [functools.partial(begin, tmp_path / name) for name in ("killed", "failing", "last")]
    run_apart(works, workers=1, report=said.append, over=over)
    assert ends == [(0, ChildProcessError), (1, ValueError), (2, type(None)), (0, type(None))]
    # what a process says last before it is killed may be lost
    assert said[-3:] == ["failing", "last", "killed again"]
    assert len({int(file.read_text()) for file in tmp_path.iterdir()} | {os.getpid()}) == 5


class Failure(Exception):
    """Leaves a file where it arrives."""

    def __init__(self, arrived):
        super().__init__("failed as it should")
        self.arrived = arrived

    def __reduce__(self):
        return arrive, (self.arrived,)


def arrive(file):
    file.touch()
    return Failure(file)


def fail(folder, job, report):
    (folder / f"{job} started").touch()
    if job == "failing":
        wait_for(folder / "running started")
        raise Failure(folder / "arrived")
    if job == "running":
        wait_for(folder / "arrived")
    (folder / f"{job} ended").touch()


def test_after_a_failure_what_runs_ends_and_what_waits_does_not_start(tmp_path):
    with pytest.raises(Failure, match="failed as it should"):
        run_jobs(functools.partial(fail, tmp_path), ["failing", "running", "waiting", "last"], workers=2)
    assert {path.name for path in tmp_path.iterdir()} == {
        "failing started",
        "running started",
        "running ended",
        "arrived",
    }


SCRIPT = """
import os, time
from torchrl_pwm._utils.processes import run_jobs

def work(job, report):
    report(os.getpid())
    time.sleep(120)

if __name__ == "__main__":
    run_jobs(work, range(2), workers=2, report=lambda pid: print(pid, flush=True))
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE, text=True)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(alive, workers))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(alive, workers))
