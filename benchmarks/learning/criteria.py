"""What PWM must show of an offline group, its difference to each method, and how flat the curves have become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.learning.groups import METHODS
from benchmarks.learning.rows import DATA, Curve, Records
from torchrl_pwm.evaluation import aggregate_scores

PAIRED = "paired by task and seed, with the stratified bootstrap interval over seeds"
DIFFERENCES = ("method", "difference of scores", "PWM's return is higher in", "seeds")
MARGIN, IQM = 0.05, 0.90  # of PWM above cloning of the better half, and of its interquartile mean


def last_column(records: Records, method: str, figure: str = "score") -> str:
    """The column of a method's last policies, ``score`` or ``return``; the only one where it has no choice."""
    rows = [row for row in records.rows if row["method"] == method]
    only = {"score": "score", "return": "return_mean"}[figure]
    return only if all(row["select"] is None for row in rows) else f"{figure}_last"


def differences(records: Records, confidence: float) -> list[dict[str, Any]]:
    """PWM's last policies minus those of each other method, in mean over the tasks.

    The scores are paired by task and seed, of the seeds that both have in every task, and the interval is the
    stratified bootstrap's: seeds are drawn anew within each task. ``higher`` is the number of tasks in which PWM's
    mean return is higher: a score that counts success is blind to how much is earned on the way there.
    """
    own, found = records.by_seed("pwm", last_column(records, "pwm")), []
    returns = records.by_seed("pwm", last_column(records, "pwm", "return"))
    for method in records.methods():
        other = records.by_seed(method, last_column(records, method))
        seeds = [seed for seed in own if seed in other]
        if method != "pwm" and seeds:
            paired = [np.subtract(own[seed], other[seed]) for seed in seeds]
            mean = aggregate_scores(paired, confidence=confidence).mean
            its = records.by_seed(method, last_column(records, method, "return"))
            earned = np.mean([np.subtract(returns[seed], its[seed]) for seed in seeds], 0)
            entry = {"method": method, "difference": mean.value, "low": mean.low, "high": mean.high}
            found.append({**entry, "seeds": len(seeds), "higher": int((earned > 0).sum()), "tasks": len(earned)})
    return found


def criteria(records: Records, confidence: float) -> list[dict[str, Any]]:
    """What the last policies of PWM must show: ``claim``, ``passed``, ``found``, and the ``tasks`` that fall short.

    ``passed`` is None where a method was not run in every task.
    """
    own = records.matrix("pwm", last_column(records, "pwm"))
    if own is None:
        return []
    above = {entry["method"]: entry for entry in differences(records, confidence)}
    tasks, means = records.tasks(), own.mean(0)
    claims = [
        _above(records, above, "cloning_half", own, confidence),
        _above(records, above, "tdmpc2", own, confidence),
    ]
    data = [records.references.get(task, {}).get(DATA) for task in tasks]
    below = [task for task, mean, level in zip(tasks, means, data) if level is not None and mean < level]
    unknown = [task for task, level in zip(tasks, data) if level is None]
    listed = "; ".join(f"{task} {means[tasks.index(task)]:.2f} of {data[tasks.index(task)]:.2f}" for task in below)
    shown = f"below in {len(below)} of {len(tasks)} tasks" + (f": {listed}" if below else "")
    shown += f"; the data's is not known of {', '.join(unknown)}" if unknown else ""
    claims.append({"claim": "no task below its data's mean", "passed": not below, "found": shown, "tasks": below})
    iqm = aggregate_scores(own, confidence=confidence).iqm
    claims.append(
        {
            "claim": f"interquartile mean of at least {IQM:.2f}",
            "passed": iqm.value >= IQM,
            "found": _interval(iqm.value, iqm.low, iqm.high),
            "tasks": [task for task, mean in zip(tasks, means) if mean < IQM],
        }
    )
    return claims


