"""Jobs in worker processes that do not outlive the process they work for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from torchrl_pwm._utils.stopping import (
    Stopped,
    become_worker,
    check_stop,
    finishing,
    is_stoppable,
    leave,
    shield_tracker,
    signals_wait,
    stop_asked,
    tell_worker,
    telling,
    working,
)

Job = TypeVar("Job")
Result = TypeVar("Result")
Report = Callable[..., object]

_KILLED = (
    "a worker process was killed, often for want of memory: take fewer workers; what is finished is kept, and the same "
    "work goes on from there"
)
_messages: Any = None  # queue to the parent, in a worker


def run_jobs(
    function: Callable[[Job, Report], Result],
    jobs: Iterable[Job],
    *,
    workers: int | None = None,
    report: Report = lambda *message: None,
) -> list[Result]:
    """Runs ``function(job, report)`` for each job, several at a time.

    After a failure what runs goes on to its end, so that its work is kept, and what waits does not start. Where a
    signal ends the run, see :mod:`torchrl_pwm._utils.stopping`, what runs saves and ends, and nothing more starts.

    Args:
        function: what is done with a job; with several workers it must be a name of a module, or a
            ``functools.partial`` of one. What it passes to its second argument reaches ``report`` while it runs.
        jobs: the jobs; with several workers they are pickled.

    Keyword Args:
        workers (int, optional): processes, at most one per job; default one per core. With one, the work is done in
            this process. More are started with *spawn*: a script needs ``if __name__ == "__main__":``.
        report (callable, optional): called in this process, with several workers in a thread of its own.

    Returns:
        The results, in the order of the jobs.

    Raises:
        ChildProcessError: if a worker process was killed.
        Stopped: where a signal ended the run.
        BaseException: what the first job that failed raised, or else the first failure of ``report``.

    Examples:
        >>> run_jobs(lambda job, report: report(job) or 2 * job, [1, 2], workers=1, report=print)
        1
        2
        [2, 4]
    """
    jobs = list(jobs)
    workers = min(len(jobs), (os.cpu_count() or 1) if workers is None else workers)
    if workers <= 1:
        return [function(job, report) for job in jobs]
    waiting = iter(jobs)
    with finishing(), _listening(report) as messages, process_pool(workers, messages) as pool, _told(pool):
        # no more than run at once: what is handed to the pool can not be called back
        futures = [_submit(pool, _work, function, job) for job in islice(waiting, workers)]
        running = set(futures)
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                try:
                    future.result()
                except Stopped:
                    pass  # the others save, too
                except BrokenProcessPool as error:
                    raise ChildProcessError(_KILLED) from error
            if not stop_asked():
                started = [_submit(pool, _work, function, job) for job in islice(waiting, len(finished))]
                futures += started
                running |= set(started)
    check_stop()
    return [future.result() for future in futures]


def run_apart(
    works: Sequence[Callable[[Report], object]],
    *,
    workers: int,
    report: Report,
    over: Callable[[int, BaseException | None], bool],
) -> None:
    """Does works several at a time, each in a process of its own, whose end leaves the others alone.

    Where a signal ends the run, what runs saves and ends, and nothing more starts.

    Args:
        works: each is pickled, and called with a function that passes on to ``report``.

    Keyword Args:
        workers: processes at a time.
        report: called in threads of this process, of each work before ``over``.
        over: called in this process with the number of a work that has ended, and what it raised, ChildProcessError if
            its process was killed; says whether the work is done once more, after those that wait.

    Raises:
        Stopped: where a signal ended the run.
    """
    waiting = deque(range(len(works)))
    running: dict[Future[Any], tuple[int, contextlib.ExitStack]] = {}
    with finishing(), contextlib.ExitStack() as pools:
        while running or (waiting and not stop_asked()):
            while waiting and len(running) < workers and not stop_asked():
                number, block = waiting.popleft(), contextlib.ExitStack()
                pools.callback(block.close)
                # a process that is killed may keep the lock of its queue
                messages = block.enter_context(_listening(report))
                pool = block.enter_context(process_pool(1, messages))
                block.enter_context(_told(pool))
                running[_submit(pool, _call, works[number])] = number, block
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                number, block = running.pop(future)
                block.close()
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    error = ChildProcessError(_KILLED)
                # what a signal ended is not over
                if not isinstance(error, Stopped) and over(number, error):
                    waiting.append(number)
    check_stop()


@contextlib.contextmanager
def _told(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Inside, signals to this process reach the workers."""

    def tell(number: int) -> None:
        for process in list((pool._processes or {}).values()):
            tell_worker(process, number)

    with telling(tell):
        yield


