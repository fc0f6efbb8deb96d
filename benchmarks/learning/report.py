"""The report on a group's results: figures, a short table in Markdown, and one HTML page with both."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter

from benchmarks.learning.criteria import DIFFERENCES, PAIRED, criteria_sentences, difference_rows, slope_sentences
from benchmarks.learning.groups import METHODS, Group
from benchmarks.learning.results import markdown_table
from benchmarks.learning.rows import Curve, Records
from benchmarks.learning.selection import pick, selection, shown_policies
from torchrl_pwm.evaluation import plot_aggregates, plot_profiles
from torchrl_pwm.evaluation.html_report import template_environment
from torchrl_pwm.evaluation.plots import new_figure, save_figure, tidy_axes
from torchrl_pwm.evaluation.statistics import headline

_TEMPLATE = Path(__file__).with_name("suite.html")
_INK, _MUTED = "#1b1f24", "#59626d"
_LEVELS = {"hand-written controller": "--", "the data's behaviour": ":", "no action": "-."}


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Args:
        file: the PNG.
        title: its heading.
        caption: how it is to be read: axes, units, seeds, machine.
    """

    file: Path
    title: str
    caption: str


def draw(group: Group, records: Records, content: Mapping[str, Any], place: Path) -> list[Picture]:
    """All figures, as ``<place>_*.png``.

    Args:
        group: of the results.
        records: rows and curves.
        content: of :func:`~benchmarks.learning.results.summarize`.
        place: beginning of their paths.
    """
    made = f"One thread a run on {content['machine']['processor']}; {content['made']}."
    seeds, score = count_seeds(content), f"normalised score: {group.score}"
    files = {name: Path(f"{place}_{name}.png") for name in ("scores", "aggregates", "profiles", "curves")}
    # Online, random actions are next to the zero of the score.
    shown = [method for method in content["methods"] if group.offline or method != "random"]
    matrices = {METHODS[method][0]: matrix for method in shown if (matrix := records.matrix(method)) is not None}
    options: dict[str, Any] = {"colors": dict(METHODS.values()), "units": f"{score}\n{made}"}
    thresholds = np.linspace(0, 1 if group.offline else 1.2, 121)
    pictures = [
        Picture(
            _draw_scores(content, f"{score}\n{made}", files["scores"]),
            "Score by task",
            f"Normalised score ({group.score}), without unit. Large marks: mean of {seeds}; lines: 95 % bootstrap "
            f"interval of that mean over seeds; small marks: each seed. {made}",
        ),
        Picture(
            plot_aggregates(matrices, files["aggregates"], **options),
            "Over all tasks",
            f"Interquartile mean, mean and median of the normalised score, without unit, of {seeds}; bars: 95 % "
            f"stratified bootstrap intervals over seeds. {made}",
        ),
        Picture(
            plot_profiles(matrices, files["profiles"], thresholds=thresholds, **options),
            "Performance profile",
            "Share of runs (a run is a task and a seed) with a normalised score above the threshold; higher is "
            f"better. Bands: 95 % bootstrap, pointwise, {seeds}. {made}",
        ),
    ]
    if records.curves:
        how = "Evaluations along the way, on start states apart from the final ones; steps are those of all envs."
        if group.offline:
            how = (
                "Mean over tasks of evaluations along the way, on episodes apart from the final ones. PWM's policies "
                "are drawn as if extracted side by side on one core after their world model, whose updates and minutes "
                "come first; TD-MPC2's are those of its prior, without planning. Dashed: the final score of what has "
                "no curve."
            )
        pictures.append(
            Picture(
                _draw_curves(group, records, content, made, files["curves"]),
                f"Score over {'updates' if group.offline else 'env steps'} and over minutes",
                f"{how} Faint: each seed; strong: their mean; {seeds}. Minutes are wall-clock ones of training, "
                f"without evaluations. {made}",
            )
        )
    return pictures


def _draw_scores(content: Mapping[str, Any], label: str, path: Path) -> Path:
    """A band for each task with a line for each method: mean, interval and each seed."""
    tasks, methods = content["tasks"], list(content["methods"])
    figure = new_figure(9.0, 1.4 + 0.17 * (len(methods) + 1) * len(tasks))
    axes = figure.subplots()
    lowest = -0.12
    for number, (task, entries) in enumerate(tasks.items()):
        for line, method in enumerate(methods):
            if method not in entries:
                continue
            y = number + (line - (len(methods) - 1) / 2) * 0.8 / len(methods)
            name, color = METHODS[method]
            entry = entries[method]
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
    tidy_axes(axes, grid="x")
    note = f"mean, each seed and 95 % interval; {count_seeds(content)}"
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), title=note, title_fontsize=7)
    return save_figure(figure, path)


