"""Seconds of a training so far, with and without its evaluations."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any


class Stopwatch:
    """Seconds since it was made, kept across interruptions by the checkpoint.

    Examples:
        >>> stopwatch = Stopwatch()
        >>> with stopwatch.evaluating():
        ...     pass
        >>> 0 <= stopwatch.training_seconds <= stopwatch.seconds
        True
    """

    optional = True  # in a checkpoint: a run that began without one counts from there

    def __init__(self) -> None:
        self._before, self._start, self._evaluations = 0.0, time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """All of them."""
        return self._before + time.perf_counter() - self._start

    @property
    def training_seconds(self) -> float:
        """Those outside :meth:`evaluating`."""
        return self.seconds - self._evaluations

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """What runs within is an evaluation."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._evaluations += time.perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "evaluations": self._evaluations}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._before, self._start = state_dict["seconds"], time.perf_counter()
        self._evaluations = state_dict.get("evaluations", 0.0)


class SharedStopwatch(Stopwatch):
    """The same for one of several trainings in a process: its own evaluations, and its share of the rest.

    Examples:
        >>> stopwatch = SharedStopwatch()
        >>> stopwatch.add(3.0)
        >>> stopwatch.seconds, stopwatch.training_seconds
        (3.0, 3.0)
    """

    @property
    def seconds(self) -> float:
        """All of them."""
        return self._before

    def add(self, seconds: float) -> None:
        """Its share of what was done for all."""
        self._before += seconds

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """What runs within is an evaluation."""
        before = self._evaluations
        with super().evaluating():
            yield
        self._before += self._evaluations - before
