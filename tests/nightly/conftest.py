"""Measured values of the learning runs: printed at the end, and kept in benchmarks/results/nightly.md."""

from __future__ import annotations

import datetime
import time

import pytest

from benchmarks.learning.jobs import RESULTS
from benchmarks.machine import processor

PAGE = RESULTS / "nightly.md"
_HEAD = [
    "# Nightly learning runs",
    "",
    "Written by `make nightly`, which fails where a value is below its threshold. A score of cart-pole is the share of "
    "the way from the better of random actions and none to the hand-written controller. The best policy of a run "
    "counts, chosen by evaluations along the training on other start states or seeds. Lines are of the newest runs.",
    "",
    "| value of | measured | threshold | minutes of the run | date | machine | command |",
    "|---" * 7 + "|",
]


@pytest.fixture
def check(record_property):
    """``check(command, {name: (value, threshold)})`` notes all values, then fails where one is below its threshold."""
    start = time.monotonic()

    def call(command: str, values: dict[str, tuple[float, float]]) -> None:
        minutes = (time.monotonic() - start) / 60
        for name, (value, threshold) in values.items():
            cells = [name, f"{value:.3f}", f"{threshold:.3f}", f"{minutes:.1f}", str(datetime.date.today())]
            record_property("nightly", f"| {' | '.join([*cells, processor(), f'`{command}`'])} |")
        low = {name: value for name, (value, threshold) in values.items() if value < threshold}
        assert not low, f"below the threshold: {low}"

    return call


def pytest_terminal_summary(terminalreporter) -> None:
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, ())]
    measured = [line for report in reports for key, line in report.user_properties if key == "nightly"]
    if measured:
        terminalreporter.section("measured")
        terminalreporter.write("\n".join([*_HEAD[-2:], *measured, ""]))
        before = PAGE.read_text(encoding="utf-8").splitlines()[len(_HEAD) :] if PAGE.exists() else []
        lines = {line.split(" | ")[0]: line for line in [*before, *measured]}
        PAGE.write_text("\n".join([*_HEAD, *lines.values(), ""]), encoding="utf-8")
