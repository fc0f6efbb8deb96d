"""The HTML page and the short table of a group's results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.figures import Picture, count_seeds
from benchmarks.learning.groups import METHODS, Group
from torchrl_pwm.evaluation.html_report import template_environment
from torchrl_pwm.evaluation.statistics import headline

_TEMPLATE = Path(__file__).with_name("suite.html")
_NOTES = {
    "mini": (
        "All methods learn from one data set, and from nothing else. World models have one size, the same number of "
        "updates, batch and sequence length; observations are standardised per task for all. PWM's policies begin as "
        "a clone of the better half of the data, which a behaviour term keeps them near (preset=quickstart). TD-MPC2 "
        "has its published losses (rho=0.5) and nothing of the kind; its planner is a small one.",
        "PWM keeps the best of its evaluations along the way, in real episodes apart from those of the score "
        "(extraction.select=best): 8 episodes every 50 updates. TD-MPC2 and behaviour cloning are scored as they end.",
    ),
    "pwm_plain": ("“PWM without cloning” has neither clone nor behaviour term, as published.",),
    "closed_form": (
        "Every method has its own settings for these tasks and its own number of env steps; the curves and the tables "
        "at equal steps and at equal minutes compare them along the way. PWM, TD-MPC2, SAC and PPO keep the best of "
        "their evaluations during training, SHAC its last policy.",
    ),
    "newton": (
        "There is no hand-written controller here: a score of 1 is the best method's mean, not a solved task.",
        "Of the methods only SHAC's settings, and on the ant PWM's, were made for these robots.",
    ),
    "dm_control": (
        "One env, action repeat 2 as in TD-MPC2's runs, so that an env step here is two of the simulator. The best of "
        "the evaluations during training counts, on other start states than the score's.",
    ),
}


def write_page(group: Group, content: Mapping[str, Any], pictures: Sequence[Picture], path: Path) -> None:
    """One page that needs nothing but itself, in the style of a run's report."""
    template = template_environment().from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        title=f"Learning benchmark: {group.title}",
        content={**content, "offline": group.offline},
        seeds=count_seeds(content),
        headline=headline({"tasks": len(content["tasks"])}),
        tiles={method: entry for method, entry in content["methods"].items() if method != "random" and entry["seeds"]},
        levels=list(dict.fromkeys(level for found in content["references"].values() for level in found)),
        best={task: _best(found) for task, found in content["tasks"].items()},
        notes=_notes(group, content),
        losses=list(loss_sentences(content)),
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
    found = content["losses"]
    for task in dict.fromkeys(entry["task"] for entry in found):
        here = [entry for entry in found if entry["task"] == task]
        where = "Over all tasks, where" if task is None else f"On {task}, where"
        better = [f"{METHODS[entry['method']][0]} {entry['other']:.2f} ({_more(entry)})" for entry in here]
        if task is None:
            middles = {method: entry["iqm"]["value"] for method, entry in content["methods"].items()}
            shown = [f"{METHODS[entry['method']][0]} {middles[entry['method']]:.2f}" for entry in here]
            better.append(f"interquartile means: PWM {middles['pwm']:.2f}, {', '.join(shown)}")
        yield f"{where} PWM has {here[0]['pwm']:.2f}: {'; '.join(better)}."
    if not found:
        yield "No method's mean score is higher by a hundredth, over all tasks or on one."
    own = content["decisions"].get("pwm", {}).get("1")
    faster = [
        f"{METHODS[method][0]} {values['1']:.2f} ms"
        for method, values in content["decisions"].items()
        if own is not None and method != "pwm" and values["1"] < own
    ]
    if faster:
        yield f"A decision of PWM takes {own:.2f} ms; faster: {_list(faster)}."
    minutes = {method: _minutes(entry) for method, entry in content["methods"].items()}
    own = minutes["pwm"]
    shorter = [
        f"{METHODS[method][0]} {value:.1f}"
        for method, value in minutes.items()
        if own is not None and value is not None and method != "pwm" and value < own
    ]
    if shorter:
        yield f"PWM trained for {own:.1f} minutes on one thread, {content['minutes_of']}; shorter: {_list(shorter)}."


def markdown(group: Group, content: Mapping[str, Any]) -> str:
    """The short table: mean scores with intervals, time and milliseconds of a decision."""
    methods = content["methods"]
    lines = [
        f"# {group.title[0].upper()}{group.title[1:]}",
        "",
        f"Made with `python -m benchmarks.learning.suite report --group {group.name}`, {content['made']}; "
        f"{content['machine']['processor']}, one thread a run. Normalised score: {content['score']}; mean of "
        f"{count_seeds(content)} and its 95 % bootstrap interval.",
        "",
        f"| task | {' | '.join(entry['label'] for entry in methods.values())} |",
        "|---" * (len(methods) + 1) + "|",
    ]
    for task, found in content["tasks"].items():
        cells = [
            _cell(found.get(method), "mean") if method not in _best(found) else f"**{_cell(found[method], 'mean')}**"
            for method in methods
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    for key, name in (("mean", "mean"), ("iqm", "interquartile mean")):
        lines.append(f"| {name} | {' | '.join(_cell(entry[key], 'value') for entry in methods.values())} |")
    minutes = [_number(_minutes(entry), ".1f") for entry in methods.values()]
    lines.append(f"| minutes of training, {content['minutes_of']} | {' | '.join(minutes)} |")
    for rows, name in (("1", "ms per decision"), ("8", "ms per decision, of 8 at once")):
        times = [_number(content["decisions"].get(method, {}).get(rows), ".2f") for method in methods]
        lines.append(f"| {name} | {' | '.join(times)} |")
    if sentences := list(loss_sentences(content)):
        lines += ["", "## Where PWM loses", "", *(f"- {sentence}" for sentence in sentences)]
    lines.append("")
    lines += [
        "## What each run had",
        "",
        *(f"- {_named(name)}: {text}" for name, text in content["budgets"].items()),
        "",
    ]
    lines += [note + "\n" for note in _notes(group, content)]
    names = ("scores", "aggregates", "profiles", "curves")
    lines += [f"![{name}](suite_{group.name}_{name}.png)\n" for name in names]
    return "\n".join(lines)


def _notes(group: Group, content: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader should know of the group, and of its methods."""
    return (*_NOTES.get(group.name, ()), *(_NOTES["pwm_plain"] if "pwm_plain" in content["methods"] else ()))


def _more(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return f"{entry['difference']:+.2f}; one seed has no interval"
    sure = "without 0" if entry["low"] > 0 else "with 0"
    return f"{entry['difference']:+.2f}, interval {entry['low']:+.2f} to {entry['high']:+.2f}, {sure}"


def _best(found: Mapping[str, Mapping[str, Any]]) -> set[str]:
    top = max(entry["mean"] for entry in found.values())
    return {method for method, entry in found.items() if entry["mean"] >= top - 1e-9}


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
    if entry["minutes_model"] is None:
        return None
    return entry["minutes_model"] + entry["minutes_policies"]


def _named(name: str) -> str:
    """A method of the budgets, and its task if there is one."""
    method, _, task = name.partition(", ")
    return f"{METHODS[method][0]}, {task}" if task else METHODS[method][0]


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
