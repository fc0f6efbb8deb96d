"""``summary.json``: what a run achieved, and the table printed from it."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_pwm.data.files import replaced_file
from torchrl_pwm.envs.tasks import TaskSet, get_task_set
from torchrl_pwm.evaluation.scores import reference_scores

__all__ = ["format_table", "make_summary", "package_versions", "read_summary", "write_summary"]

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
_TOP = ("tasks", "score_mean", "seconds_total", "seed", "versions")
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
) -> dict[str, Any]:
    """The content of ``summary.json``.

    ``{"tasks": [{"task", "return_mean", "return_std", "success", "score", "behavior_return_mean", "episodes",
    "seconds_extraction"}], "score_mean", "seconds_total", "seed", "versions"}``; ``score_mean`` is the mean over the
    tasks that have a score.

    Args:
        rows: one mapping per task, see :meth:`EvaluationResult.summary_row`.
        seed: seed of the run.
        seconds_total: wall time of the run.
        versions: package versions. Default: :func:`package_versions`.

    Raises:
        ValueError: if a row lacks an entry, has one more, repeats a task or holds a number that is not finite.

    Examples:
        >>> row = dict(task="walker-run", return_mean=600.0, return_std=10.0, success=None, score=0.6,
        ...            behavior_return_mean=300.0, episodes=10, seconds_extraction=42.0)
        >>> make_summary([row], seed=0, seconds_total=60.0)["score_mean"]
        0.6
    """
    tasks = [_plain(dict(row)) for row in rows]
    scores = [row["score"] for row in tasks if row.get("score") is not None]
    summary = {
        "tasks": tasks,
        "score_mean": sum(scores) / len(scores) if scores else None,
        "seconds_total": float(seconds_total),
        "seed": int(seed),
        "versions": dict(package_versions() if versions is None else versions),
    }
    _check(summary, "the summary")
    return summary


def write_summary(
    path: str | os.PathLike[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    seed: int,
    seconds_total: float,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write ``summary.json``, whole or not at all; arguments and errors as in :func:`make_summary`.

    Args:
        path: the file, or a folder that gets a ``summary.json``.

    Returns:
        What was written.
    """
    summary = make_summary(rows, seed=seed, seconds_total=seconds_total, versions=versions)
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


def format_table(
    summary: Mapping[str, Any], *, task_set: str | TaskSet = "mt80", references: Sequence[str] = ("pwm", "tdmpc2")
) -> str:
    """The table of a summary as text for a terminal.

    Columns: task, return and its standard deviation over episodes, mean return of the data, their ratio, success
    rate, normalised score, and the published scores, which come from other data.

    Args:
        summary: of :func:`make_summary` or :func:`read_summary`.
        task_set: ``"mt30"`` or ``"mt80"``: whose published scores are shown.
        references: published methods to show.

    Examples:
        >>> row = dict(task="walker-run", return_mean=600.0, return_std=10.0, success=None, score=0.6,
        ...            behavior_return_mean=300.0, episodes=10, seconds_extraction=42.0)
        >>> print(format_table(make_summary([row], seed=0, seconds_total=60.0), references=("pwm",)))
        task               return  data mean  ratio  success  score   PWM*
        ------------------------------------------------------------------
        walker-run  600.0 +- 10.0      300.0   2.00        -  0.600  0.824
        ------------------------------------------------------------------
        mean                                                  0.600  0.824
        10 episodes per task, seed 0, 60 s in all.  * published 48M multi-task results (mt80), trained on other data.
    """
    titles = {"pwm": "PWM*", "tdmpc2": "TD-MPC2*"}
    known = {method: reference_scores(task_set, method) for method in references}  # type: ignore[arg-type]
    head = ["task", "return", "data mean", "ratio", "success", "score", *(titles[method] for method in known)]
    body = []
    for row in summary["tasks"]:
        data = row["behavior_return_mean"]
        # a ratio says nothing where the data earned nothing or lost
        ratio = row["return_mean"] / data if data is not None and data > 0 else None
        body.append(
            [
                row["task"],
                f"{row['return_mean']:.1f} +- {row['return_std']:.1f}",
                _cell(data, ".1f"),
                _cell(ratio, ".2f"),
                _cell(row["success"], ".0%"),
                _cell(row["score"], ".3f"),
                *(_cell(scores.get(row["task"]), ".3f") for scores in known.values()),
            ]
        )
    published = [[scores[row[0]] for row in body if row[0] in scores] for scores in known.values()]
    foot = ["mean", "", "", "", "", _cell(summary["score_mean"], ".3f")]
    foot += [_cell(sum(scores) / len(scores) if scores else None, ".3f") for scores in published]
    widths = [max(len(row[column]) for row in [head, *body, foot]) for column in range(len(head))]
    lines = [_line(row, widths) for row in [head, *body, foot]]
    rule = "-" * max(map(len, lines))
    episodes = sorted({row["episodes"] for row in summary["tasks"]})
    count = " or ".join(map(str, episodes)) or "no"
    note = f"{count} episodes per task, seed {summary['seed']}, {summary['seconds_total']:.0f} s in all."
    if known:
        name = get_task_set(task_set).name
        note += f"  * published 48M multi-task results ({name}), trained on other data."
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], note])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]).rstrip()


def _cell(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path / "summary.json" if path.is_dir() else path


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers of numpy or torch as Python's own, which JSON can write."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}


def _check(summary: Any, where: str) -> None:
    _check_keys(summary, _TOP, where)
    if not isinstance(summary["tasks"], list):
        raise ValueError(f"tasks of {where} must be a list of rows, found {type(summary['tasks']).__name__}")
    for number, row in enumerate(summary["tasks"]):
        _check_keys(row, tuple(_ROW), f"task row {number} of {where}")
        if not isinstance(row["task"], str):
            raise ValueError(f"task of row {number} of {where} must be a name, found {row['task']!r}")
        for key, optional in _ROW.items():
            if key != "task":
                _check_number(row[key], f"{key} of {row['task']} in {where}", optional)
    names = [row["task"] for row in summary["tasks"]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{where} must have one row per task, but repeats {repeated}")
    for key in ("score_mean", "seconds_total", "seed"):
        _check_number(summary[key], f"{key} of {where}", optional=key == "score_mean")
    if not isinstance(summary["versions"], dict):
        raise ValueError(f"versions of {where} must map package names to versions, found {summary['versions']!r}")


def _check_keys(value: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping with the entries {list(keys)}, found {type(value).__name__}")
    missing, extra = [key for key in keys if key not in value], [key for key in value if key not in keys]
    if missing or extra:
        raise ValueError(f"{where} must have the entries {list(keys)}; missing {missing}, unknown {extra}")


def _check_number(value: Any, where: str, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        expected = "a finite number or null" if optional else "a finite number"
        raise ValueError(f"{where} must be {expected}, found {value!r}; look for the step that produced it")
