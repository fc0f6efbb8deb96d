"""Summary of a run: ``summary.json``, and its table as text for a terminal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.versions import package_versions
from torchrl_pwm.envs.tasks import TaskSet, get_task_set
from torchrl_pwm.evaluation.scores import reference_scores
from torchrl_pwm.evaluation.statistics import METHODS, aggregate_scores, compare_methods, headline, method_scores

__all__ = ["format_interval", "format_table", "make_summary", "package_versions", "read_summary", "write_summary"]

# Numbers of a policy or a baseline, and whether each may be null: success where a task has none, score where an env is
# in no table, the spread of the data's returns and how many episodes they were where that is not known.
_OUTCOME = {"return_mean": False, "return_std": True, "success": True, "score": True, "episodes": True}
# Numbers of a row: the data's mean and the extraction time may be null where there was no data or no extraction.
_ROW = {**_OUTCOME, "return_std": False, "episodes": False, "behavior_return_mean": True, "seconds_extraction": True}
_ROW_MORE = ("seeds", "baselines", "published")
_TOP = ("tasks", "score_mean", "seconds_total", "seed", "versions")
_TOP_MORE = ("statistics", "notes", "comparison")
_COMPARISON = ("task_set", "source", "remarks", "tasks", "methods")
_TITLES = {"cloning": "BC", "data": "data", "random": "random"}
_TITLES |= {"pwm": "PWM*", "tdmpc2": "TD-MPC2*", "pwm_horizon3": "PWM-H3*"}


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
    confidence interval, see :func:`~torchrl_pwm.evaluation.statistics.compare_methods`.

    Args:
        rows: one mapping per task, see :meth:`EvaluationResult.summary_row`.
        seed: seed of the run.
        seconds_total: wall time of the run.
        versions: package versions. Default: :func:`~torchrl_pwm.evaluation.package_versions`.
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
        value = entry[key]
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            expected = f"a finite number{' or null' * optional}, found {value!r}"
            raise ValueError(f"{key} of {where} must be {expected}; look for the step that produced it")


def format_table(
    summary: Mapping[str, Any], *, task_set: str | TaskSet = "mt80", references: Sequence[str] = ("pwm", "tdmpc2")
) -> str:
    """The table of a summary as text for a terminal.

    Columns: task, return and its standard deviation over episodes, mean return of the data, their ratio, success
    rate, normalised score, and the published scores, which come from other data. A summary that has them also shows
    the lowest and highest score of a seed, and the scores of the baselines; then the interquartile mean follows the
    mean, with its confidence interval. One that was compared with the published results shows, in place of
    ``references``, every published method and after each the difference, run minus published.

    Args:
        summary: of :func:`make_summary` or :func:`read_summary`.
        task_set: ``"mt30"`` or ``"mt80"``: whose published scores are shown.
        references: published methods to show.

    Examples:
        >>> from torchrl_pwm.evaluation import make_summary
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
    rows = summary["tasks"]
    comparison = summary.get("comparison")
    columns = _published_columns(rows, comparison, task_set, references)
    shown = [method for method in ("cloning", "data", "random") if any(method_scores(row, method) for row in rows)]
    spread = any(len(method_scores(row, "policy")) > 1 for row in rows)
    scores = [[_mean(method_scores(row, method)) for method in shown] for row in rows]
    scores = [[*line, *(column[number] for column in columns.values())] for number, line in enumerate(scores)]
    head = ["task", "return", "data mean", "ratio", "success", "score", *(["by seed"] if spread else [])]
    head += [*(_TITLES[method] for method in shown), *(title.partition(" ")[0] for title in columns)]
    specs = [".3f"] * len(shown) + ["+.3f" if title.startswith("diff") else ".3f" for title in columns]
    body = []
    for row, others in zip(rows, scores):
        data = row["behavior_return_mean"]
        # a ratio says nothing where the data earned nothing or lost
        ratio = row["return_mean"] / data if data is not None and data > 0 else None
        seeds = method_scores(row, "policy")
        body.append(
            [
                row["task"],
                f"{row['return_mean']:.1f} +- {row['return_std']:.1f}",
                _cell(data, ".1f"),
                _cell(ratio, ".2f"),
                _cell(row["success"], ".0%"),
                _cell(row["score"], ".3f"),
                *([f"{min(seeds):.2f}-{max(seeds):.2f}" if seeds else "-"] if spread else []),
                *(_cell(score, spec) for score, spec in zip(others, specs)),
            ]
        )
    numbers = [[score for score in column if score is not None] for column in zip(*scores)] if scores else []
    numbers += [[]] * (len(specs) - len(numbers))
    gap = [""] * spread
    foot = [["mean", "", "", "", "", _cell(summary["score_mean"], ".3f"), *gap]]
    foot[0] += [_cell(_mean(column), spec) for column, spec in zip(numbers, specs)]
    statistics = summary.get("statistics", {})
    if "policy" in statistics:
        # of differences it would be that of other tasks than the scores'
        middle = [
            aggregate_scores([column], reps=0).iqm.value if column and spec == ".3f" else None
            for column, spec in zip(numbers, specs)
        ]
        for number, method in enumerate(shown):
            middle[number] = statistics[method]["iqm"]["value"]
        own = statistics["policy"]["iqm"]["value"]
        foot.append(["IQM", "", "", "", "", _cell(own, ".3f"), *gap, *(_cell(score, ".3f") for score in middle)])
    widths = [max(len(row[column]) for row in [head, *body, *foot]) for column in range(len(head))]
    lines = [_line(row, widths) for row in [head, *body, *foot]]
    rule = "-" * max(map(len, lines))
    return "\n".join(
        [lines[0], rule, *lines[1 : -len(foot)], rule, *lines[-len(foot) :], *_notes(summary, bool(columns), task_set)]
    )


