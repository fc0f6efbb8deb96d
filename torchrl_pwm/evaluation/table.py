"""Table of a summary as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchrl_pwm.envs.tasks import TaskSet, get_task_set
from torchrl_pwm.evaluation.scores import reference_scores
from torchrl_pwm.evaluation.statistics import METHODS, SELECT, aggregate_scores, headline, method_scores, with_policy

__all__ = ["format_interval", "format_table"]

_TITLES = {"cloning": "BC", "data": "data", "random": "random"}
_TITLES |= {"pwm": "PWM*", "tdmpc2": "TD-MPC2*", "pwm_horizon3": "PWM-H3*"}


def format_table(
    summary: Mapping[str, Any], *, task_set: str | TaskSet = "mt80", references: Sequence[str] = ("pwm", "tdmpc2")
) -> str:
    """The table of a summary as text for a terminal.

    Columns: task, return and its standard deviation over episodes, mean return of the data, their ratio, success
    rate, normalised score, and the published scores, which come from other data. Where the summary says which policy
    counts, the columns ``best`` and ``last`` take the place of the score, the one that counts first. A summary that
    has them also shows the lowest and highest score of a seed, and the scores of the baselines; then the interquartile
    mean follows the mean, with its confidence interval. One that was compared with the published results shows, in
    place of ``references``, every published method and after each the difference, run minus published.

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
    own = _own_columns(rows, summary.get("select"))
    columns = {**own, **_published_columns(rows, summary.get("comparison"), task_set, references)}
    specs = ["+.3f" if title.startswith("diff") else ".3f" for title in columns]
    spread = any(len(scores) > 1 for scores in next(iter(own.values())))
    place = 5 + sum(title in ("score", *SELECT) for title in own)  # of the spread, after the policy's own scores
    titles = [title.partition(" of ")[0] for title in columns]
    lines = [["task", "return", "data mean", "ratio", "success", *titles]]
    for number, row in enumerate(rows):
        data = row["behavior_return_mean"]
        # a ratio says nothing where the data earned nothing or lost
        ratio = row["return_mean"] / data if data is not None and data > 0 else None
        cells = [row["task"], f"{row['return_mean']:.1f} +- {row['return_std']:.1f}"]
        cells += [_cell(data, ".1f"), _cell(ratio, ".2f"), _cell(row["success"], ".0%")]
        lines.append([*cells, *(_cell(_mean(scores[number]), spec) for scores, spec in zip(columns.values(), specs))])
    known = [[scores for scores in column if scores] for column in columns.values()]
    lines.append(["mean", "", "", "", ""])
    lines[-1] += [_cell(_mean([_mean(scores) for scores in column]), spec) for column, spec in zip(known, specs)]
    footers = 1
    if "policy" in summary.get("statistics", {}):
        footers = 2
        # of differences it would be that of other tasks than the scores'
        middle = [_iqm(column) if column and spec == ".3f" else None for column, spec in zip(known, specs)]
        lines.append(["IQM", "", "", "", "", *(_cell(value, ".3f") for value in middle)])
    if spread:
        seeds = [method_scores(row, "policy") for row in rows]
        ranges = [f"{min(each):.2f}-{max(each):.2f}" if each else "-" for each in seeds]
        for line, cell in zip(lines, ["by seed", *ranges, *[""] * footers], strict=True):
            line.insert(place, cell)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [_line(line, widths) for line in lines]
    rule = "-" * max(map(len, texts))
    published = len(columns) > len(own)
    notes = _notes(summary, published, task_set)
    return "\n".join([texts[0], rule, *texts[1:-footers], rule, *texts[-footers:], *notes])


def _own_columns(rows: Sequence[Mapping[str, Any]], select: str | None) -> dict[str, list[list[float]]]:
    """By title, the scores of the run's own methods in each task, one for each seed.

    Where the summary says which policy counts, that one stands before the other one.
    """
    columns = {}
    both = ("",) if select is None else (select, *(which for which in SELECT if which != select))
    for method in ("policy", "cloning", "data", "random"):
        for which in both if method in ("policy", "cloning") else both[:1]:
            chosen = [row if which == both[0] else with_policy(row, which) for row in rows]
            scores = [[] if row is None else method_scores(row, method) for row in chosen]
            title = " ".join(filter(None, [_TITLES.get(method, ""), which if method in ("policy", "cloning") else ""]))
            if any(scores) or (method == "policy" and which == both[0]):
                columns[title or "score"] = scores
    return columns


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
) -> dict[str, list[list[float]]]:
    """By title, a number for each row, if it has one; what follows "of" in a title is not shown."""
    columns: dict[str, list[list[float]]] = {}
    if comparison is None:
        for method in references:
            known = reference_scores(task_set, method)  # type: ignore[arg-type]
            columns[_TITLES[method]] = [_listed(known.get(row["task"])) for row in rows]
        return columns
    for method in comparison["methods"]:
        entries = [comparison["tasks"].get(row["task"], {}).get(method, {}) for row in rows]
        columns[_TITLES[method]] = [_listed(entry.get("score")) for entry in entries]
        columns[f"diff of {method}"] = [_listed(entry.get("difference")) for entry in entries]
    return columns


def _listed(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _iqm(scores: Sequence[Sequence[float]]) -> float:
    """Interquartile mean of the scores of each task's seeds."""
    return aggregate_scores(np.array(scores).T, reps=0).iqm.value


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
    if phases := summary.get("phases"):
        spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in phases.items())
        remarks.insert(1, f"Seconds by phase, of all processes together: {spent}.")
    if "select" in summary:
        remarks.insert(1, selection_sentence(summary["select"]))
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


def selection_sentence(select: str) -> str:
    """What the policies of a table are.

    Args:
        select: which one counts.
    """
    return (
        "best: the policy that did best in an evaluation along the training, on start states or seeds apart from those "
        f"of the score; last: the one at its end. The {select} one counts (select={select})."
    )


def _mean(values: Sequence[Any]) -> float | None:
    return float(np.mean(values)) if values else None


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]).rstrip()


def _cell(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
