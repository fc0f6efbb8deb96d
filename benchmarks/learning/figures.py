"""Pictures of a group's results: scores by task, aggregates, profiles, and learning curves over steps and minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter

from benchmarks.learning.groups import METHODS, Group
from benchmarks.learning.records import Curve, Records
from torchrl_pwm.evaluation import plot_aggregates, plot_profiles
from torchrl_pwm.evaluation.plots import new_figure as _figure
from torchrl_pwm.evaluation.plots import save_figure as _save
from torchrl_pwm.evaluation.plots import tidy_axes as _tidy

COLORS = dict(METHODS.values())
_INK, _MUTED = "#1b1f24", "#59626d"
_LEVELS = {"hand-written controller": "--", "the data's behaviour": ":", "no action": "-."}


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Args:
        file: the PNG.
        title: what it shows.
        caption: how it is to be read: axes, units, seeds, machine.
    """

    file: Path
    title: str
    caption: str


def draw(group: Group, records: Records, content: Mapping[str, Any], folder: Path) -> list[Picture]:
    """All figures, as ``suite_<group>_*.png`` in a folder.

    Args:
        group: of the results.
        records: rows and curves.
        content: of :func:`~benchmarks.learning.results.summarize`.
        folder: where they go.
    """
    made = f"One thread a run on {content['machine']['processor']}; {content['made']}."
    seeds, score = count_seeds(content), f"normalised score: {group.score}"
    place = folder / f"suite_{group.name}"

    def file(name: str) -> Path:
        return place.with_name(f"{place.name}_{name}.png")

    # Online, random actions are next to the zero of the score.
    shown = [method for method in content["methods"] if group.offline or method != "random"]
    found = {METHODS[method][0]: records.matrix(method) for method in shown}
    matrices = {name: matrix for name, matrix in found.items() if matrix is not None}
    options: dict[str, Any] = {"colors": COLORS, "units": f"{score}\n{made}"}
    pictures = [
        Picture(
            draw_scores(content, f"{score}\n{made}", file("scores")),
            "Score by task",
            f"Normalised score ({group.score}), without unit. Large marks: mean of {seeds}; lines: 95 % bootstrap "
            f"interval of that mean over seeds; small marks: each seed. {made}",
        ),
        Picture(
            plot_aggregates(matrices, file("aggregates"), **options),
            "Over all tasks",
            f"Interquartile mean, mean and median of the normalised score, without unit, of {seeds}; bars: 95 % "
            f"stratified bootstrap intervals over seeds. {made}",
        ),
        Picture(
            plot_profiles(
                matrices, file("profiles"), thresholds=np.linspace(0, 1 if group.offline else 1.2, 121), **options
            ),
            "Performance profile",
            "Share of runs (a run is a task and a seed) with a normalised score above the threshold; higher is "
            f"better. Bands: 95 % bootstrap, pointwise, {seeds}. {made}",
        ),
    ]
    if records.curves:
        amount = "updates" if group.offline else "env steps"
        how = (
            "Mean over tasks of evaluations along the way, on episodes apart from the final ones. PWM's policies are "
            "drawn as if extracted side by side on one core after their world model, whose updates and minutes come "
            "first; TD-MPC2's are those of its prior, without planning. Dashed: the final score of what has no curve."
            if group.offline
            else "Evaluations along the way, on start states apart from the final ones; steps are those of all rows."
        )
        pictures.append(
            Picture(
                draw_curves(group, records, content, made, file("curves")),
                f"Score over {amount} and over minutes",
                f"{how} Faint: each seed; strong: their mean; {seeds}. Minutes are wall-clock ones of training, "
                f"without evaluations. {made}",
            )
        )
    return pictures


