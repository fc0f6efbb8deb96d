"""A run's policies beside their baselines and the published scores, each aggregated in the same way."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchrl_pwm.evaluation.statistics import aggregate_scores

__all__ = ["METHODS", "compare_methods", "headline", "method_scores"]

# In the order of tables and charts. The first is the run itself, the published ones were trained on other data.
METHODS: Mapping[str, str] = {
    "policy": "PWM, this run",
    "cloning": "behaviour cloning",
    "data": "the data's behaviour",
    "random": "random actions",
    "pwm": "published PWM",
    "tdmpc2": "published TD-MPC2",
}


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
    found = {}
    for method, label in METHODS.items():
        scores = {row["task"]: values for row in rows if (values := method_scores(row, method))}
        if not scores:
            continue
        counts = {task: len(values) for task, values in scores.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{label} must have as many seeds in every task, found {counts}; add the missing runs")
        reps = 2000 if importlib.util.find_spec("rliable") else 0
        found[method] = aggregate_scores(np.array(list(scores.values())).T, reps=reps, seed=seed).to_dict()
    return found


def headline(statistics: Mapping[str, Any]) -> tuple[str, str]:
    """Which aggregate to show first: its key and its name.

    The middle half of a few scores is hardly more than one of them: below four tasks it is the mean.

    Args:
        statistics: of one method.
    """
    return ("iqm", "interquartile mean") if statistics["tasks"] >= 4 else ("mean", "mean")
