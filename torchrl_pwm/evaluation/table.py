"""Table of a summary as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchrl_pwm.envs.tasks import TaskSet, get_task_set
from torchrl_pwm.evaluation.scores import reference_scores
from torchrl_pwm.evaluation.statistics import METHODS, aggregate_scores, headline, method_scores

__all__ = ["format_interval", "format_table"]

_TITLES = {"cloning": "BC", "data": "data", "random": "random"}
_TITLES |= {"pwm": "PWM*", "tdmpc2": "TD-MPC2*", "pwm_horizon3": "PWM-H3*"}


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