def _submit(pool: ProcessPoolExecutor, function: Callable[..., Any], *args: Any) -> Future[Any]:
    try:
        with signals_wait():  # the first job starts the processes
            return pool.submit(function, *args)
    except BrokenProcessPool as error:  # one was killed since; whoever waits for results is told which, in their order
        broken: Future[Any] = Future()
        broken.set_exception(error)
        return broken


def process_pool(
    workers: int, messages: Any = None, *, interrupted: bool = True, **options: Any
) -> ProcessPoolExecutor:
    """An executor of processes started with *spawn*, which end when this one does, however it does.

    Args:
        workers: how many.
        messages: queue that a worker's reports go to.

    Keyword Args:
        interrupted: whether an interruption from the keyboard, which all processes get, ends what they do.
        **options: those of :class:`~concurrent.futures.ProcessPoolExecutor`.
    """
    shield_tracker()
    context = multiprocessing.get_context("spawn")
    initargs = (messages, interrupted, is_stoppable())
    return ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=initargs, **options)


class LazyPool:
    """A :func:`process_pool` that is started with its first job and ends with the block.

    Where the block ends before its jobs, they are ended too; an interruption from the keyboard is left to the block.

    Args:
        workers: how many.

    Examples:
        >>> with LazyPool(1) as pool:
        ...     pool.submit(abs, -2).result()
        2
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._running: set[Future[Any]] = set()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """The result of ``function(*args)`` in a worker; both are pickled."""
        if self._pool is None:
            self._pool = process_pool(self.workers, interrupted=False)
        future = _submit(self._pool, function, *args)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def __enter__(self) -> LazyPool:
        return self

    def __exit__(self, *_: object) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if not all(future.done() for future in list(self._running)):
            for process in list((pool._processes or {}).values()):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _listening(report: Report) -> Iterator[Any]:
    """Yields a queue whose messages are passed to ``report`` until the block has ended and none is left.

    Only a thread can: a worker does not end before all it has said is read, which therefore goes on where ``report``
    fails; its first failure is raised when the block has ended.
    """
    shield_tracker()
    messages, ended = multiprocessing.get_context("spawn").Queue(), threading.Event()

    def listen() -> None:
        failure: Exception | None = None
        while not ended.is_set() or not messages.empty():
            with contextlib.suppress(queue.Empty):
                message = messages.get(timeout=0.1)
                try:
                    if failure is None:
                        report(*message)
                except Exception as error:
                    failure = error
        if failure is not None:
            raise failure

    with ThreadPoolExecutor(1) as thread:
        listener = thread.submit(listen)
        try:
            yield messages
        finally:
            ended.set()
    listener.result()


def _work(function: Callable[[Any, Report], Any], job: Any) -> Any:
    with working():
        return function(job, lambda *message: _messages.put(message))


def _call(work: Callable[[Report], object]) -> None:
    with working():
        work(lambda *message: _messages.put(message))


def _start_worker(messages: Any, interrupted: bool, stoppable: bool) -> None:
    """Where reports go; and this worker ends when its parent ends, however it does.

    A worker that outlives a killed run would write to the files of the run that resumes it.
    """
    global _messages
    _messages = messages
    if stoppable:
        become_worker(finishes=interrupted)
    elif not interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Ends this process when the one that started it ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        # The kernel gives a signal to any thread that lets it in, and one that came here would not wake the main one.
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        parent.join()
        leave(1)

    threading.Thread(target=watch, daemon=True).start()