def _above(
    records: Records, above: Mapping[str, Mapping[str, Any]], method: str, own: np.ndarray, confidence: float
) -> dict[str, Any]:
    """That PWM is above a method: above cloning of the better half by a margin, with intervals apart."""
    margin = MARGIN if method == "cloning_half" else 0.0
    claim = f"mean above that of {METHODS[method][0]}"
    claim += f" by at least {margin:.2f}, with intervals apart" if margin else ""
    other, entry = records.matrix(method, last_column(records, method)), above.get(method)
    if other is None or entry is None:
        return {"claim": claim, "passed": None, "found": "not run in every task", "tasks": []}
    first, second = (aggregate_scores(matrix, confidence=confidence).mean for matrix in (own, other))
    apart = first.low is not None and second.high is not None and first.low > second.high
    difference = entry["difference"]
    passed = difference >= margin and apart if margin else difference > 0
    shown = (
        f"{_interval(first.value, first.low, first.high)} against {_interval(second.value, second.low, second.high)}, "
        f"difference {_interval(difference, entry['low'], entry['high'], sign='+')}"
    )
    short = [task for task, mine, its in zip(records.tasks(), own.mean(0), other.mean(0)) if mine < its]
    return {"claim": claim, "passed": bool(passed), "found": shown, "tasks": short}


def criteria_sentences(content: Mapping[str, Any]) -> Iterator[str]:
    """Each criterion with its numbers; where it fails, what the trust probe says of the tasks that fall short."""
    for entry in content["criteria"]:
        verdict = {True: "pass", False: "fail", None: "open"}[entry["passed"]]
        yield f"{verdict}: {entry['claim']}: {entry['found']}."
        for task in entry["tasks"] if entry["passed"] is False else ():
            lines = content["trust"].get(task, {})
            said = "; ".join(f"seed {seed} {line}" for seed, line in lines.items()) or "no trust probe was recorded"
            yield f"{task} falls short: {said}."


def slopes(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Of each method, how its mean score still changes over the last third of its updates, a line fitted to each seed.

    With rounds there are two entries: of the training before them, ``rounds`` False, and of all of it.
    """
    found = []
    for method in METHODS:
        own = [curve for curve in curves if curve.method == method and curve.task is None]
        for rounds in (False, True):
            ends = [curve.amount[-1] if rounds else curve.before_rounds for curve in own]
            parts = [_last_third(curve, end) for curve, end in zip(own, ends) if rounds or end is not None]
            known = [part for part in parts if part is not None]
            if known:
                entry = {"method": method, "rounds": rounds and any(curve.before_rounds is not None for curve in own)}
                found.append({**entry, **{key: float(np.mean([part[key] for part in known])) for key in known[0]}})
    return found


def _last_third(curve: Curve, end: float | None) -> dict[str, float] | None:
    limit = float(curve.amount[-1] if end is None else end)
    inside = (curve.amount <= limit) & (curve.amount >= limit * 2 / 3)
    if inside.sum() < 2:
        return None
    x, y = curve.amount[inside], curve.score[inside]
    slope = float(np.polyfit(x, y, 1)[0])
    return {"begin": float(x[0]), "end": float(x[-1]), "points": float(len(x)), "slope": slope * (x[-1] - x[0])}


def slope_sentences(content: Mapping[str, Any]) -> Iterator[str]:
    """The change over the last third of each curve, in words."""
    for entry in content["slopes"]:
        with_rounds = any(other["method"] == entry["method"] and other["rounds"] for other in content["slopes"])
        part = ", rounds included" if entry["rounds"] else ", before its rounds" if with_rounds else ""
        yield (
            f"{METHODS[entry['method']][0]}{part}: {entry['slope']:+.3f} from update {entry['begin']:,.0f} to "
            f"{entry['end']:,.0f} ({entry['points']:.0f} evaluations)."
        )


def difference_rows(content: Mapping[str, Any]) -> Iterator[list[str]]:
    """The lines of the table of PWM's differences."""
    for entry in content["differences"]:
        shown = _interval(entry["difference"], entry["low"], entry["high"], sign="+")
        yield [METHODS[entry["method"]][0], shown, f"{entry['higher']} of {entry['tasks']} tasks", str(entry["seeds"])]


def _interval(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    spec = f"{sign}.3f"
    return format(value, spec) if low is None or high is None else f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"
