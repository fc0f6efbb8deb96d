"""Pictures of scores: by task, aggregates and performance profiles. Drawn off screen, whatever backend is in use."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.files import picture_path, replaced_file
from torchrl_pwm.envs.tasks import TaskSet, TaskSpec, get_task_set
from torchrl_pwm.evaluation.scores import find_task_spec, reference_scores
from torchrl_pwm.evaluation.statistics import (
    METHODS,
    aggregate_scores,
    headline,
    method_scores,
    performance_profile,
    possible_reps,
)
from torchrl_pwm.evaluation.table import format_interval

__all__ = ["plot_aggregates", "plot_profiles", "plot_scores"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_POLICY, _CLONING, _DATA, _INK, _PWM, _TDMPC2 = "#2f6db3", "#3a9e6e", "#8a8f98", "#1b1f24", "#d1495b", "#e0a030"
COLORS = (_POLICY, _PWM, _CLONING, _TDMPC2, "#7b5ea7", _DATA)
# Marker, colour and shift from the line of the task, below the bar; one above the other where scores are often equal.
_BASELINES = {"cloning": ("^", _CLONING, 0.06), "data": ("s", _DATA, 0.2), "random": ("x", _INK, 0.34)}
_PUBLISHED = {"pwm": ("D", _PWM, -0.16), "tdmpc2": ("o", _TDMPC2, 0.16)}
_HOLLOW: dict[str, Any] = {"facecolor": "white", "lw": 1.6}
_BAR: dict[str, Any] = {"color": _POLICY, "error_kw": {"ecolor": _INK, "elinewidth": 1.1, "capsize": 2.5}}
UNITS = "normalised score (DMControl: return / 1000, Meta-World: success rate)"
_AGGREGATES = {"iqm": "interquartile mean", "mean": "mean", "median": "median"}


def plot_scores(
    summary: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    task_set: str | TaskSet = "mt80",
    references: Sequence[str] = ("pwm", "tdmpc2"),
    title: str | None = None,
) -> Path:
    """Scores of a summary, one line per task: against published scores, and against the data.

    The left panel holds the normalised score (return / 1000 for DMControl, success rate for Meta-World) with the
    published scores of the 48M multi-task models, which were trained on other, much larger data. The right panel
    holds the return, as a share of the largest possible one, beside the mean return of the training data: the only
    comparison with the data that makes sense for every task. Where there are several seeds, each is a dot on its bar;
    of a single one, error bars are standard errors over episodes.

    Args:
        summary: of :func:`~torchrl_pwm.evaluation.make_summary` or ``read_summary``.
        path: file to write; the suffix chooses the format (PNG if it has none).
        task_set: ``"mt30"`` or ``"mt80"``: whose published scores are marked.
        references: published methods to mark, of ``"pwm"`` and ``"tdmpc2"``.
        title: first line of the picture. Default: the mean score.

    Returns:
        The path of the picture.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the summary has no task.
    """
    rows = summary["tasks"]
    if not rows:
        raise ValueError("there is nothing to plot: the summary has no task")
    specs = [find_task_spec(row["task"], task_set) or find_task_spec(row["task"]) for row in rows]
    known = {method: reference_scores(task_set, method) for method in references}  # type: ignore[arg-type]
    pitch = 0.5 if len(rows) <= 12 else 0.3 if len(rows) <= 40 else 0.22
    figure = new_figure(11.0, pitch * len(rows) + 2.1)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_scores(left, rows, specs, known)
    _draw_returns(right, rows, specs)
    for axes in (left, right):
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [row["task"] for row in rows], fontsize=10 if pitch >= 0.3 else 8)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labeltop=len(rows) > 40)
        tidy_axes(axes, grid="x")
    figure.suptitle(title or _score_title(summary), fontsize=13, fontweight="bold")
    name = get_task_set(task_set).name.upper()
    handles = {label: handle for axes in (left, right) for handle, label in zip(*axes.get_legend_handles_labels())}
    # the bars first
    handles = {label: handles[label] for label in sorted(handles, key=lambda label: label.startswith("published"))}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
        title=f"{_caption(summary)}. Published scores: {name}, 48M models, other data." if known else _caption(summary),
        title_fontsize=9,
    )
    return save_figure(figure, path)


def plot_profiles(
    scores: Mapping[str, npt.ArrayLike],
    path: str | os.PathLike[str],
    *,
    thresholds: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    reps: int = 2000,
    seed: int = 0,
    units: str = UNITS,
    title: str | None = None,
    colors: Mapping[str, str] | None = None,
) -> Path:
    """Performance profiles of methods as curves, with their confidence bands.

    Bands need several seeds per task and the package rliable; where one is missing, there is the curve alone.

    Args:
        scores: by name of the method, [seeds, tasks]; methods may have different numbers of either.
        path: file to write; the suffix chooses the format (PNG if it has none).
        thresholds: scores tau [K] at which profiles are drawn. Default: 101 from 0 to 1.
        confidence: level of the bands.
        reps: bootstrap replications; 0 leaves the bands out.
        seed: seed of the bootstrap.
        units: what a score is, for the horizontal axis.
        title: first line of the picture.
        colors: by name of the method. Default: one after the other.

    Returns:
        The path of the picture.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no method, or as in :func:`~torchrl_pwm.evaluation.performance_profile`.

    Examples:
        >>> import tempfile
        >>> scores = {"PWM": [[0.4, 0.9], [0.5, 1.0]], "published PWM": [[0.6, 1.0]]}
        >>> plot_profiles(scores, tempfile.mkdtemp() + "/profiles.png").name
        'profiles.png'
    """
    reps = possible_reps(reps)
    profiles = {
        name: performance_profile(matrix, thresholds, confidence=confidence, reps=reps, seed=seed)
        for name, matrix in _checked(scores).items()
    }
    figure = new_figure(8.0, 4.6)
    axes = figure.subplots()
    for color, (name, profile) in zip(_colors(profiles, colors), profiles.items()):
        axes.plot(profile.thresholds, profile.values, color=color, lw=2.0, label=_label(name, profile))
        if profile.low is not None and profile.high is not None:
            axes.fill_between(profile.thresholds, profile.low, profile.high, color=color, alpha=0.18, lw=0)
    axes.set_xlabel(f"threshold τ: {units}", fontsize=9)
    axes.set_ylabel("share of runs with a score above τ")
    axes.set_ylim(-0.02, 1.02)
    axes.margins(x=0.0)
    tidy_axes(axes, grid="both")
    bands = any(profile.low is not None for profile in profiles.values())
    note = f"Bands: {confidence:.0%} stratified bootstrap intervals over seeds, pointwise" if bands else None
    axes.legend(frameon=False, fontsize=9, title=note, title_fontsize=8)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    return save_figure(figure, path)


def plot_aggregates(
    scores: Mapping[str, npt.ArrayLike],
    path: str | os.PathLike[str],
    *,
    confidence: float = 0.95,
    reps: int = 2000,
    seed: int = 0,
    units: str = UNITS,
    title: str | None = None,
    colors: Mapping[str, str] | None = None,
) -> Path:
    """Interquartile mean, mean and median of methods, a panel each, with their confidence intervals.

    Intervals need several seeds per task and the package rliable; where one is missing, there is the mark alone.

    Args:
        scores, path, confidence, reps, seed, units, title, colors: as in :func:`plot_profiles`.

    Returns:
        The path of the picture.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no method, or as in :func:`~torchrl_pwm.evaluation.aggregate_scores`.

    Examples:
        >>> import tempfile
        >>> plot_aggregates({"PWM": [[0.4, 0.9], [0.5, 1.0]]}, tempfile.mkdtemp() + "/aggregates.png").name
        'aggregates.png'
    """
    reps = possible_reps(reps)
    results = {
        name: aggregate_scores(matrix, confidence=confidence, reps=reps, seed=seed)
        for name, matrix in _checked(scores).items()
    }
    figure = new_figure(10.0, 0.42 * len(results) + 1.7)
    panels = figure.subplots(1, len(_AGGREGATES), sharey=True)
    for axes, (key, label) in zip(panels, _AGGREGATES.items()):
        for place, (color, statistics) in enumerate(zip(_colors(results, colors), results.values())):
            entry = getattr(statistics, key)
            if entry.low is not None:
                axes.plot([entry.low, entry.high], [place, place], color=color, lw=7, alpha=0.3, solid_capstyle="butt")
            axes.plot([entry.value], [place], color=color, marker="o", ms=6)
        axes.set_title(label, fontsize=10, loc="left")
        axes.set_yticks(range(len(results)), [_label(name, entry) for name, entry in results.items()], fontsize=9)
        axes.set_ylim(len(results) - 0.5, -0.5)
        tidy_axes(axes, grid="x")
    figure.supxlabel(units, fontsize=9)
    intervals = any(entry.mean.low is not None for entry in results.values())
    note = f"bars: {confidence:.0%} stratified bootstrap intervals over seeds" if intervals else None
    if title or note:
        figure.suptitle("; ".join(part for part in (title, note) if part), fontsize=10)
    return save_figure(figure, path)


def _draw_scores(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    specs: Sequence[TaskSpec | None],
    known: Mapping[str, Mapping[str, float]],
) -> None:
    scored = [(y, row, spec) for y, (row, spec) in enumerate(zip(rows, specs)) if row["score"] is not None]
    baselines = {
        method: [(float(np.mean(scores)), y) for y, row in enumerate(rows) if (scores := method_scores(row, method))]
        for method in _BASELINES
    }
    # marks of baselines stand below the bar
    shift, height = (-0.16, 0.32) if any(baselines.values()) else (0.0, 0.62)
    if scored:
        values = [row["score"] for _, row, _ in scored]
        errors = _clipped_errors(values, [_score_error(row, spec) for _, row, spec in scored])
        axes.barh([y + shift for y, _, _ in scored], values, xerr=errors, height=height, label="policy", **_BAR)
    _draw_seeds(axes, [(run["score"], y + shift) for y, row, _ in scored for run in _seeds(row)])
    for method, points in baselines.items():
        marker, color, offset = _BASELINES[method]
        _draw_points(axes, points, offset, marker=marker, s=32, color=color, lw=1.6, zorder=4, label=METHODS[method])
    for y, row in enumerate(rows):
        if row["score"] is None:
            text = f"return {row['return_mean']:.4g} (no score: not in a task table)"
            axes.text(0.01, y, text, va="center", fontsize=8)
    for method, published in known.items():
        marker, color, offset = _PUBLISHED[method]
        points = [(published[row["task"]], y) for y, row in enumerate(rows) if row["task"] in published]
        style = {"marker": marker, "s": 34, "edgecolor": color, "zorder": 4, "label": METHODS[method], **_HOLLOW}
        _draw_points(axes, points, offset, **style)
    axes.set_xlim(0.0, 1.04)
    axes.set_xlabel(UNITS, fontsize=9)


def _draw_returns(axes: Axes, rows: Sequence[Mapping[str, Any]], specs: Sequence[TaskSpec | None]) -> None:
    tops = [None if spec is None else spec.max_return for spec in specs]
    known = [(y, row, top) for y, (row, top) in enumerate(zip(rows, tops)) if top is not None]
    shares = [row["return_mean"] / top for _, row, top in known]
    errors = _clipped_errors(shares, [_return_error(row) / top for _, row, top in known])
    axes.barh([y - 0.16 for y, _, _ in known], shares, xerr=errors, height=0.32, **_BAR)
    _draw_seeds(axes, [(run["return_mean"] / top, y - 0.16) for y, row, top in known for run in _seeds(row)])
    data = [(y, row["behavior_return_mean"] / top) for y, row, top in known if row["behavior_return_mean"] is not None]
    if data:
        axes.barh([y + 0.16 for y, _ in data], [x for _, x in data], color=_DATA, height=0.32, label="mean of the data")
    axes.set_xlim(0.0, 1.04)
    axes.set_xlabel("return / largest possible return", fontsize=9)


def _draw_seeds(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    _draw_points(axes, points, s=26, edgecolor=_POLICY, zorder=5, label="policy, each seed", **_HOLLOW)


def _draw_points(axes: Axes, points: Sequence[tuple[float, float]], offset: float = 0.0, **style: Any) -> None:
    if points:
        axes.scatter([x for x, _ in points], [y + offset for _, y in points], **style)


def _seeds(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The policies of a task, where there are several."""
    return row.get("seeds", ()) if len(row.get("seeds", ())) > 1 else ()


