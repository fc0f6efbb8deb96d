"""How a run ends by a signal: the first lets it finish what it is at and save, a second ends it at once.

Nothing here changes a process by itself: without :func:`stoppable`, which the command line alone enters, signals do
what they always do, and ``KeyboardInterrupt`` reaches a script of one's own as ever.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker, util
from types import FrameType
from typing import Any

__all__ = ["Stopped", "check_stop", "finishing", "is_stoppable", "shield_tracker", "stop_asked", "stoppable"]

#: From the keyboard, what a cluster sends before it takes a machine, and a terminal that closes (not on Windows).
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
# Tells a worker to end at once; not one of those that a terminal or a cluster sends to all processes of a run.
_AT_ONCE: Any = getattr(signal, "SIGUSR1", None)
_PATIENCE = 4.0  # seconds that an end at once may take to clean up, in a worker; twice that in its parent
_TIMES = 16  # that a parent tells its workers again meanwhile
_MIDST = 0.1  # seconds for another thread that is in the midst of removing a semaphore
_SAID = b"\nStopping: what it is at is finished and saved first. Once more stops it at once.\n"


class Stopped(KeyboardInterrupt):
    """A run was told to end by a signal.

    Args:
        number: of the signal.

    Examples:
        >>> Stopped(signal.SIGTERM).exit_code
        143
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(int(number))
        self.number = int(number)

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


class _Process:
    """What this process knows: whether it handles signals, which came first, and what must end by itself."""

    def __init__(self) -> None:
        self.stoppable = self.worker = self.ending = False
        self.asked: int | None = None
        self.held = 0
        self.told: list[Callable[[int], object]] = []


_here = _Process()


def is_stoppable() -> bool:
    """Whether signals end this process as said above."""
    return _here.stoppable


def stop_asked() -> bool:
    """Whether a signal has come; what asks between two pieces of work ends there."""
    return _here.asked is not None


def check_stop() -> None:
    """Raises :class:`Stopped` if a signal has come."""
    if _here.asked is not None:
        raise Stopped(_here.asked)


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Inside, a first signal only leaves word, for :func:`stop_asked`; outside it raises :class:`Stopped` at once.

    What was not asked for inside is raised at the end.
    """
    _here.held += 1
    try:
        yield
    finally:
        _here.held -= 1
    if not _here.held:
        check_stop()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Has SIGINT, SIGTERM and SIGHUP end the block in good order; for the main thread, elsewhere it does nothing.

    A signal that was ignored when the process began, as by ``nohup``, stays so.
    """
    if threading.current_thread() is not threading.main_thread() or _here.stoppable:
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    _here.stoppable, _here.asked, _here.held = True, None, 0
    try:
        for number in handled:
            signal.signal(number, _handle)
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
        _here.stoppable, _here.asked, _here.held = False, None, 0


@contextlib.contextmanager
def telling(tell: Callable[[int], object]) -> Iterator[None]:
    """Inside, ``tell`` is called with each signal that the processes of this one must hear of."""
    _here.told.append(tell)
    try:
        yield
    finally:
        _here.told.remove(tell)


def tell_worker(process: Any, number: int) -> None:
    """Sends a signal to a process that :func:`become_worker` was called in."""
    if process.pid is not None and process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Where processes are started: they begin deaf to signals, until they say what these do; here none is lost."""
    if not _here.stoppable or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shield_tracker() -> None:
    """Before anything of several processes is made: Python's process that cleans up after them outlives a terminal.

    It ignores SIGINT and SIGTERM by itself, and inherits that SIGHUP is blocked here where it is started.
    """
    if not _here.stoppable or _here.worker or not hasattr(signal, "SIGHUP"):
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become_worker(*, finishes: bool) -> None:
    """Has this process hear of signals through its parent alone, which started it in :func:`signals_wait`.

    Args:
        finishes: whether its jobs end in good order when the parent says so, each inside :func:`working`; else it is
            the parent that ends the process.
    """
    _here.stoppable = _here.worker = True
    _here.held = 1  # between jobs nothing is raised
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if finishes:
        signal.signal(signal.SIGTERM, _handle)
        if _AT_ONCE is not None:
            signal.signal(_AT_ONCE, _handle)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """A job of a worker, which ends as one in a process of its own would."""
    if not _here.worker:
        yield
        return
    check_stop()
    _here.held -= 1
    try:
        yield
    finally:
        _here.held += 1


def _handle(number: int, frame: FrameType | None) -> None:
    first, at_once = _here.asked is None, number == _AT_ONCE
    if _here.worker:
        if at_once and _here.ending:
            return
        # A cluster may have told it before its parent does: only that one's other signal means now.
        _here.asked, _here.ending = signal.SIGTERM, _here.ending or at_once
        if at_once:
            _end_soon(128 + signal.SIGTERM)
        if at_once or (first and not _here.held):
            _tell(number)
            raise Stopped(signal.SIGTERM)
        if first:
            _tell(number)
        return
    if first:
        _here.asked = number
        _tell(signal.SIGTERM)
        if _here.held:
            os.write(2, _SAID)
            return
        raise Stopped(number)
    _tell(signal.SIGTERM if _AT_ONCE is None else _AT_ONCE)
    _end_soon(128 + number)
    raise Stopped(number)


def _tell(number: int) -> None:
    for tell in list(_here.told):
        tell(number)


def leave(exit_code: int) -> None:
    """Ends this process as :func:`os._exit` does, but for its semaphores, which would outlive it."""
    with contextlib.suppress(Exception):  # nothing may keep it
        util._run_finalizers(0)  # type: ignore[attr-defined]
    time.sleep(_MIDST)
    os._exit(exit_code)


def _end_soon(exit_code: int) -> None:
    """Ends this process and its children where cleaning up takes too long, workers before their parent."""
    patience, told = _PATIENCE if _here.worker else 2 * _PATIENCE, list(_here.told)

    def end() -> None:
        # A sleep that begins as a signal comes is not woken by it: the next one is heard.
        for _ in range(_TIMES):
            time.sleep(patience / _TIMES)
            for tell in () if _here.worker or _AT_ONCE is None else told:
                with contextlib.suppress(Exception):  # of workers that have ended by now
                    tell(_AT_ONCE)
        for child in multiprocessing.active_children():
            child.kill()
        leave(exit_code)

    threading.Thread(target=end, daemon=True).start()