def format_interval(statistics: Mapping[str, Any], key: str = "iqm") -> str:
    """An aggregate with its confidence interval, such as ``"0.512 [0.430, 0.571]"``."""
    aggregate = statistics[key]
    if aggregate["low"] is None:
        return f"{aggregate['value']:.3f}"
    return f"{aggregate['value']:.3f} [{aggregate['low']:.3f}, {aggregate['high']:.3f}]"


def _published_columns(
    rows: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any] | None,
    task_set: str | TaskSet,
    references: Sequence[str],
) -> dict[str, list[float | None]]:
    """By title, a number for each row; what follows a space in a title is not shown."""
    columns: dict[str, list[float | None]] = {}
    if comparison is None:
        for method in references:
            known = reference_scores(task_set, method)  # type: ignore[arg-type]
            columns[_TITLES[method]] = [known.get(row["task"]) for row in rows]
        return columns
    for method in comparison["methods"]:
        entries = [comparison["tasks"].get(row["task"], {}).get(method, {}) for row in rows]
        columns[_TITLES[method]] = [entry.get("score") for entry in entries]
        columns[f"diff {method}"] = [entry.get("difference") for entry in entries]
    return columns


def _beside_the_papers(comparison: Mapping[str, Any]) -> list[str]:
    """Run minus published over the tasks that both have, and the published averages of the whole set."""
    lines = []
    parts = {"mean": "mean", "iqm": "IQM", "dm_control": "DMControl", "metaworld": "Meta-World"}
    for result in comparison["methods"].values():
        gap, whole = result["difference"], result["whole_set"]
        interval = "" if gap["low"] is None else f" [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        averages = ", ".join(f"{name} {whole[part]:.3f}" for part, name in parts.items() if part in whole)
        counts = ", ".join(f"{how} in {result[how]}" for how in ("higher", "equal", "lower"))
        tasks = f"{result['tasks']} task{'s' if result['tasks'] > 1 else ''}"
        lines.append(
            f"This run minus {result['label']}: {gap['value']:+.3f}{interval} over {tasks} ({counts}). "
            f"As published over {whole['tasks']} tasks: {averages}."
        )
    return [*lines, *comparison["remarks"]]


def _notes(summary: Mapping[str, Any], known: bool, task_set: str | TaskSet) -> list[str]:
    episodes = sorted({row["episodes"] for row in summary["tasks"]})
    count = " or ".join(map(str, episodes)) or "no"
    note = f"{count} episodes per task, seed {summary['seed']}, {summary['seconds_total']:.0f} s in all."
    if known:
        name = get_task_set(task_set).name
        note += f"  * published 48M multi-task results ({name})"
        # whether the data are others, a comparison says itself
        note += ", trained on other data." if "comparison" not in summary else "."
    remarks = [note, *summary.get("notes", [])]
    if "comparison" in summary:
        remarks += _beside_the_papers(summary["comparison"])
    statistics = summary.get("statistics", {})
    if "policy" not in statistics:
        return remarks
    own = statistics["policy"]
    key, name = headline(own)
    text = f"{name.capitalize()} {format_interval(own, key)}"
    if own[key]["low"] is not None:
        text += f", {own['confidence']:.0%} stratified bootstrap interval over {own['seeds']} seeds per task."
    elif own["seeds"] == 1:
        text += "; one seed per task gives no confidence interval, seeds=3 does."
    else:
        text += '; its confidence interval needs pip install "torchrl-pwm[stats]".'
    lines = [text]
    if "cloning" in statistics:
        lines.append(f"BC, {METHODS['cloning']} on the same data: {format_interval(statistics['cloning'], key)}.")
    return [*lines, *remarks]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]).rstrip()


def _cell(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
