"""``summary.json``: what a run achieved."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_pwm._utils.files import replaced_file
from torchrl_pwm.evaluation.comparison import METHODS, compare_methods

__all__ = ["make_summary", "package_versions", "read_summary", "write_summary"]

# Which entries of a row may be null: success where a task has none, score where an env is in no table, the data's
# mean and the extraction time where there was no data or no extraction.
_ROW = {
    "task": False,
    "return_mean": False,
    "return_std": False,
    "success": True,
    "score": True,
    "behavior_return_mean": True,
    "episodes": False,
    "seconds_extraction": True,
}
_ROW_MORE = ("seeds", "baselines", "published")
# A policy or a baseline: where the spread of the data's returns is not known, and how many episodes there were, null.
_OUTCOME = {"return_mean": False, "return_std": True, "success": True, "score": True, "episodes": True}
_TOP = ("tasks", "score_mean", "seconds_total", "seed", "versions")
_TOP_MORE = ("statistics", "notes", "comparison")
_COMPARISON = ("task_set", "source", "remarks", "tasks", "methods")
_PACKAGES = {
    "torch": "torch",
    "torchrl": "torchrl",
    "tensordict": "tensordict",
    "torchrl_pwm": "torchrl-pwm",
    "numpy": "numpy",
    "mujoco": "mujoco",
    "dm_control": "dm_control",
    "metaworld": "metaworld",
}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on; those not installed are left out.

    Examples:
        >>> {"python", "torch", "torchrl"} <= set(package_versions())
        True
    """
    versions = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        try:
            versions[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def make_summary(
    rows: Iterable[Mapping[str, Any]],
    *,
    seed: int,
    seconds_total: float,
    versions: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    comparison: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``summary.json``.

    ``{"tasks": [{"task", "return_mean", "return_std", "success", "score", "behavior_return_mean", "episodes",
    "seconds_extraction"}], "score_mean", "seconds_total", "seed", "versions"}``; ``score_mean`` is the mean over the
    tasks that have a score.

    A row may have three more entries: ``seeds``, the policy of each seed by itself; ``baselines``, of ``"random"``,
    ``"cloning"`` and ``"data"``, in the same form; and ``published``, the scores of ``"pwm"`` and ``"tdmpc2"``. With
    ``seeds`` there is a further entry ``statistics``: interquartile mean, mean and median of each method with its
    confidence interval, see :func:`~torchrl_pwm.evaluation.comparison.compare_methods`.

    Args:
        rows: one mapping per task, see :meth:`EvaluationResult.summary_row`.
        seed: seed of the run.
        seconds_total: wall time of the run.
        versions: package versions. Default: :func:`package_versions`.
        notes: sentences that a reader of the numbers must know; an entry of the summary where there are any.
        comparison: the papers' numbers beside the run's, of
            :func:`~torchrl_pwm.evaluation.compare_with_published`; an entry where it is given.

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
    scores = [row["score"] for row in tasks if row.get("score") is not None]
    summary: dict[str, Any] = {
        "tasks": tasks,
        "score_mean": sum(scores) / len(scores) if scores else None,
        "seconds_total": float(seconds_total),
        "seed": int(seed),
        "versions": dict(package_versions() if versions is None else versions),
    }
    _check(summary, "the summary")
    if any("seeds" in row for row in tasks):
        summary["statistics"] = compare_methods(tasks)
    if notes:
        summary["notes"] = list(notes)
    if comparison is not None:
        summary["comparison"] = _plain(comparison)
        _check_comparison(summary["comparison"], "the summary")
    return summary


def write_summary(
    path: str | os.PathLike[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    seed: int,
    seconds_total: float,
    versions: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    comparison: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``summary.json``, whole or not at all; arguments and errors as in :func:`make_summary`.

    Args:
        path: the file, or a folder that gets a ``summary.json``.

    Returns:
        What was written.
    """
    summary = make_summary(
        rows, seed=seed, seconds_total=seconds_total, versions=versions, notes=notes, comparison=comparison
    )
    target = _file(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(target) as temporary:
        temporary.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
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
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a summary: it is no valid JSON ({error}); write it again") from error
    _check(summary, str(file))
    return summary


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
        _check_keys(row, tuple(_ROW), _ROW_MORE, f"task row {number} of {where}")
        if not isinstance(row["task"], str):
            raise ValueError(f"task of row {number} of {where} must be a name, found {row['task']!r}")
        _check_numbers(row, {key: null for key, null in _ROW.items() if key != "task"}, f"{row['task']} in {where}")
        _check_more(row, f"{row['task']} in {where}")
    names = [row["task"] for row in summary["tasks"]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{where} must have one row per task, but repeats {repeated}")
    _check_numbers(summary, {"score_mean": True, "seconds_total": False, "seed": False}, where)
    if not isinstance(summary.get("statistics", {}), dict):
        raise ValueError(f"statistics of {where} must be a mapping by method, found {summary['statistics']!r}")
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
    _check_seeds(row, where)
    for key in ("baselines", "published"):
        if not isinstance(row.get(key, {}), dict) or not set(row.get(key, {})) <= set(METHODS):
            raise ValueError(f"{key} of {where} must be a mapping of {', '.join(METHODS)}, found {row[key]!r}")
    for name, entry in row.get("baselines", {}).items():
        _check_keys(entry, tuple(_OUTCOME), ("seeds",), f"{name} of {where}")
        _check_numbers(entry, _OUTCOME, f"{name} of {where}")
        _check_seeds(entry, f"{name} of {where}")
    _check_numbers(row.get("published", {}), dict.fromkeys(row.get("published", {}), False), where)


def _check_seeds(entry: dict[str, Any], where: str) -> None:
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
        _check_number(entry[key], f"{key} of {where}", optional)


def _check_number(value: Any, where: str, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        expected = "a finite number or null" if optional else "a finite number"
        raise ValueError(f"{where} must be {expected}, found {value!r}; look for the step that produced it")
