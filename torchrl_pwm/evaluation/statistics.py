"""Aggregates and performance profiles of scores over tasks and seeds, with bootstrap confidence intervals."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_pwm._utils.extras import require

__all__ = [
    "METHODS",
    "SELECT",
    "Aggregate",
    "PerformanceProfile",
    "ScoreStatistics",
    "aggregate_scores",
    "compare_methods",
    "headline",
    "method_scores",
    "performance_profile",
    "with_policy",
]

# In the order of tables and charts. The first is the run itself, the published ones were trained on other data.
METHODS: Mapping[str, str] = {
    "policy": "PWM, this run",
    "cloning": "behaviour cloning",
    "data": "the data's behaviour",
    "random": "random actions",
    "pwm": "published PWM",
    "tdmpc2": "published TD-MPC2",
}
#: Which policy of a training counts: the one at its end, or the one that did best in an evaluation along the way.
SELECT = ("last", "best")


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """A number and its confidence interval; ``low`` and ``high`` are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class ScoreStatistics:
    """Aggregates of scores, by :func:`aggregate_scores`.

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
        >>> result = aggregate_scores([[0.0, 0.5, 0.6, 1.0]])
        >>> result.iqm, result.mean.value, result.tasks, result.seeds
        (Aggregate(value=0.55, low=None, high=None), 0.525, 4, 1)
    """
    matrix = score_matrix(scores, confidence, reps)
    values = _aggregates(matrix)
    lows: Sequence[float | None] = [None] * len(values)
    highs: Sequence[float | None] = [None] * len(values)
    if reps and len(matrix) > 1:
        lows, highs = _intervals(matrix, confidence, reps, seed).tolist()
    iqm, mean, median = (Aggregate(*numbers) for numbers in zip(values.tolist(), lows, highs))
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


def possible_reps(reps: int = 2000) -> int:
    """Bootstrap replications where rliable is installed, else none."""
    return reps if importlib.util.find_spec("rliable") else 0


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


@dataclasses.dataclass(frozen=True, eq=False)
class PerformanceProfile:
    """Performance profile of scores, by :func:`performance_profile`.

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
        reps: bootstrap replications; 0 leaves the band out, and then no further package is needed.
        seed: seed of the bootstrap; numpy's global generator is left as it was found.

    Raises:
        ImportError: if rliable, which computes the bands, is not installed.
        ValueError: if ``scores`` are not a matrix of finite numbers, ``thresholds`` are not finite and ascending, or
            ``confidence`` or ``reps`` is out of range.

    Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021,
    section 4.2 (run-score distributions), and their package rliable; after Dolan and Moré, Math. Program. 91, 2002.

    Examples:
        >>> profile = performance_profile([[0.1, 0.9], [0.5, 1.0]], [0.0, 0.5, 0.95])
        >>> profile.values.tolist(), profile.low.tolist(), profile.high.tolist()
        ([1.0, 0.5, 0.25], [1.0, 0.5, 0.0], [1.0, 0.5, 0.5])
    """
    matrix = score_matrix(scores, confidence, reps)
    taus = np.linspace(0.0, 1.0, 101) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if taus.ndim != 1 or taus.size == 0 or not np.isfinite(taus).all() or (np.diff(taus) <= 0).any():
        raise ValueError(f"thresholds must be finite, ascending numbers of shape [K], found {taus.tolist()}")
    seeds, tasks = matrix.shape
    values, low, high = _share_above(matrix, taus), None, None
    if reps and seeds > 1:
        library: Any = require("rliable.library", extra="stats", purpose="a bootstrap confidence band")
        options = {"custom_profile_func": _share_above, "reps": reps, "confidence_interval_size": confidence}
        with _seeded(seed):
            _, bands = library.create_performance_profile({"scores": matrix}, taus, **options)
        low, high = bands["scores"]
    return PerformanceProfile(taus, values, low, high, seeds, tasks, confidence)


def _share_above(matrix: np.ndarray, taus: np.ndarray) -> np.ndarray:
    """Share of the runs [seeds, tasks] above each threshold [K]."""
    return (matrix[..., None] > taus).mean((0, 1))


def method_scores(row: Mapping[str, Any], method: str) -> list[float]:
    """Normalised scores of a method in one task, one for each of its seeds; empty where it has none.

    Args:
        row: of a summary.
        method: a key of :data:`METHODS`.
    """
    entry = row if method == "policy" else row.get("baselines", {}).get(method)
    if method in ("pwm", "tdmpc2"):
        entry = {"score": row.get("published", {}).get(method)}
    if entry is None or entry["score"] is None:
        return []
    return [run["score"] for run in entry["seeds"]] if entry.get("seeds") else [entry["score"]]


def with_policy(row: Mapping[str, Any], which: str) -> dict[str, Any] | None:
    """A row with the numbers of the last or the best policy, of behaviour cloning too, in place of those that count.

    Args:
        row: of a summary.
        which: one of :data:`SELECT`.

    Returns:
        None where the policy's were not recorded; where behaviour cloning's were not, it is left out.
    """
    if which not in row:
        return None
    kept = {key: value for key, value in row.items() if key not in ("seeds", *SELECT)}
    baselines = dict(row.get("baselines", {}))
    if cloned := baselines.pop("cloning", {}).get(which):
        baselines["cloning"] = cloned
    return {**kept, **row[which], "baselines": baselines}


def compare_methods(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Interquartile mean, mean and median of each method over the tasks in which it has a score.

    Intervals need several seeds per task and the package rliable; without one of them they are left out.

    Args:
        rows: of a summary.
        seed: seed of the bootstrap.

    Returns:
        Per method that has a score at all, :class:`~torchrl_pwm.evaluation.statistics.ScoreStatistics` as plain
        numbers; ``tasks`` says over how many.

    Raises:
        ValueError: if a method has more seeds in one task than in another.
    """
    results = {}
    for method, label in METHODS.items():
        scores = {row["task"]: values for row in rows if (values := method_scores(row, method))}
        if not scores:
            continue
        counts = {task: len(values) for task, values in scores.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{label} must have as many seeds in every task, found {counts}; add the missing runs")
        matrix = np.array(list(scores.values())).T
        results[method] = aggregate_scores(matrix, reps=possible_reps(), seed=seed).to_dict()
    return results


def headline(statistics: Mapping[str, Any]) -> tuple[str, str]:
    """Which aggregate to show first: its key and its name.

    The middle half of a few scores is hardly more than one of them: below four tasks it is the mean.

    Args:
        statistics: of one method.
    """
    return ("iqm", "interquartile mean") if statistics["tasks"] >= 4 else ("mean", "mean")
