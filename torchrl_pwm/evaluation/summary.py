"""Summary of a run, ``summary.json``: written, read and checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_pwm._utils.door import read_json
from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.versions import package_versions
from torchrl_pwm.evaluation.statistics import METHODS, SELECT, compare_methods, with_policy

__all__ = ["make_summary", "package_versions", "read_summary", "write_summary"]

# Numbers of a policy or a baseline, and whether each may be null: success where a task has none, score where an env is
# in no table, the spread of the data's returns and how many episodes they were where that is not known.
_OUTCOME = {"return_mean": False, "return_std": True, "success": True, "score": True, "episodes": True}
# Numbers of a row: the data's mean and the extraction time may be null where there was no data or no extraction.
_ROW = {**_OUTCOME, "return_std": False, "episodes": False, "behavior_return_mean": True, "seconds_extraction": True}
_ROW_MORE = ("seeds", "baselines", "published", "trust", *SELECT)
_TOP = ("tasks", "score_mean", "seconds_total", "seed", "versions")
_TOP_MORE = ("statistics", "notes", "phases", "comparison", "select", *SELECT)
_COMPARISON = ("task_set", "source", "remarks", "tasks", "methods")


def make_summary(
    rows: Iterable[Mapping[str, Any]],
    *,
    seed: int,
    seconds_total: float,
    versions: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    comparison: Mapping[str, Any] | None = None,
    select: str | None = None,
    phases: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The content of ``summary.json``.

    ``{"tasks": [{"task", "return_mean", "return_std", "success", "score", "behavior_return_mean", "episodes",
    "seconds_extraction"}], "score_mean", "seconds_total", "seed", "versions"}``; ``score_mean`` is the mean over the
    tasks that have a score.

    A row may have four more entries: ``seeds``, the policy of each seed by itself; ``baselines``, of ``"random"``,
    ``"cloning"`` and ``"data"``, in the same form; ``published``, the scores of ``"pwm"`` and ``"tdmpc2"``; and
    ``trust``, what the trust probe says of the policies, ``{"exploited", "line", "seeds"}``. With ``seeds`` there is a
    further entry ``statistics``: interquartile mean, mean and median of each method with its confidence interval, see
    :func:`~torchrl_pwm.evaluation.statistics.compare_methods`.

    Where a training has evaluated its policies, ``select`` says which counts, ``"last"`` or ``"best"``; rows, and
    behaviour cloning in them, have the outcomes of both as ``last`` and ``best``, and so has the summary:
    ``{"score_mean", "statistics"}``. The best was chosen on start states or seeds apart from those of the outcomes.

    Args:
        rows: one mapping per task, see :meth:`EvaluationResult.summary_row`.
        seed: seed of the run.
        seconds_total: wall time of the run.
        versions: package versions. Default: :func:`~torchrl_pwm.evaluation.package_versions`.
        notes: sentences that a reader of the numbers must know; an entry of the summary where there are any.
        comparison: the papers' numbers beside the run's, of
            :func:`~torchrl_pwm.evaluation.compare_with_published`; an entry where it is given.
        select: which policy counts; an entry where it is given.
        phases: seconds that each phase took, of all processes together; an entry where it is given.

    Raises:
        ValueError: if a row lacks an entry, has one more, repeats a task or holds a number that is not finite, or if
            one task has more seeds than another.

    Examples:
        >>> row = dict(task="walker-run", return_mean=600.0, return_std=10.0, success=None, score=0.6,
        ...            behavior_return_mean=300.0, episodes=10, seconds_extraction=42.0)
        >>> make_summary([row], seed=0, seconds_total=60.0)["score_mean"]
        0.6
    """
    tasks = [_plain(dict(row)) for row in rows]
    summary: dict[str, Any] = {
        "tasks": tasks,
        "score_mean": _score_mean(tasks),
        "seconds_total": float(seconds_total),
        "seed": int(seed),
        "versions": dict(package_versions() if versions is None else versions),
    }
    if select is not None:
        summary["select"] = select
    _check(summary, "the summary")
    if any("seeds" in row for row in tasks):
        summary["statistics"] = compare_methods(tasks)
    for which in SELECT:
        chosen = [row for row in (with_policy(row, which) for row in tasks) if row is not None]
        if chosen and len(chosen) == len(tasks):
            summary[which] = {"score_mean": _score_mean(chosen)}
            if "statistics" in summary:
                summary[which]["statistics"] = compare_methods(chosen)
    if phases:
        summary["phases"] = _plain(phases)
    if notes:
        summary["notes"] = list(notes)
    if comparison is not None:
        summary["comparison"] = _plain(comparison)
        _check_comparison(summary["comparison"], "the summary")
    return summary


