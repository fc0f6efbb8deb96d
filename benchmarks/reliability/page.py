"""The page of the kills: by kind, how many there were, and what the runs came to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from torchrl_pwm._utils.files import replace_file


def write(done: Sequence[Mapping[str, Any]], results: Path) -> None:
    """``kills.md`` and ``kills.json`` in a folder of results."""
    if not done:
        return
    about = machine(torch.device("cpu"))
    dates, seeds, commits, disks = (
        ", ".join(sorted({str(record[key]) for record in done})) for key in ("date", "seed", "commit", "disk")
    )
    lines = [
        "# Kills at random moments",
        "",
        f"`python -m benchmarks.reliability`, {dates}, {about['processor']}, {about['system']}, torch "
        f"{torch.__version__}, one thread; seed of the moments {seeds}, commit {commits}, runs on {disks}.",
        "",
        "SIGKILL at moments drawn uniformly over the processor time of an undisturbed run, again and again while one "
        "goes on. Equal: all weights, checkpoints, data files, logs and summaries, bit for bit, without seconds.",
        "",
        "| what | kills | runs | equal | other numbers | lost |",
        "|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(record["kind"] for record in done):
        lines.append(_row(kind, [record for record in done if record["kind"] == kind]))
    lines.append(_row("**all**", done))
    replace_file(results / "kills.md", ("\n".join(lines) + "\n").encode())
    content = {"machine": about, "torch": torch.__version__, "runs": list(done)}
    replace_file(results / "kills.json", json.dumps(content, indent=1).encode())


def _row(name: str, mine: Sequence[Mapping[str, Any]]) -> str:
    kills = sum(len(record["kills"]) for record in mine)
    lost, other = (sum(bool(record[key]) for record in mine) for key in ("lost", "different"))
    return f"| {name} | {kills} | {len(mine)} | {len(mine) - lost - other} | {other} | {lost} |"