def _clipped_errors(values: Sequence[float], errors: Sequence[float]) -> np.ndarray:
    """Error bars [2, n] that stay inside [0, 1], as scores do; nan, for no error bar, passes through."""
    room = np.stack([values, 1.0 - np.asarray(values)])
    return np.maximum(np.minimum(np.stack([errors, errors]), room), 0.0)


def _return_error(row: Mapping[str, Any]) -> float:
    """Standard error of the return over the episodes of a single policy; of several, nan."""
    return math.nan if _seeds(row) else row["return_std"] / math.sqrt(row["episodes"])


def _score_error(row: Mapping[str, Any], spec: TaskSpec | None) -> float:
    """Standard error of the score likewise: one for the episodes of several policies would hide how they differ."""
    if spec is None or _seeds(row):
        return math.nan
    if spec.score_rule == "success":
        deviation = math.sqrt(row["score"] * (1.0 - row["score"]))
    else:
        deviation = row["return_std"] / (spec.max_return or math.nan)
    return deviation / math.sqrt(row["episodes"])


def _score_title(summary: Mapping[str, Any]) -> str:
    count = len(summary["tasks"])
    scored = sum(row["score"] is not None for row in summary["tasks"])
    if not scored:
        return f"{count} task{'s' if count > 1 else ''}"
    which = f"{scored} task{'s' if scored > 1 else ''}" + (f" of {count}" if scored < count else "")
    own = summary.get("statistics", {}).get("policy")
    if own is None or own["mean"]["low"] is None:
        return f"mean normalised score {summary['score_mean']:.3f} over {which}"
    key, name = headline(own)
    return f"{name} of the normalised score {format_interval(own, key)} over {which}"