def write_summary(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
    """Write ``summary.json``, whole or not at all; errors as in :func:`make_summary`.

    Args:
        path: the file, or a folder that gets a ``summary.json``.
        rows, options: arguments of :func:`make_summary`.

    Returns:
        What was written.
    """
    summary = make_summary(rows, **options)
    replace_file(_file(path), (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    return summary


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``summary.json`` and check it.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not JSON or not a summary.
    """
    file = _file(path)
    summary = read_json(file, what="summary", advice="write it again")
    try:
        _check(summary, str(file))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DamagedFileError(f"{file} is no summary, or damaged: {error}") from error
    return summary


def _score_mean(rows: Sequence[Mapping[str, Any]]) -> float | None:
    scores = [row["score"] for row in rows if row.get("score") is not None]
    return sum(scores) / len(scores) if scores else None


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path / "summary.json" if path.is_dir() else path


def _plain(value: Any) -> Any:
    """Numbers of numpy or torch as Python's own, which JSON can write."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.item() if hasattr(value, "item") else value


def _check(summary: Any, where: str) -> None:
    _check_keys(summary, _TOP, _TOP_MORE, where)
    if not isinstance(summary["tasks"], list):
        raise ValueError(f"tasks of {where} must be a list of rows, found {type(summary['tasks']).__name__}")
    for number, row in enumerate(summary["tasks"]):
        _check_keys(row, ("task", *_ROW), _ROW_MORE, f"task row {number} of {where}")
        if not isinstance(row["task"], str):
            raise ValueError(f"task of row {number} of {where} must be a name, found {row['task']!r}")
        _check_numbers(row, _ROW, f"{row['task']} in {where}")
        _check_more(row, f"{row['task']} in {where}")
    names = [row["task"] for row in summary["tasks"]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{where} must have one row per task, but repeats {repeated}")
    _check_numbers(summary, {"score_mean": True, "seconds_total": False, "seed": False}, where)
    if not isinstance(summary.get("statistics", {}), dict):
        raise ValueError(f"statistics of {where} must be a mapping by method, found {summary['statistics']!r}")
    if summary.get("select", "last") not in SELECT:
        raise ValueError(f"select of {where} must be one of {', '.join(SELECT)}, found {summary['select']!r}")
    notes = summary.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError(f"notes of {where} must be a list of sentences, found {notes!r}")
    if "comparison" in summary:
        _check_comparison(summary["comparison"], where)
    if not isinstance(summary["versions"], dict):
        raise ValueError(f"versions of {where} must map package names to versions, found {summary['versions']!r}")


def _check_comparison(comparison: Any, where: str) -> None:
    _check_keys(comparison, _COMPARISON, (), f"comparison of {where}")
    for task, methods in comparison["tasks"].items():
        for method, entry in methods.items():
            name = f"{method} of {task} in the comparison of {where}"
            _check_keys(entry, ("score", "difference"), ("std",), name)
            _check_numbers(entry, dict.fromkeys(entry, False), name)


def _check_more(row: dict[str, Any], where: str) -> None:
    """The entries that a row may have."""
    _check_outcomes(row, where)
    for key in ("baselines", "published"):
        if not isinstance(row.get(key, {}), dict) or not set(row.get(key, {})) <= set(METHODS):
            raise ValueError(f"{key} of {where} must be a mapping of {', '.join(METHODS)}, found {row[key]!r}")
    for name, entry in row.get("baselines", {}).items():
        _check_keys(entry, tuple(_OUTCOME), ("seeds", *SELECT), f"{name} of {where}")
        _check_numbers(entry, _OUTCOME, f"{name} of {where}")
        _check_outcomes(entry, f"{name} of {where}")
    _check_numbers(row.get("published", {}), dict.fromkeys(row.get("published", {}), False), where)


def _check_outcomes(entry: dict[str, Any], where: str) -> None:
    """The outcomes of each seed, and those of the last and the best policies."""
    for which in SELECT:
        if which in entry:
            name = f"the {which} policy of {where}"
            _check_keys(entry[which], tuple(_OUTCOME), ("seeds",), name)
            _check_numbers(entry[which], _OUTCOME, name)
            _check_outcomes(entry[which], name)
    if not isinstance(entry.get("seeds", []), list):
        raise ValueError(f"seeds of {where} must be a list, found {type(entry['seeds']).__name__}")
    for run in entry.get("seeds", []):
        _check_keys(run, ("seed", *_OUTCOME), (), f"a seed of {where}")
        _check_numbers(run, {"seed": False, **_OUTCOME}, f"seed {run['seed']} of {where}")


def _check_keys(value: Any, keys: tuple[str, ...], more: tuple[str, ...], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping with the entries {list(keys)}, found {type(value).__name__}")
    missing, extra = [key for key in keys if key not in value], [key for key in value if key not in (*keys, *more)]
    if missing or extra:
        raise ValueError(f"{where} must have the entries {list(keys)}; missing {missing}, unknown {extra}")


def _check_numbers(entry: Mapping[str, Any], keys: Mapping[str, bool], where: str) -> None:
    for key, optional in keys.items():
        value = entry[key]
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            expected = f"a finite number{' or null' * optional}, found {value!r}"
            raise ValueError(f"{key} of {where} must be {expected}; look for the step that produced it")
