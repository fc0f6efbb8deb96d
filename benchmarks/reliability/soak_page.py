"""What the soak test found: whether anything grew, and its table and picture.

The rule: the first tenth of the time is warm-up. Of megabytes, the mean of the last tenth is at most a tenth above that
of the second tenth; of what is counted (handles, threads, processes, files), the median of the last tenth is no more
than that of the second.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.machine import machine

ALLOWED = 0.1
Row = Mapping[str, float]


class Measure(NamedTuple):
    """Something of the rows that must not grow: in words, the columns that are added up, those taken off, its unit."""

    name: str
    columns: tuple[str, ...]
    less: tuple[str, ...] = ()
    counted: bool = True


MEASURES = (
    Measure("memory of the long run's first process, MB", ("long_first_megabytes",), counted=False),
    Measure("memory of its four workers, MB", ("long_workers_megabytes",), counted=False),
    Measure("memory of the process of short runs, MB", ("short_first_megabytes",), counted=False),
    Measure("the same after its last round, MB", ("rest_megabytes",), counted=False),
    Measure("handles of the long run, all its processes", ("long_first_handles", "long_workers_handles")),
    Measure("its threads", ("long_first_threads", "long_workers_threads")),
    Measure("its processes", ("long_first_processes", "long_workers_processes")),
    Measure("files in its folder", ("folder_files",)),
    Measure("its folder without logs, MB", ("folder_megabytes",), ("folder_logs",), counted=False),
    Measure("handles of the process of short runs, after a round", ("rest_handles",)),
    Measure("its threads then", ("rest_threads",)),
    Measure("processes below it then", ("rest_children",)),
)


class Verdict(NamedTuple):
    """What a measure was in the second tenth of the time and in the last, and whether it grew by the rule; NaN and None
    where there was nothing to measure in one of them.
    """

    measure: Measure
    before: float
    after: float
    grew: bool | None


def verdicts(rows: Sequence[Row], measures: Sequence[Measure] = MEASURES) -> list[Verdict]:
    """What the rule says of rows in the order of their ``seconds``.

    Raises:
        ValueError: if there are no rows in one of the two tenths.
    """
    whole = rows[-1]["seconds"] if rows else 0.0
    tenths = [[row for row in rows if begin * whole <= row["seconds"] <= (begin + 0.1) * whole] for begin in (0.1, 0.9)]
    if not all(tenths):
        raise ValueError(
            "expected rows in the second and in the last tenth of the time, found none in one of them among "
            f"{len(rows)} rows: measure for longer"
        )
    found = []
    for measure in measures:
        before, after = (_typical(those, measure) for those in tenths)
        limit = before * (1 if measure.counted else 1 + ALLOWED)
        grew = None if math.isnan(before) or math.isnan(after) else after > limit
        found.append(Verdict(measure, before, after, grew))
    return found


def _typical(rows: Sequence[Row], measure: Measure) -> float:
    values = [value for row in rows if not math.isnan(value := _value(row, measure))]
    if not values:
        return math.nan
    return statistics.median(values) if measure.counted else statistics.fmean(values)


def _value(row: Row, measure: Measure) -> float:
    return sum(row[column] for column in measure.columns) - sum(row[column] for column in measure.less)


def slope(rows: Sequence[Row], measure: Measure) -> float:
    """By how much a measure grows in an hour: the line through all rows after the warm-up."""
    late = [row for row in rows if row["seconds"] >= 0.1 * rows[-1]["seconds"]]
    points = [(row["seconds"] / 3600, value) for row in late if not math.isnan(value := _value(row, measure))]
    return statistics.linear_regression(*zip(*points)).slope if len(points) > 1 else 0.0


def read(table: Path) -> list[dict[str, float]]:
    """The whole rows of a table."""
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: float(value) for key, value in row.items()} for row in rows if None not in row.values()]


def write(results: Path, about: Mapping[str, Any], ended: Mapping[str, Any]) -> list[str]:
    """``soak.md``, ``.json`` and ``.png`` of what is in ``soak.csv``; names of what grew, was not measured, or ended
    too early.

    Args:
        results: folder of all of them.
        about: command, date and commit; and a note for the page, if there is one.
        ended: which work ended before its time, and the exit codes.
    """
    rows = read(results / "soak.csv")
    found, last = verdicts(rows), rows[-1]
    host = {**machine(torch.device("cpu")), "torch": torch.__version__}
    done = {name: int(last[name]) for name in ("updates", "evaluations", "checkpoints", "rounds")}
    minutes, every = last["seconds"] / 60, statistics.median(_gaps(rows))
    content = {
        **about,
        **host,
        "minutes": round(minutes, 1),
        "rows": len(rows),
        "done": done,
        "ended": dict(ended),
        "allowed": ALLOWED,
        "verdicts": [
            {
                "name": each.measure.name,
                "second_tenth": None if each.grew is None else round(each.before, 2),
                "last_tenth": None if each.grew is None else round(each.after, 2),
                "an_hour": round(slope(rows, each.measure), 2),
                "grew": each.grew,
            }
            for each in found
        ],
    }
    (results / "soak.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(rows, results / "soak.png")
    grown = [each.measure.name for each in found if each.grew is not False] + list(ended.get("early", []))
    lines = [
        "# An hour of work" if round(minutes) == 60 else f"# {minutes:.0f} minutes of work",
        "",
        f"`{about['command']}`, {about['date']}, {host['processor']}, {host['system']}, torch {host['torch']}, "
        f"commit {about['commit']}, one thread in each process.",
        "",
        "Two things side by side: a run of `torchrl-pwm mt80` that does not end (cup-catch and mw-faucet-open: two "
        "processes train, two evaluate, a checkpoint every 20 updates); and in one process short runs one after the "
        "other, on two tasks of DMControl and two of Meta-World: each trained, read, resumed to go on longer, its "
        "policy loaded and evaluated here, in worker processes and in simulators that are kept.",
        "",
        f"Done in {minutes:.0f} minutes: **{done['updates']:,} updates, {done['evaluations']:,} evaluations of one or "
        f"two episodes, {done['checkpoints']:,} checkpoints, {done['rounds']} rounds of short runs** (each also "
        f"resumed and loaded){_processor(last)}. {len(rows)} rows, one every {every:.0f} s, in [soak.csv](soak.csv).",
        "",
        "The rule: the first tenth of the time is warm-up. Of megabytes, the mean of the last tenth is at most "
        f"{ALLOWED:.0%} above that of the second tenth; of what is counted, the median of the last tenth is no more "
        "than that of the second. Resident memory is added up over processes, so shared pages count several times.",
        "",
        "| what | second tenth | last tenth | change | in an hour, by a line through all rows | grew |",
        "|---|---|---|---|---|---|",
        *(_line(each, slope(rows, each.measure)) for each in found),
        "",
        _ending(ended),
        "",
        *([about["note"], ""] if about.get("note") else []),
        "![Memory, handles and processes over time](soak.png)",
    ]
    (results / "soak.md").write_text("\n".join(lines) + "\n")
    return grown


def _processor(last: Row) -> str:
    """The time of the processor that was had, which says how much work there was; of earlier tables it is not known."""
    found = [value for name, value in last.items() if name.endswith("_processor_seconds")]
    return f", in {sum(found) / 60:.0f} minutes of the processor" if found else ""


def _gaps(rows: Sequence[Row]) -> list[float]:
    return [after["seconds"] - before["seconds"] for before, after in itertools.pairwise(rows)]


def _line(each: Verdict, an_hour: float) -> str:
    number = "{:.0f}" if each.measure.counted else "{:.1f}"
    change = f"{each.after / each.before - 1:+.1%}" if each.before else f"{each.after - each.before:+.0f}"
    numbers = f"{number.format(each.before)} | {number.format(each.after)} | {change} | {an_hour:+.1f}"
    said = {True: "**yes**", False: "no", None: "**not measured**"}[each.grew]
    return f"| {each.measure.name} | {numbers} | {said} |"


def _ending(ended: Mapping[str, Any]) -> str:
    if "long_code" not in ended:
        return "How the work ended is not known: its measurement was cut short."
    early = f" **Before its time ended: {', '.join(ended['early'])}.**" if ended.get("early") else ""
    return (
        f"At the end both were sent SIGTERM and ended with exit codes {ended['long_code']} (long) and "
        f"{ended['short_code']} (short); {ended['left']} processes were left.{early}"
    )


def draw(rows: Sequence[Row], file: Path) -> None:
    """Memory, handles and threads, processes and files over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    minutes = [row["seconds"] / 60 for row in rows]
    panels = {
        "resident memory in MB": {
            "long run, first process": ("long_first_megabytes",),
            "long run, workers": ("long_workers_megabytes",),
            "short runs, their process": ("short_first_megabytes",),
            "short runs, workers": ("short_workers_megabytes",),
        },
        "open handles": {
            "long run": ("long_first_handles", "long_workers_handles"),
            "short runs": ("short_first_handles", "short_workers_handles"),
            "process of short runs, after a round": ("rest_handles",),
        },
        "processes": {
            "long run": ("long_first_processes", "long_workers_processes"),
            "short runs": ("short_first_processes", "short_workers_processes"),
        },
        "folder of the long run in MB": {"all": ("folder_megabytes",), "its logs": ("folder_logs",)},
    }
    for axes, (label, curves) in zip(figure.subplots(len(panels), sharex=True), panels.items()):
        for name, columns in curves.items():
            axes.plot(minutes, [sum(row[column] for column in columns) for row in rows], label=name, linewidth=1)
        axes.axvspan(0, 0.1 * minutes[-1], color="0.92")
        axes.set(ylabel=label, ylim=(0, None))
        axes.legend(fontsize=7, loc="upper left")
    axes.set_xlabel("minutes (grey: warm-up)")
    figure.savefig(file, dpi=120)
