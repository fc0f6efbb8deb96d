"""HTML report of a run: one page with its scores, baselines, learning curves, film strips and configuration."""

from __future__ import annotations

import base64
import functools
import io
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.envs.tasks import TaskSet, get_task_set
from torchrl_pwm.evaluation.curves import Series, mean_curve
from torchrl_pwm.evaluation.plots import new_figure
from torchrl_pwm.evaluation.statistics import METHODS, SELECT, compare_methods, headline, method_scores, with_policy
from torchrl_pwm.evaluation.table import selection_sentence
from torchrl_pwm.evaluation.video import FilmStrip

__all__ = ["write_html_report"]

Runs = Mapping[int, Mapping[str, Series]]
CHART_SIZE = (480, 284)  # in the units of its SVG
_OPEN_TASKS = 8  # the sections of more tasks are closed at first


def write_html_report(
    summary: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    task_set: str | TaskSet = "mt80",
    title: str | None = None,
    curves: Mapping[str, Runs] | None = None,
    films: Mapping[str, FilmStrip] | None = None,
    config: str | None = None,
    made: str | None = None,
) -> Path:
    """Writes a page that needs nothing but itself: no script, no font and no picture from elsewhere.

    Args:
        summary: of :func:`~torchrl_pwm.evaluation.make_summary` or ``read_summary``.
        path: the file.
        task_set: ``"mt30"`` or ``"mt80"``: whose published scores the summary holds.
        title: heading. Default: the number of tasks.
        curves: by task and seed, metrics as :func:`~torchrl_pwm.evaluation.read_metrics` reads them. Those shown are
            ``predicted_return`` beside ``real_return``, and ``trust_step1`` to ``trust_step16``; any may be missing.
            Runs of before the trust probe imagined whole episodes have another ``predicted_return``: the mean reward of
            16 imagined steps from states of the data, times the length of an episode.
        films: by task, the film strip of an episode.
        config: the run's configuration as text.
        made: when the report was made.

    Returns:
        The path of the page.

    Raises:
        ImportError: if jinja2, or for curves matplotlib, is not installed.
        ValueError: if the summary has no task.

    Examples:
        >>> import tempfile
        >>> from torchrl_pwm.evaluation import make_summary
        >>> row = dict(task="walker-run", return_mean=600.0, return_std=10.0, success=None, score=0.6,
        ...            behavior_return_mean=300.0, episodes=10, seconds_extraction=42.0)
        >>> summary = make_summary([row], seed=0, seconds_total=60.0)
        >>> write_html_report(summary, tempfile.mkdtemp() + "/report.html").name
        'report.html'
    """
    rows = summary["tasks"]
    if not rows:
        raise ValueError("there is nothing to report: the summary has no task")
    statistics = summary.get("statistics") or compare_methods(rows)
    own = statistics.get("policy") or next(iter(statistics.values()), {"tasks": 0})
    page = (
        template_environment()
        .get_template("report.html")
        .render(
            title=title or f"PWM on {len(rows)} task{'s' if len(rows) > 1 else ''}",
            made=made,
            episodes=" or ".join(str(count) for count in sorted({row["episodes"] for row in rows})),
            summary=summary,
            methods=METHODS,
            statistics=statistics,
            headline=headline(own),
            shown=[method for method in METHODS if any(method_scores(row, method) for row in rows)],
            beaten=_beaten(rows),
            tasks=[_task(row, (curves or {}).get(row["task"], {}), (films or {}).get(row["task"])) for row in rows],
            open_tasks=len(rows) <= _OPEN_TASKS,
            other=_other(summary),
            selection=selection_sentence(summary["select"]) if "select" in summary else None,
            comparison=summary.get("comparison"),
            published=get_task_set(task_set).name.upper(),
            config=config,
            chart_size=CHART_SIZE,
        )
    )
    replace_file(path, page.encode())
    return Path(path)