def draw_scores(content: Mapping[str, Any], label: str, path: Path) -> Path:
    """A band for each task with a line for each method: mean, interval and each seed."""
    tasks, methods = content["tasks"], list(content["methods"])
    figure = _figure(9.0, 1.4 + 0.17 * (len(methods) + 1) * len(tasks))
    axes = figure.subplots()
    lowest = -0.12
    for number, (task, found) in enumerate(tasks.items()):
        for line, method in enumerate(methods):
            if method not in found:
                continue
            y = number + (line - (len(methods) - 1) / 2) * 0.8 / len(methods)
            name, color = METHODS[method]
            entry = found[method]
            mean = max(entry["mean"], lowest)
            if entry["low"] is not None:
                axes.plot([max(entry["low"], lowest), max(entry["high"], lowest)], [y, y], color=color, lw=2, alpha=0.5)
            each = [max(value, lowest) for value in entry["each"]]
            axes.plot(each, [y] * len(each), "|", color=color, ms=5, alpha=0.8)
            marker = "<" if entry["mean"] < lowest else "o"
            axes.plot([mean], [y], marker, color=color, ms=5.5, label=name if number == 0 else None)
        for level, value in content["references"].get(task, {}).items():
            if value is not None:
                style: dict[str, Any] = {"color": _INK, "lw": 1.1, "ls": _LEVELS[level]}
                axes.plot([value, value], [number - 0.43, number + 0.43], **style, label=level if number == 0 else None)
        if number:
            axes.axhline(number - 0.5, color="#d8dce1", lw=0.8)
    axes.set_yticks(range(len(tasks)), list(tasks), fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlabel(label, fontsize=8, color=_MUTED)
    _tidy(axes, grid="x")
    note = f"mean, each seed and 95 % interval; {count_seeds(content)}"
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), title=note, title_fontsize=7)
    return _save(figure, path)


def draw_curves(group: Group, records: Records, content: Mapping[str, Any], made: str, path: Path) -> Path:
    """A row for each task, or one for the mean of all: scores over updates or steps, and over minutes."""
    tasks = list(dict.fromkeys(curve.task for curve in records.curves))
    figure = _figure(10.0, 0.9 + 2.9 * len(tasks))
    panels = figure.subplots(len(tasks), 2, squeeze=False, sharey="row")
    for row, task in zip(panels, tasks):
        here = [curve for curve in records.curves if curve.task == task]
        for axes, axis in zip(row, ("amount", "minutes")):
            for method in METHODS:
                runs = [curve for curve in here if curve.method == method]
                if runs:
                    _lines(axes, axis, runs)
            for method in _without_curve(content, here) if task is None else ():
                name, color = METHODS[method]
                level = content["methods"][method]["mean"]["value"]
                axes.axhline(level, color=color, lw=1.6, ls="--", label=f"{name}, as it ends")
            levels = content["references"].get(task, {}) if task else {}
            for level, value in levels.items():
                axes.axhline(value, color=_MUTED, lw=1.1, ls=_LEVELS[level], label=level)
            axes.set_ylim(-0.1, 1.05 if group.offline else 1.2)
            _tidy(axes, grid="both")
        row[0].xaxis.set_major_formatter(EngFormatter(sep=" "))
        amount = "updates: of the world model, then of the policies" if group.offline else "env steps, all rows"
        row[0].set_xlabel(amount, fontsize=9)
        row[1].set_xlabel("minutes of training on one thread", fontsize=9)
        row[0].set_ylabel(
            "mean normalised score of all tasks" if task is None else f"{task}\nnormalised score", fontsize=9
        )
        row[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{count_seeds(content)}; faint: each seed, strong: their mean", fontsize=10)
    figure.supxlabel(f"score: {group.score}\n{made}", fontsize=8, color=_MUTED)
    return _save(figure, path)


def _without_curve(content: Mapping[str, Any], curves: Sequence[Curve]) -> list[str]:
    """Methods that are known at their end alone."""
    drawn = {curve.method for curve in curves}
    return [name for name, entry in content["methods"].items() if entry["seeds"] and name not in drawn]


def _lines(axes: Any, axis: str, runs: Sequence[Curve]) -> None:
    """Each run of a method, and their mean as far as the shortest one goes."""
    name, color = METHODS[runs[0].method]
    for curve in runs:
        axes.plot(getattr(curve, axis), curve.score, color=color, lw=1.0, alpha=0.35)
    last = min(getattr(curve, axis)[-1] for curve in runs)
    first = max(getattr(curve, axis)[0] for curve in runs)
    places = np.linspace(first, last, 200) if last > first else np.array([last])
    mean = np.mean([np.interp(places, getattr(curve, axis), curve.score) for curve in runs], 0)
    axes.plot(places, mean, color=color, lw=2.2, marker="o" if len(places) == 1 else None, ms=4, label=name)


def count_seeds(content: Mapping[str, Any]) -> str:
    """How many seeds the methods have, in words."""
    counts = sorted({len(entry["each"]) for found in content["tasks"].values() for entry in found.values()})
    return f"{' or '.join(map(str, counts))} seed{'s' if counts != [1] else ''}"
