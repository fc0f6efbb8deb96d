"""Pictures of methods side by side: performance profiles, and aggregates with their intervals."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from torchrl_pwm.evaluation.plots import _CURVES, _cycle, _figure, _save, _tidy
from torchrl_pwm.evaluation.profiles import performance_profile
from torchrl_pwm.evaluation.statistics import aggregate_scores

__all__ = ["plot_aggregates", "plot_profiles"]

UNITS = "normalised score (DMControl: return / 1000, Meta-World: success rate)"
_AGGREGATES = {"iqm": "interquartile mean", "mean": "mean", "median": "median"}


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
    """Performance profiles of methods as curves, with their confidence bands where there are several seeds.

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
    found = {
        name: performance_profile(matrix, thresholds, confidence=confidence, reps=reps, seed=seed)
        for name, matrix in _checked(scores).items()
    }
    figure = _figure(8.0, 4.6)
    axes = figure.subplots()
    for color, (name, profile) in zip(_colors(found, colors), found.items()):
        axes.plot(profile.thresholds, profile.values, color=color, lw=2.0, label=_label(name, profile))
        if profile.low is not None and profile.high is not None:
            axes.fill_between(profile.thresholds, profile.low, profile.high, color=color, alpha=0.18, lw=0)
    axes.set_xlabel(f"threshold τ: {units}", fontsize=9)
    axes.set_ylabel("share of runs with a score above τ")
    axes.set_ylim(-0.02, 1.02)
    axes.margins(x=0.0)
    _tidy(axes, grid="both")
    bands = any(profile.low is not None for profile in found.values())
    note = f"Bands: {confidence:.0%} stratified bootstrap intervals over seeds, pointwise" if bands else None
    axes.legend(frameon=False, fontsize=9, title=note, title_fontsize=8)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    return _save(figure, path)


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
        scores: by name of the method, [seeds, tasks]; methods may have different numbers of either.
        path: file to write; the suffix chooses the format (PNG if it has none).
        confidence: level of the intervals.
        reps: bootstrap replications; 0 leaves the intervals out.
        seed: seed of the bootstrap.
        units: what a score is, for the horizontal axis.
        title: first line of the picture.
        colors: by name of the method. Default: one after the other.

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
    reps = reps if importlib.util.find_spec("rliable") else 0
    found = {
        name: aggregate_scores(matrix, confidence=confidence, reps=reps, seed=seed)
        for name, matrix in _checked(scores).items()
    }
    figure = _figure(10.0, 0.42 * len(found) + 1.7)
    panels = figure.subplots(1, len(_AGGREGATES), sharey=True)
    for axes, (key, label) in zip(panels, _AGGREGATES.items()):
        for place, (color, statistics) in enumerate(zip(_colors(found, colors), found.values())):
            entry = getattr(statistics, key)
            if entry.low is not None:
                axes.plot([entry.low, entry.high], [place, place], color=color, lw=7, alpha=0.3, solid_capstyle="butt")
            axes.plot([entry.value], [place], color=color, marker="o", ms=6)
        axes.set_title(label, fontsize=10, loc="left")
        axes.set_yticks(range(len(found)), [_label(name, entry) for name, entry in found.items()], fontsize=9)
        axes.set_ylim(len(found) - 0.5, -0.5)
        _tidy(axes, grid="x")
    figure.supxlabel(units, fontsize=9)
    intervals = any(entry.mean.low is not None for entry in found.values())
    note = f"bars: {confidence:.0%} stratified bootstrap intervals over seeds" if intervals else None
    if title or note:
        figure.suptitle("; ".join(part for part in (title, note) if part), fontsize=10)
    return _save(figure, path)


def _checked(scores: Mapping[str, npt.ArrayLike]) -> Mapping[str, npt.ArrayLike]:
    if not scores:
        raise ValueError("there is nothing to plot: give the scores [seeds, tasks] of at least one method")
    return {name: np.asarray(matrix, dtype=np.float64) for name, matrix in scores.items()}


def _colors(names: Mapping[str, object], given: Mapping[str, str] | None) -> list[str]:
    return [(given or {}).get(name, color) for name, color in zip(names, _cycle(_CURVES, len(names)))]


def _label(name: str, found: object) -> str:
    """A method and how much there is of it."""
    seeds, tasks = (getattr(found, key) for key in ("seeds", "tasks"))
    return f"{name} ({seeds} seed{'s' if seeds != 1 else ''}, {tasks} task{'s' if tasks != 1 else ''})"
