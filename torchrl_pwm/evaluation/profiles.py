"""Performance profiles: the share of runs above each score, with bootstrap confidence bands."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_pwm.evaluation.statistics import score_matrix

__all__ = ["PerformanceProfile", "performance_profile"]


@dataclasses.dataclass(frozen=True, eq=False)
class PerformanceProfile:
    """What :func:`performance_profile` found.

    Args:
        thresholds: scores tau [K], ascending.
        values: share of runs above each threshold, float64 [K] in [0, 1].
        low: lower bound of the band [K], or None where there is none.
        high: upper bound [K], likewise.
        seeds: number of seeds per task.
        tasks: number of tasks.
        confidence: level of the band.
    """

    thresholds: np.ndarray
    values: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    seeds: int
    tasks: int
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for a file."""
        entries = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: entry.tolist() if isinstance(entry, np.ndarray) else entry for name, entry in entries}


def performance_profile(
    scores: npt.ArrayLike,
    thresholds: npt.ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    reps: int = 2000,
    seed: int = 0,
) -> PerformanceProfile:
    """Share of runs whose score is above tau, F(tau) = mean over seeds n and tasks m of [x_nm > tau], for each tau.

    A profile shows what an aggregate hides: how many runs fail, and how many are nearly perfect. One method is better
    than another throughout where its curve lies above, and the area under a curve from 0 to 1 is the mean of scores
    in [0, 1]. Bands come from the stratified bootstrap (percentile method, pointwise): seeds are drawn anew within
    each task. A single seed per task has no band.

    Args:
        scores: [seeds, tasks], normalised.
        thresholds: tau [K], ascending. Default: 101 of them from 0 to 1.
        confidence: level of the band.
        reps: bootstrap replications; 0 leaves the band out.
        seed: seed of the bootstrap, which has a generator of its own.

    Raises:
        ValueError: if ``scores`` are not a matrix of finite numbers, ``thresholds`` are not finite and ascending, or
            ``confidence`` or ``reps`` is out of range.

    Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021,
    section 4.2 (run-score distributions); after Dolan and Moré, Math. Program. 91, 2002.

    Examples:
        >>> found = performance_profile([[0.1, 0.9], [0.5, 1.0]], [0.0, 0.5, 0.95])
        >>> found.values.tolist(), found.low.tolist(), found.high.tolist()
        ([1.0, 0.5, 0.25], [1.0, 0.5, 0.0], [1.0, 0.5, 0.5])
    """
    matrix = score_matrix(scores, confidence, reps)
    taus = np.linspace(0.0, 1.0, 101) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if taus.ndim != 1 or taus.size == 0 or not np.isfinite(taus).all() or (np.diff(taus) <= 0).any():
        raise ValueError(f"thresholds must be finite, ascending numbers of shape [K], found {taus.tolist()}")
    seeds, tasks = matrix.shape
    above = (matrix[:, :, None] > taus).reshape(seeds * tasks, -1).astype(np.float64)
    low = high = None
    if reps and seeds > 1:
        # how often each seed of each task is drawn
        draws = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=(reps, tasks))
        shares = draws.transpose(0, 2, 1).reshape(reps, -1) @ above / above.shape[0]
        low, high = np.quantile(shares, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return PerformanceProfile(taus, above.mean(0), low, high, seeds, tasks, confidence)
