"""Aggregates of a group's rows with intervals, comparisons at equal budgets, and where PWM loses."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.learning.criteria import criteria, differences, slopes
from benchmarks.learning.earlier import curve_record
from benchmarks.learning.groups import METHODS, Group
from benchmarks.learning.jobs import commit
from benchmarks.learning.rows import COLUMNS, Curve, Records
from benchmarks.machine import machine
from torchrl_pwm.evaluation import aggregate_scores, package_versions
from torchrl_pwm.evaluation.statistics import SELECT

CONFIDENCE = 0.95
_DRAWS = 10_000
_DIGITS = {"return_mean": 2, "return_std": 2, "score": 4, "score_data": 4, "seconds_model": 3, "seconds_policy": 3}
_DIGITS |= {key: 2 if key.startswith("return") else 4 for key in COLUMNS if key.endswith(SELECT)}


def summarize(
    group: Group,
    records: Records,
    decisions: Mapping[str, Mapping[str, float]],
    *,
    minutes: float | None = None,
) -> dict[str, Any]:
    """The content of ``suite_<group>.json``.

    Args:
        group: of the rows.
        records: the rows, to which the milliseconds of a decision are added.
        decisions: of :func:`~benchmarks.learning.decisions.measure_decisions`.
        minutes: where curves are compared at equal wall-clock time; default: the end of the shortest training.
    """
    decisions = {**records.decisions, **decisions}
    for row in records.rows:
        taken = decisions.get(row["method"], {})
        row["ms_per_decision"], row["ms_per_decision_of_8"] = taken.get("1"), taken.get("8")
    learned = {method: matrix for method in records.methods() if (matrix := records.matrix(method)) is not None}
    return {
        "group": group.name,
        "title": group.title,
        "score": group.score,
        "made": datetime.date.today().isoformat(),
        "commit": records.commit or commit(),
        "machine": records.machine or machine(torch.device("cpu")),
        "versions": records.versions or package_versions(),
        "confidence": CONFIDENCE,
        "budgets": records.budgets,
        "minutes_of": "all tasks together" if group.offline else "mean of the tasks",
        "methods": {method: _method(group, records, method, learned.get(method)) for method in records.methods()},
        "tasks": {task: _task(records, task) for task in records.tasks()},
        "references": records.references,
        "decisions": {method: dict(values) for method, values in decisions.items()},
        "equal_minutes": list(equal(records.curves, "minutes", minutes)),
        # Updates of an offline group are equal by design.
        "equal_steps": [] if group.offline else list(equal(records.curves, "amount")),
        "losses": losses(records, learned),
        "differences": differences(records, CONFIDENCE) if group.offline else [],
        "criteria": criteria(records, CONFIDENCE) if group.offline else [],
        "slopes": slopes(records.curves) if group.offline else [],
        "trust": _by_task(records.trust),
        "curves": [curve_record(part) for part in records.parts] if group.offline else [],
        "commands": records.commands,
        "rows": [{key: _rounded(key, row[key]) for key in COLUMNS} for row in records.rows],
    }


def _method(group: Group, records: Records, method: str, matrix: np.ndarray | None) -> dict[str, Any]:
    """Aggregates of a method's scores, and what its training took: offline for all tasks, online for each.

    Both are of the seeds that have every task, and None where there is no such seed; online, where each task has its
    own training, that is of all rows. ``select`` says of which policy the aggregates are, ``last`` and ``best`` have
    those of both, as far as they were recorded.
    """
    rows = [row for row in records.rows if row["method"] == method]
    aggregates = _aggregates(matrix, len({row["task"] for row in rows}))
    aggregates["select"] = records.select(method)
    for which in SELECT:
        other = records.matrix(method, f"score_{which}")
        aggregates[which] = None if other is None else _aggregates(other)
    totals: dict[str, float | None] = {"minutes_model": None, "minutes_policies": None}
    if group.offline:
        whole = records.by_seed(method)
        rows = [row for row in rows if row["seed"] in whole]
    if rows and all(row["seconds_policy"] is not None for row in rows):
        runs = len({row["seed"] for row in rows}) if group.offline else len(rows)
        models = {(row["seed"], row["seconds_model"]) for row in rows}
        totals["minutes_model"] = sum(seconds for _, seconds in models) / runs / 60
        totals["minutes_policies"] = sum(row["seconds_policy"] for row in rows) / runs / 60
    return {"label": METHODS[method][0], **aggregates, **totals}


def _by_task(trust: Mapping[tuple[str, int], str]) -> dict[str, dict[str, str]]:
    """What the trust probe says, by task and seed."""
    tasks = dict.fromkeys(task for task, _ in trust)
    return {task: {str(seed): line for (own, seed), line in sorted(trust.items()) if own == task} for task in tasks}


def _aggregates(matrix: np.ndarray | None, tasks: int = 0) -> dict[str, Any]:
    if matrix is not None:
        return aggregate_scores(matrix, confidence=CONFIDENCE).to_dict()
    none: dict[str, Any] = {key: {"value": None, "low": None, "high": None} for key in ("iqm", "mean", "median")}
    return {**none, "seeds": 0, "tasks": tasks}


def _task(records: Records, task: str) -> dict[str, Any]:
    """By method: the mean score of its seeds, the interval of that mean, and each seed's.

    ``last`` and ``best`` have the same of these policies, as far as they were recorded.
    """
    by_method: dict[str, Any] = {}
    for method in records.methods():
        if scores := records.values(method, task):
            by_method[method] = _scores(scores)
            for which in SELECT:
                other = records.values(method, task, f"score_{which}")
                by_method[method][which] = _scores(other) if other else None
    return by_method


def _scores(each: list[float]) -> dict[str, Any]:
    low, high = interval(each) if len(each) > 1 else (None, None)
    return {"mean": float(np.mean(each)), "low": low, "high": high, "each": each}


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of the mean over seeds (percentile method)."""
    draws = np.random.default_rng(0).choice(np.asarray(scores), (_DRAWS, len(scores)))
    return _quantiles(draws.mean(1))


