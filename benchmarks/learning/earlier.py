"""The rows and curves of a report that was written earlier, perhaps from runs on another machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.rows import COLUMNS, DATA, Curve, Records


def curve_record(curve: Curve) -> dict[str, Any]:
    """A curve as the JSON file of a report has it."""
    axes = {"amount": 0, "minutes": 3, "score": 4}
    rounded = {axis: [round(float(value), digits) for value in getattr(curve, axis)] for axis, digits in axes.items()}
    head = {"method": curve.method, "seed": curve.seed, "task": curve.task}
    return {**head, **rounded, "before_rounds": curve.before_rounds}


def read_earlier(file: Path) -> Records:
    """The records of ``suite_<group>.json``; none where there is no such file."""
    if not file.exists():
        return Records()
    content = json.loads(file.read_text(encoding="utf-8"))
    axes = ("amount", "minutes", "score")
    rows = [{**dict.fromkeys(COLUMNS), **row} for row in content["rows"]]
    for row in rows:
        if row["method"].startswith("pwm") and "score_data" not in content["rows"][0]:  # one data set for all seeds
            row["score_data"] = content["references"].get(row["task"], {}).get(DATA)
    told = ("references", "budgets", "versions", "machine", "commands", "decisions")
    return Records(
        rows=rows,
        parts=[
            Curve(**{**made, **{axis: np.array(made[axis]) for axis in axes}}) for made in content.get("curves", [])
        ],
        **{key: content.get(key, {}) for key in told},
        commit=content["commit"],
        trust={
            (task, int(seed)): line for task, seeds in content.get("trust", {}).items() for seed, line in seeds.items()
        },
    )


def add_earlier(records: Records, earlier: Records) -> None:
    """Adds what earlier runs have and those of ``records`` have not, by method, task and seed."""
    rows = {(row["method"], row["task"], row["seed"]) for row in records.rows}
    records.rows += [row for row in earlier.rows if (row["method"], row["task"], row["seed"]) not in rows]
    parts = {(part.method, part.task, part.seed) for part in records.parts}
    records.parts += [part for part in earlier.parts if (part.method, part.task, part.seed) not in parts]
    for key in ("references", "budgets", "commands", "trust"):
        setattr(records, key, {**getattr(earlier, key), **getattr(records, key)})
    records.decisions = earlier.decisions
    records.tell(earlier.versions, earlier.machine, earlier.commit)