@functools.cache
def template_environment() -> Any:
    """The environment of the page's template; others may include its ``style.css``."""
    jinja2 = require("jinja2", extra="plots", purpose="the HTML report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda value: f"{100.0 * min(max(value, 0.0), 1.0):.2f}%"
    environment.filters["data_uri"] = _data_uri
    environment.filters["number"] = lambda value, spec=".3f": "-" if value is None else format(value, spec)
    return environment


def _read_template(name: str) -> str:
    return resources.files("torchrl_pwm.evaluation").joinpath("templates", name).read_text("utf-8")


def _data_uri(picture: bytes, kind: str = "jpeg") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode()


def _other(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The policies that do not count, the last or the best: ``which``, scores by method and task, and statistics."""
    which = next((name for name in SELECT if name != summary.get("select", name) and name in summary), None)
    if which is None:
        return None
    rows = [with_policy(row, which) or {} for row in summary["tasks"]]
    scores = {
        method: [float(np.mean(found)) if (found := method_scores(row, method)) else None for row in rows]
        for method in ("policy", "cloning")
    }
    return {"which": which, "scores": scores, "statistics": summary[which].get("statistics") or compare_methods(rows)}


def _beaten(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """In how many tasks the policy scores more than behaviour cloning, and as much."""
    pairs = [
        (row["score"], row["baselines"]["cloning"]["score"])
        for row in rows
        if row["score"] is not None and row.get("baselines", {}).get("cloning", {}).get("score") is not None
    ]
    if not pairs:
        return None
    equal = sum(abs(own - other) <= 1e-9 for own, other in pairs)
    better = sum(own > other + 1e-9 for own, other in pairs)
    return {"better": better, "equal": equal, "tasks": len(pairs)}


def _task(row: Mapping[str, Any], runs: Runs, film: FilmStrip | None) -> dict[str, Any]:
    """Content of the section of one task."""
    scores = {method: method_scores(row, method) for method in METHODS}
    means = {method: float(np.mean(values)) for method, values in scores.items() if values}
    # the methods that had the same data; several may be equally good
    own = {method: means[method] for method in ("policy", "cloning", "data") if method in means}
    best = {method for method, value in own.items() if len(own) > 1 and value >= max(own.values()) - 1e-9}
    return {
        "row": row,
        "scores": scores,
        "means": means,
        "best": best,
        "marks": _side_by_side({method: value for method, value in means.items() if method != "policy"}),
        "film": film,
        "learning": _learning(row, runs),
        "trust": _trust(runs),
        "probe": _probe(row),
    }


def _side_by_side(means: Mapping[str, float], near: float = 0.02) -> list[tuple[str, float, int]]:
    """Method, score and a shift in widths of a mark, so that marks of equal scores do not cover each other."""
    placed: list[tuple[str, float, int]] = []
    group: list[tuple[str, float]] = []
    for method, value in [*sorted(means.items(), key=lambda item: item[1]), ("", np.inf)]:
        if group and value - group[-1][1] > near:
            # inwards at the ends of the scale
            first = 0 if group[0][1] < 0.1 else 1 - len(group) if group[-1][1] > 0.9 else -((len(group) - 1) // 2)
            placed += [(*mark, first + number) for number, mark in enumerate(group)]
            group = []
        group.append((method, value))
    return placed


def _learning(row: Mapping[str, Any], runs: Runs) -> dict[str, Any] | None:
    """Predicted beside real return: each seed, and their mean."""
    colors = {"predicted_return": ("predicted return", "pwm"), "real_return": ("real return", "policy")}
    levels = {
        f"{METHODS[name]}: {entry['return_mean']:.0f}": (name, entry["return_mean"])
        for name, entry in row.get("baselines", {}).items()
    }
    if not levels and row["behavior_return_mean"] is not None:
        levels = {f"{METHODS['data']}: {row['behavior_return_mean']:.0f}": ("data", row["behavior_return_mean"])}
    content = _curves(colors, runs, levels)
    if content is None:
        return None
    ends = ", ".join(f"{name} {value:.1f}" for name, _, value in content["last"])
    alt = f"Return of an episode of {row['task']} along the extraction; at its end: {ends}."
    return {**content, "alt": alt, "seeds": len(runs)}


def _trust(runs: Runs) -> dict[str, Any] | None:
    """Predicted minus real reward by imagined step: each seed, and their mean."""
    colors = {f"trust_step{step}": (f"step {step}", f"t{number}") for number, step in enumerate((1, 4, 8, 16))}
    content = _curves(colors, runs, {"no error": ("ink", 0.0)})
    if content is None:
        return None
    ends = ", ".join(f"imagined {name} {value:+.3f}" for name, _, value in content["last"])
    return {**content, "alt": f"Predicted minus real reward of a step along the extraction; at its end: {ends}."}


def _probe(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Alarm, and the errors of each seed's model by imagined step: what they are of, and values on the policy's path
    and on the data.
    """
    if "trust" not in row:
        return None
    errors = []
    for seed in row["trust"]["seeds"]:
        kinds = (("error", "reward, predicted - real", "+.3f"), ("observation_error", "observation", ".2f"))
        for name, label, spec in kinds:
            values = {place: (seed.get(place) or {}).get(name, {}) for place in ("own", "data")}
            if values["own"]:
                errors.append({"label": f"{label} (seed {seed['seed']})", "spec": spec, **values})
    steps = list(dict.fromkeys(step for each in errors for step in each["own"]))
    return {**row["trust"], "errors": errors, "steps": steps}


def _curves(
    metrics: Mapping[str, tuple[str, str]], runs: Runs, levels: Mapping[str, tuple[str, float]]
) -> dict[str, Any] | None:
    """The chart of some metrics, with level lines, and name, colour and last value of each metric that there is.

    Each seed is a faint curve, and the mean over those that have iterations in common a strong one.

    Args:
        metrics: name and colour by metric; colours are the names of those in ``style.css``.
        runs: metrics by seed.
        levels: colour and value by label.
    """
    lines: list[tuple[str, bool, Series]] = []
    last = []
    for metric, (name, color) in metrics.items():
        seeds = [run[metric] for run in runs.values() if metric in run and len(run[metric][0])]
        if not any(np.isfinite(y).any() for _, y in seeds):
            continue
        mean = mean_curve(seeds)
        lines += [(color, True, series) for series in seeds if len(seeds) > 1]
        lines += [(color, False, mean)] if len(mean[0]) else []
        last += [(name, color, float(mean[1][-1]))] if len(mean[0]) else []
    return {"chart": _line_chart(lines, list(levels.values())), "last": last, "levels": levels} if lines else None


def _line_chart(lines: Sequence[tuple[str, bool, Series]], levels: Sequence[tuple[str, float]]) -> str:
    """Content of an inline SVG, whose colours are the page's, in the light and in the dark.

    Args:
        lines: colour, whether it is one of several seeds, and points of each.
        levels: colour and value of each level line.
    """
    matplotlib = require("matplotlib", extra="plots", purpose="the curves of the HTML report")
    palette = dict(re.findall(r"--(\w+): (#\w{6})", _read_template("style.css").partition("}")[0]))
    figure = new_figure(CHART_SIZE[0] / 72, CHART_SIZE[1] / 72)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.13, 0.18, 0.83, 0.79))
    for color, value in levels:
        solid = color == "ink"
        axes.axhline(value, color=palette[color], lw=1.0 if solid else 1.4, ls="-" if solid else (0, (4, 3)))
    for color, faint, (x, y) in lines:
        width = 1.2 if faint else 2.4
        if np.isfinite(y).sum() == 1:
            # a line without length but with round ends is a dot
            (x, y), width = (np.repeat(values[np.isfinite(y)], 2) for values in (x, y)), 7.0
        axes.plot(x, y, color=palette[color], lw=width, alpha=0.45 if faint else None, solid_capstyle="round")
    axes.margins(x=0.0)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.locator_params(axis="y", nbins=5)
    axes.grid(axis="y", color=palette["line"])
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelsize=13, labelcolor=palette["muted"], pad=6)
    axes.yaxis.get_offset_text().set_color(palette["muted"])
    axes.set_xlabel("iteration", fontsize=13, color=palette["muted"])
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    _, _, content = file.getvalue().partition("<svg")[2].partition(">")
    # ids would be the same in every chart, and a style element would hold for the whole page
    unwanted = r' (id|clip-path)="[^"]*"|<defs>.*?</defs>|<!--.*?-->|font-family: [^;]*; '
    content = re.sub(unwanted, "", content.rpartition("</svg>")[0], flags=re.S)
    names = {value: name for name, value in palette.items()}
    return re.sub(r"#[0-9a-f]{6}", lambda match: f"var(--{names.get(match[0], 'muted')})", content)