def _draw_curves(group: Group, records: Records, content: Mapping[str, Any], made: str, path: Path) -> Path:
    """A row for each task, or one for the mean of all: scores over updates or steps, and over minutes."""
    tasks = list(dict.fromkeys(curve.task for curve in records.curves))
    figure = new_figure(10.0, 0.9 + 2.9 * len(tasks))
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
            tidy_axes(axes, grid="both")
        row[0].xaxis.set_major_formatter(EngFormatter(sep=" "))
        amount = "updates: of the world model, then of the policies" if group.offline else "env steps, all envs"
        row[0].set_xlabel(amount, fontsize=9)
        row[1].set_xlabel("minutes of training on one thread", fontsize=9)
        row[0].set_ylabel(
            "mean normalised score of all tasks" if task is None else f"{task}\nnormalised score", fontsize=9
        )
        row[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{count_seeds(content)}; faint: each seed, strong: their mean", fontsize=10)
    figure.supxlabel(f"score: {group.score}\n{made}", fontsize=8, color=_MUTED)
    return save_figure(figure, path)


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
    counts = sorted({len(entry["each"]) for scores in content["tasks"].values() for entry in scores.values()})
    return f"{' or '.join(map(str, counts))} seed{'s' if counts != [1] else ''}"


def write_page(group: Group, content: Mapping[str, Any], pictures: Sequence[Picture], path: Path) -> None:
    """One page that needs nothing but itself, in the style of a run's report."""
    template = template_environment().from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        title=f"Learning benchmark: {group.title}",
        content={**content, "offline": group.offline},
        seeds=count_seeds(content),
        headline=headline({"tasks": len(content["tasks"])}),
        tiles={method: entry for method, entry in content["methods"].items() if method != "random" and entry["seeds"]},
        levels=list(dict.fromkeys(level for levels in content["references"].values() for level in levels)),
        policies=shown_policies(content),
        pick=functools.partial(pick, content),
        best=lambda task, which: _best(
            {method: pick(content, method, entry, which) for method, entry in content["tasks"][task].items()}
        ),
        notes=[*filter(None, [selection(content)]), *group.notes],
        losses=list(loss_sentences(content)),
        criteria=list(criteria_sentences(content)),
        differences=list(difference_rows(content)),
        paired=PAIRED,
        difference_head=DIFFERENCES,
        slopes=list(slope_sentences(content)),
        equal=[
            ("minutes of training", "minutes", [_equal(table, "minutes") for table in content["equal_minutes"]]),
            ("env steps", "steps", [_equal(table, "amount") for table in content["equal_steps"]]),
        ],
        budgets=[(_named(name), text) for name, text in content["budgets"].items()],
        pictures=[
            {"title": picture.title, "caption": picture.caption, "data": picture.file.read_bytes()}
            for picture in pictures
        ],
    )
    path.write_text(page, encoding="utf-8")


def loss_sentences(content: Mapping[str, Any]) -> Iterator[str]:
    """Where another method's mean is above PWM's, with the intervals: over all tasks, by task, and in time.

    Nothing where PWM is not among the methods.
    """
    if "pwm" not in content["methods"]:
        return
    losses = content["losses"]
    for task in dict.fromkeys(entry["task"] for entry in losses):
        here = [entry for entry in losses if entry["task"] == task]
        where = "Over all tasks, where" if task is None else f"On {task}, where"
        better = [f"{METHODS[entry['method']][0]} {entry['other']:.2f} ({_more(entry)})" for entry in here]
        if task is None:
            middles = {method: entry["iqm"]["value"] for method, entry in content["methods"].items()}
            shown = [f"{METHODS[entry['method']][0]} {middles[entry['method']]:.2f}" for entry in here]
            better.append(f"interquartile means: PWM {middles['pwm']:.2f}, {', '.join(shown)}")
        yield f"{where} PWM has {here[0]['pwm']:.2f}: {'; '.join(better)}."
    if not losses:
        yield "No method's mean score is higher by a hundredth, over all tasks or on one."
    milliseconds = {method: values.get("1") for method, values in content["decisions"].items()}
    own, faster = _below_pwm(milliseconds, ".2f", " ms")
    if faster:
        yield f"A decision of PWM takes {own} ms; faster: {faster}."
    own, shorter = _below_pwm({method: _minutes(entry) for method, entry in content["methods"].items()}, ".1f")
    if shorter:
        yield f"PWM trained for {own} minutes on one thread, {content['minutes_of']}; shorter: {shorter}."


def _below_pwm(values: Mapping[str, float | None], spec: str, unit: str = "") -> tuple[str, str]:
    """PWM's value, and those of the methods with a smaller one, in words; empty where there are none."""
    own = values.get("pwm")
    parts = [
        f"{METHODS[method][0]} {value:{spec}}{unit}"
        for method, value in values.items()
        if own is not None and value is not None and value < own
    ]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
    return _number(own, spec), listed


