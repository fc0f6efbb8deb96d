"""What signals do to a run with workers: the first lets all of them finish, a second ends them at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.running import session_members, wait_until
from torchrl_pwm._utils import stopping

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Workers that write down each iteration that they finish; "save" is what they would save.
SCRIPT = """
import contextlib, multiprocessing, sys, time
from functools import partial
from pathlib import Path
from torchrl_pwm._utils.processes import LazyPool, run_apart, run_jobs
from torchrl_pwm._utils.stopping import check_stop, finishing, shield_tracker, stop_asked, stoppable

def work(folder, job, report):
    with LazyPool(1) as pool, finishing():
        pool.submit(time.sleep, 300)
        for number in range(100_000):
            if stop_asked():
                (folder / f"saved {job}").write_text(str(number))
                check_stop()
            (folder / f"began {job}").touch()
            while slow and not (folder / "go on").exists():
                time.sleep(0.01)
            time.sleep(0.01)

def idle(folder, job, report):
    (folder / f"began {job}").touch()
    time.sleep(300)

def stuck(folder, job, report):
    lock = multiprocessing.get_context("spawn").Lock()
    try:
        idle(folder, job, report)
    finally:
        time.sleep(300)

slow = sys.argv[2] == "slow"
if __name__ == "__main__":
    try:
        function = partial({"idle": idle, "stuck": stuck}.get(sys.argv[2], work), Path(sys.argv[1]))
        with contextlib.nullcontext() if sys.argv[3] == "own" else stoppable():
            shield_tracker()
            lock = multiprocessing.get_context("spawn").Lock()
            if sys.argv[3] == "apart":
                works = [partial(function, job) for job in range(4)]
                run_apart(works, workers=2, report=print, over=lambda *ended: print(ended))
            else:
                run_jobs(function, range(4), workers=2)
    except KeyboardInterrupt as error:
        if sys.argv[3] == "own":
            raise
        sys.exit(error.exit_code)
    finally:
        time.sleep(300 if sys.argv[2] == "stuck" else 0)
"""


@pytest.fixture
def begin(tmp_path):
    """Starts the script in a session of its own, and waits until its workers are at work."""
    (tmp_path / "script.py").write_text(SCRIPT)
    started = []

    def start(kind: str, user: str = "command") -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "script.py", str(tmp_path), kind, user],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(stopping.__file__).parents[2])},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Where the tests run in the background, an interruption is ignored, which a child inherits.
            preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
        )
        started.append(process)
        wait_until(lambda: process.poll() is not None or all((tmp_path / f"began {job}").exists() for job in (0, 1)))
        return process

    yield start
    for process in started:
        process.kill()


def ends(process: subprocess.Popen) -> tuple[int, str]:
    """Exit code and what it said, when none of its processes is left."""
    _, said = process.communicate(timeout=120)
    wait_until(lambda: not session_members(process.pid), 30)
    return process.returncode, said


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
@pytest.mark.parametrize("whom", ("parent", "all"))
def test_a_first_signal_lets_every_worker_finish_and_save(number, whom, begin, tmp_path):
    """From a terminal or a cluster it reaches all processes, from ``kill`` the first alone."""
    process = begin("quick")
    (os.killpg if whom == "all" else os.kill)(process.pid, number)
    code, said = ends(process)
    assert code == 128 + number and {file.name for file in tmp_path.glob("saved*")} == {"saved 0", "saved 1"}
    assert said.strip().splitlines() == [
        "Stopping: what it is at is finished and saved first. Once more stops it at once."
    ]


@pytest.mark.parametrize("whom", ("parent", "all"))
def test_a_second_signal_ends_all_at_once(whom, begin, tmp_path):
    process = begin("slow")
    send = os.killpg if whom == "all" else os.kill
    send(process.pid, signal.SIGINT)
    assert process.stderr.readline() == "\n" and "Once more" in process.stderr.readline()
    send(process.pid, signal.SIGINT)
    code, said = ends(process)
    assert (code, said) == (130, "") and not list(tmp_path.glob("saved*"))


@pytest.mark.parametrize("whom", ("parent", "all"))
def test_works_apart_hear_of_a_signal_too(whom, begin, tmp_path):
    process = begin("quick", "apart")
    (os.killpg if whom == "all" else os.kill)(process.pid, signal.SIGINT)
    assert ends(process)[0] == 130 and {file.name for file in tmp_path.glob("saved*")} == {"saved 0", "saved 1"}


def test_works_apart_end_at_once_at_a_second_signal(begin, tmp_path):
    process = begin("slow", "apart")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n" and "Once more" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert ends(process) == (130, "") and not list(tmp_path.glob("saved*"))


def test_what_cannot_be_finished_ends_at_the_first_signal(begin, tmp_path):
    process = begin("idle")
    process.send_signal(signal.SIGTERM)
    code, said = ends(process)
    assert code == 143 and "Traceback" not in said and "leaked" not in said
    assert not (tmp_path / "began 2").exists()


def test_an_end_at_once_that_takes_too_long_to_clean_up_leaves_nothing(begin):
    """Neither in the workers nor in their parent, whose semaphores would outlive them."""
    process = begin("stuck")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n" and "Once more" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert ends(process) == (130, "")


def test_a_script_of_ones_own_meets_keyboard_interrupt_as_ever(begin, tmp_path):
    process = begin("quick", "own")
    os.killpg(process.pid, signal.SIGINT)
    code, said = ends(process)
    assert code == -signal.SIGINT and "KeyboardInterrupt" in said and not list(tmp_path.glob("saved*"))


def test_nothing_is_installed_until_a_command_asks_for_it():
    before = signal.getsignal(signal.SIGTERM)
    with stopping.finishing():
        assert not stopping.is_stoppable() and not stopping.stop_asked()
    with pytest.raises(stopping.Stopped) as ended, stopping.stoppable():
        assert signal.getsignal(signal.SIGTERM) != before
        with stopping.finishing():
            signal.raise_signal(signal.SIGTERM)
            assert stopping.stop_asked()
        pytest.fail("the block ends where nothing is left to be finished")
    assert ended.value.exit_code == 143 and isinstance(ended.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) == before and not stopping.stop_asked()


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGHUP))
def test_what_was_ignored_stays_ignored(number):
    """As ``nohup`` has it of a terminal that closes."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stopping.stoppable():
            signal.raise_signal(number)
            assert not stopping.stop_asked()
    finally:
        signal.signal(number, before)