def _caption(summary: Mapping[str, Any]) -> str:
    episodes = " or ".join(str(n) for n in sorted({row["episodes"] for row in summary["tasks"]}))
    seeds = " or ".join(str(n) for n in sorted({len(_seeds(row)) for row in summary["tasks"]} - {0}))
    if seeds:
        return f"Bars: mean of {episodes} episodes over {seeds} seeds from seed {summary['seed']}"
    return f"Bars: mean ± standard error of {episodes} episodes, seed {summary['seed']}"


def tidy_axes(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color="#d8dce1", lw=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def new_figure(width: float, height: float) -> Figure:
    """A figure with a canvas of its own: pyplot and the user's backend are never touched."""
    figure_module = require("matplotlib.figure", extra="plots", purpose="plotting")
    backend = require("matplotlib.backends.backend_agg", extra="plots", purpose="plotting")
    figure = figure_module.Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    backend.FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    target = picture_path(path)
    with replaced_file(target) as temporary:
        figure.savefig(temporary, format=target.suffix[1:])
    return target


def _checked(scores: Mapping[str, npt.ArrayLike]) -> Mapping[str, npt.ArrayLike]:
    if not scores:
        raise ValueError("there is nothing to plot: give the scores [seeds, tasks] of at least one method")
    return {name: np.asarray(matrix, dtype=np.float64) for name, matrix in scores.items()}


def _colors(names: Mapping[str, object], given: Mapping[str, str] | None) -> list[str]:
    return [(given or {}).get(name, color) for name, color in zip(names, itertools.cycle(COLORS))]


def _label(name: str, result: object) -> str:
    """A method and how much there is of it."""
    seeds, tasks = (getattr(result, key) for key in ("seeds", "tasks"))
    return f"{name} ({seeds} seed{'s' if seeds != 1 else ''}, {tasks} task{'s' if tasks != 1 else ''})"