def markdown(group: Group, content: Mapping[str, Any]) -> str:
    """The short table: mean scores with intervals, time and milliseconds of a decision."""
    head = ["task", *(["policy"] if shown_policies(content)[0] else [])]
    head += [entry["label"] for entry in content["methods"].values()]
    lines = [
        f"# {group.title[0].upper()}{group.title[1:]}",
        "",
        f"Made with `python -m benchmarks.learning.suite report --group {group.name}`, {content['made']}; "
        f"{content['machine']['processor']}, one thread a run. Normalised score: {content['score']}; mean of "
        f"{count_seeds(content)} and its 95 % bootstrap interval.",
        "",
        markdown_table(head, _table_rows(content)),
    ]
    if text := selection(content):
        lines += ["", text]
    lines += _standing(content)
    if sentences := list(loss_sentences(content)):
        lines += ["", "## Where PWM loses", "", *(f"- {sentence}" for sentence in sentences)]
    budgets = [f"- {_named(name)}: {text}" for name, text in content["budgets"].items()]
    lines += ["", "## What each run had", "", *budgets, ""]
    if content["commands"]:
        commands = [f"- {name}: `{command}`" for name, command in content["commands"].items()]
        lines += ["The command of each run's first seed and task; DIR is the folder of the data:", "", *commands, ""]
    lines += [note + "\n" for note in group.notes]
    names = ("scores", "aggregates", "profiles", "curves")
    lines += [f"![{name}](suite_{group.name}_{name}.png)\n" for name in names]
    return "\n".join(lines)


def _standing(content: Mapping[str, Any]) -> Iterator[str]:
    """What PWM must show, its difference to each method, and whether the budgets were long enough."""
    flat = "How the mean score still changes over the last third of the updates"
    for title, sentences in (("What PWM must show", criteria_sentences(content)), (flat, slope_sentences(content))):
        if lines := list(sentences):
            yield from ["", f"## {title}", "", *(f"- {line}" for line in lines)]
    if rows := list(difference_rows(content)):
        yield from ["", "## PWM minus each method", "", f"Last policies, mean over the tasks; {PAIRED}.", ""]
        yield markdown_table(DIFFERENCES, rows)


def _table_rows(content: Mapping[str, Any]) -> Iterator[list[str]]:
    """Tasks first, then what sums them up, then times."""
    methods, policies = content["methods"], shown_policies(content)
    for task, found in content["tasks"].items():
        for which in policies:
            scores = {method: pick(content, method, entry, which) for method, entry in found.items()}
            cells = {method: _cell(scores.get(method), "mean") for method in methods}
            marked = (f"**{cell}**" if method in _best(scores) else cell for method, cell in cells.items())
            yield [task, *filter(None, [which]), *marked]
    for key, name in (("mean", "mean"), ("iqm", "interquartile mean")):
        for which in policies:
            aggregates = [pick(content, method, entry, which) for method, entry in methods.items()]
            cells = [_cell(entry and entry[key], "value") for entry in aggregates]
            yield [name, *filter(None, [which]), *cells]
    gap = [""] if policies[0] else []
    minutes = [_number(_minutes(entry), ".1f") for entry in methods.values()]
    yield [f"minutes of training, {content['minutes_of']}", *gap, *minutes]
    for envs, name in (("1", "ms per decision"), ("8", "ms per decision, of 8 at once")):
        yield [name, *gap, *(_number(content["decisions"].get(method, {}).get(envs), ".2f") for method in methods)]


def _more(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return f"{entry['difference']:+.2f}; one seed has no interval"
    sure = "without 0" if entry["low"] > 0 else "with 0"
    return f"{entry['difference']:+.2f}, interval {entry['low']:+.2f} to {entry['high']:+.2f}, {sure}"


def _best(scores: Mapping[str, Mapping[str, Any] | None]) -> set[str]:
    """The methods of the highest mean; none where one was not recorded."""
    means = {method: entry["mean"] for method, entry in scores.items() if entry}
    if len(means) < len(scores):
        return set()
    return {method for method, mean in means.items() if mean >= max(means.values()) - 1e-9}


def _cell(entry: Mapping[str, Any] | None, key: str) -> str:
    if entry is None or entry[key] is None:
        return "-"
    shown = f"{entry[key]:.2f}"
    return shown if entry["low"] is None else f"{shown} [{entry['low']:.2f}, {entry['high']:.2f}]"


def _equal(table: Mapping[str, Any], axis: str) -> dict[str, Any]:
    means = {
        method: None if any(value is None for value in values) else float(np.mean(values))
        for method, values in table["methods"].items()
    }
    limit = table[axis]
    shown = f"{limit:,.0f}" if axis == "amount" else f"{limit:.1f}"
    return {"task": table["task"], "limit": shown, "means": means, "columns": list(means)}


def _minutes(entry: Mapping[str, Any]) -> float | None:
    return None if entry["minutes_model"] is None else entry["minutes_model"] + entry["minutes_policies"]


def _named(name: str) -> str:
    """A method of the budgets, and its task if there is one."""
    method, _, task = name.partition(", ")
    return f"{METHODS[method][0]}, {task}" if task else METHODS[method][0]


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
