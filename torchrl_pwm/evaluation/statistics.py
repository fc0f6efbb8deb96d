"""Aggregates of normalised scores over tasks and seeds, with bootstrap confidence intervals."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_pwm._utils.extras import require

__all__ = ["Aggregate", "ScoreStatistics", "aggregate_scores"]


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """A number and its confidence interval; ``low`` and ``high`` are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class ScoreStatistics:
    """What :func:`aggregate_scores` found.

    Args:
        iqm: interquartile mean over all runs of all tasks: the mean of the middle half.
        mean: mean over tasks of the mean over seeds.
        median: median over tasks of the mean over seeds.
        seeds: number of seeds per task.
        tasks: number of tasks.
        confidence: level of the intervals.
    """

    iqm: Aggregate
    mean: Aggregate
    median: Aggregate
    seeds: int
    tasks: int
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for ``summary.json``."""
        return dataclasses.asdict(self)


def aggregate_scores(
    scores: npt.ArrayLike, *, confidence: float = 0.95, reps: int = 2000, seed: int = 0
) -> ScoreStatistics:
    """Interquartile mean, mean and median of normalised scores, with stratified bootstrap confidence intervals.

    The interquartile mean discards the lowest and the highest quarter of all runs: it moves less than the mean when
    one run fails or shines, and uses more of the runs than the median. The intervals (percentile method) say how far
    the aggregate would move with other seeds on the same tasks: seeds are drawn anew within each task. A single seed
    per task says nothing about that, so there is no interval then.

    Args:
        scores: [seeds, tasks], each the mean score over the evaluation episodes of one policy.
        confidence: level of the intervals.
        reps: bootstrap replications; 0 leaves the intervals out, and then no further package is needed.
        seed: seed of the bootstrap; numpy's global generator is left as it was found.

    Raises:
        ImportError: if rliable, which computes the intervals, is not installed.
        ValueError: if ``scores`` are not a matrix of finite numbers, or ``confidence`` or ``reps`` is out of range.

    Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021, and
    their package rliable.

    Examples:
        >>> found = aggregate_scores([[0.0, 0.5, 0.6, 1.0]])
        >>> found.iqm, found.mean.value, found.tasks, found.seeds
        (Aggregate(value=0.55, low=None, high=None), 0.525, 4, 1)
    """
    matrix = score_matrix(scores, confidence, reps)
    values = _aggregates(matrix)
    lows: Sequence[float | None] = [None] * len(values)
    highs: Sequence[float | None] = [None] * len(values)
    if reps and len(matrix) > 1:
        lows, highs = _intervals(matrix, confidence, reps, seed).tolist()
    iqm, mean, median = (Aggregate(*found) for found in zip(values.tolist(), lows, highs))
    return ScoreStatistics(iqm, mean, median, seeds=len(matrix), tasks=matrix.shape[1], confidence=confidence)


def score_matrix(scores: npt.ArrayLike, confidence: float, reps: int) -> np.ndarray:
    """Scores as float64 [seeds, tasks].

    Raises:
        ValueError: if they are something else, or an option of their bootstrap is out of range.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0 or not np.isfinite(matrix).all():
        raise ValueError(
            f"scores must be finite numbers of shape [seeds, tasks], found shape {list(matrix.shape)} with "
            f"{int((~np.isfinite(matrix)).sum())} that are not; leave out tasks that have no score"
        )
    if not 0.0 < confidence < 1.0 or reps < 0:
        raise ValueError(f"confidence must lie in (0, 1) and reps be at least 0, found {confidence} and {reps}")
    return matrix


def _aggregates(matrix: np.ndarray) -> np.ndarray:
    """Interquartile mean, mean and median of [seeds, tasks]."""
    ordered = np.sort(matrix, axis=None)
    cut = len(ordered) // 4
    by_task = matrix.mean(0)
    return np.array([ordered[cut : len(ordered) - cut].mean(), by_task.mean(), np.median(by_task)])


def _intervals(matrix: np.ndarray, confidence: float, reps: int, seed: int) -> np.ndarray:
    """Bounds [2, 3] of the aggregates."""
    library: Any = require("rliable.library", extra="stats", purpose="a bootstrap confidence interval")
    with _seeded(seed):
        bootstrap = library.StratifiedBootstrap(matrix)
        return bootstrap.conf_int(_aggregates, reps=reps, size=confidence, method="percentile")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A seed for numpy's global generator, which rliable draws from, and back to its state before."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