def _quantiles(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def equal(curves: Sequence[Curve], axis: str, limit: float | None = None) -> Iterator[dict[str, Any]]:
    """Scores along the training where all methods have had as much of ``axis``, ``minutes`` or ``amount``.

    Args:
        curves: of all methods, tasks and seeds.
        axis: what is to be equal.
        limit: how much of it; default: the end of the shortest curve.

    Yields:
        For each task, or for the mean of all (``task`` is None): the limit, and by method each seed's last score until
        then; None where there was no policy yet.
    """
    for task in dict.fromkeys(curve.task for curve in curves):
        here = [curve for curve in curves if curve.task == task]
        least = min(float(getattr(curve, axis)[-1]) for curve in here) if limit is None else limit
        scores: dict[str, list[float | None]] = {}
        for curve in sorted(here, key=lambda curve: (list(METHODS).index(curve.method), curve.seed)):
            reached = curve.score[getattr(curve, axis) <= least * (1 + 1e-9)]
            scores.setdefault(curve.method, []).append(float(reached[-1]) if len(reached) else None)
        yield {"task": task, axis: least, "methods": scores}


def losses(records: Records, matrices: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Where another method's mean score is above PWM's by a hundredth or more: over all tasks first, then by task.

    Each entry has both means, their difference, and its bootstrap interval over seeds, which are drawn anew for both
    methods independently; None where one of them has a single seed.
    """
    own = matrices.get("pwm")
    entries = [
        _difference(None, method, own, matrix)
        for method, matrix in matrices.items()
        if own is not None and method != "pwm"
    ]
    for task in records.tasks():
        pwm = records.values("pwm", task)
        for method in records.methods():
            other = records.values(method, task)
            if method != "pwm" and pwm and other:
                entries.append(_difference(task, method, np.array(pwm)[:, None], np.array(other)[:, None]))
    return [entry for entry in entries if entry["difference"] >= 0.01]


def _difference(task: str | None, method: str, own: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """How far the mean of ``other`` [seeds, tasks] is above that of ``own``."""
    low = high = None
    if min(len(own), len(other)) > 1:
        draws, means = np.random.default_rng(0), []
        for matrix in (other, own):
            # seeds are drawn within each task, as rliable does
            seeds = draws.integers(len(matrix), size=(_DRAWS, *matrix.shape))
            means.append(matrix[seeds, np.arange(matrix.shape[1])].mean((1, 2)))
        low, high = _quantiles(means[0] - means[1])
    mean, above = float(own.mean()), float(other.mean())
    entry = {"task": task, "method": method, "pwm": mean, "other": above, "difference": above - mean}
    return {**entry, "low": low, "high": high}


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One line for each row; the columns are the keys of the longest one."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(max(rows, key=len)))
        writer.writeheader()
        writer.writerows(rows)


def axes_of_tasks(titles: Sequence[str], xlabel: str) -> tuple[Figure, list[Axes]]:
    """A figure with axes for each task, side by side."""
    figure = Figure(figsize=(4.2 * len(titles), 3.4), layout="constrained")
    row = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axes, title in zip(row, titles):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(xlabel)
        axes.grid(alpha=0.3)
    return figure, row


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a line break at its end."""
    first, *others = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([first, "|---" * len(head) + "|", *others])


def _rounded(key: str, value: Any) -> Any:
    return round(value, _DIGITS[key]) if key in _DIGITS and value is not None else value
