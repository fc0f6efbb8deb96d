"""Last and best policies in the tables of a report, and which of them counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = ("best", "last")


def shown_policies(content: Mapping[str, Any]) -> list[str]:
    """The policies that a table has lines for, ``"best"`` and ``"last"``; one of no name where none was told apart."""
    entries = [entry for scores in content["tasks"].values() for entry in scores.values()]
    return [which for which in _NAMES if any(entry[which] for entry in entries)] or [""]


def pick(
    content: Mapping[str, Any], method: str, entry: Mapping[str, Any] | None, which: str
) -> Mapping[str, Any] | None:
    """The part of an entry that is of the last or the best policy; all of it where a method has no such choice.

    Args:
        content: of :func:`~benchmarks.learning.results.summarize`.
        method: of the entry.
        entry: of a task or of all.
        which: of :func:`shown_policies`.
    """
    if entry is None or not which:
        return entry
    chosen = content["methods"][method]["select"] is not None or any(entry[name] for name in _NAMES)
    return entry[which] if chosen else entry


def selection(content: Mapping[str, Any]) -> str:
    """What best and last mean, which of them counts, and where methods differ in it; empty where nothing says it."""
    counts: dict[str, list[str]] = {}
    for entry in content["methods"].values():
        if entry["select"]:
            counts.setdefault(entry["select"], []).append(entry["label"])
    if not counts:
        return ""
    text = (
        "Best: the policy that did best in an evaluation along the training, on start states or seeds apart from those "
        "of the score. Last: the one at the end of the training. Where one was not recorded there is a -. "
    )
    if len(counts) == 1:
        return f"{text}Figures and sentences are of the {next(iter(counts))} policies."
    parts = "; ".join(f"the {which} one of {', '.join(labels)}" for which, labels in counts.items())
    return f"{text}Figures and sentences are of unequal policies: {parts}."
