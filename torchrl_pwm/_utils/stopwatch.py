"""Seconds of a training so far, by phase, with and without its evaluations."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

EVALUATION = "evaluation along the way"


class Stopwatch:
    """Seconds since it was made, and those of named phases, kept across interruptions by the checkpoint.

    Examples:
        >>> stopwatch = Stopwatch()
        >>> with stopwatch.evaluating():
        ...     pass
        >>> 0 <= stopwatch.training_seconds <= stopwatch.seconds
        True
        >>> with stopwatch.phase("cloning"):
        ...     pass
        >>> list(stopwatch.phases)
        ['evaluation along the way', 'cloning']
    """

    optional = True  # in a checkpoint: a run that began without one counts from there

    def __init__(self) -> None:
        self._before, self._start = 0.0, time.perf_counter()
        self.phases: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """All of them."""
        return self._before + time.perf_counter() - self._start

    @property
    def training_seconds(self) -> float:
        """Those outside :meth:`evaluating`."""
        return self.seconds - self.phases.get(EVALUATION, 0.0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs within belongs to this phase; phases do not overlap."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """What runs within is an evaluation."""
        return self.phase(EVALUATION)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "phases": dict(self.phases)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._before, self._start = state_dict["seconds"], time.perf_counter()
        # checkpoints of earlier versions know one phase
        earlier = {EVALUATION: state_dict["evaluations"]} if "evaluations" in state_dict else {}
        self.phases = dict(state_dict.get("phases", earlier))


class SharedStopwatch(Stopwatch):
    """The same for one of several trainings in a process: its own phases, and its share of the rest.

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
    def phase(self, name: str) -> Iterator[None]:
        """What runs within belongs to this phase; phases do not overlap."""
        before = self.phases.get(name, 0.0)
        with super().phase(name):
            yield
        self._before += self.phases[name] - before


def rounded(phases: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each phase, for a file."""
    return {name: round(seconds, 2) for name, seconds in phases.items()}


def added(several: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of each phase, of several stopwatches together.

    Examples:
        >>> added([{"updates": 2.0}, {"loading": 1.0, "updates": 3.0}])
        {'updates': 5.0, 'loading': 1.0}
    """
    total: dict[str, float] = {}
    for phases in several:
        for name, seconds in phases.items():
            total[name] = total.get(name, 0.0) + seconds
    return total
