"""The results of a run of the suite as a table, and as files with all that is needed to repeat it."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.speed.sizes import SIZES
from torchrl_pwm.evaluation import package_versions

_HEAD = (
    "what",
    "variant",
    "time [ms]",
    "quartiles [ms]",
    "a second",
    "bare [ms]",
    "ratio",
    "GFLOP",
    "TFLOP/s",
    "launches",
    "host reads",
    "remark",
)


@dataclasses.dataclass(frozen=True)
class Result:
    """One case in one variant; without ``seconds`` it was skipped, and ``remark`` says why.

    Args:
        case, what, variant: which.
        against: the bare work.
        seconds: median time of a run.
        bare_seconds: median time of the bare work, in turn with it.
        ratio: median of the ratios of neighbours.
        rounds: how often both ran.
        gflop: multiplications and additions of the bare products, in 10^9.
        remark: what a reader must know.
        quartiles: of the times of a run.
        launches, host_reads: of a run, see :mod:`.counting`.
    """

    case: str
    what: str
    variant: str
    against: str
    seconds: float | None = None
    bare_seconds: float | None = None
    ratio: float | None = None
    rounds: int = 0
    gflop: float | None = None
    remark: str = ""
    quartiles: tuple[float, float] | None = None
    launches: int | None = None
    host_reads: int | None = None


def table(results: Sequence[Result]) -> str:
    """A Markdown table, a line per case and variant."""
    lines = [f"| {' | '.join(_HEAD)} |", "|---|---" + "|--:" * (len(_HEAD) - 3) + "|---|"]
    for result in results:
        seconds, gflop = result.seconds, result.gflop
        numbers = [
            _cell(None if seconds is None else 1e3 * seconds),
            "-" if result.quartiles is None else " to ".join(_cell(1e3 * value) for value in result.quartiles),
            _cell(None if seconds is None else 1 / seconds),
            _cell(None if result.bare_seconds is None else 1e3 * result.bare_seconds),
            "-" if result.ratio is None else f"{result.ratio:.2f}",
            _cell(gflop),
            _cell(None if seconds is None or gflop is None else 1e-3 * gflop / seconds),
            "-" if result.launches is None else str(result.launches),
            "-" if result.host_reads is None else str(result.host_reads),
        ]
        remark = result.remark if result.seconds is not None else f"skipped: {result.remark}"
        if result.seconds is not None and result.against != "bare matrix products":
            remark = f"against {result.against}{'; ' if remark else ''}{remark}"
        cells = (cell.replace("|", "/") for cell in (result.what, result.variant, *numbers, remark))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(
    folder: Path,
    results: Sequence[Result],
    *,
    size: str,
    device: torch.device,
    threads: int,
    backend: str,
    command: str,
    today: datetime.date | None = None,
) -> list[Path]:
    """Writes ``speed_<size>_<device>.md`` and ``.json``."""
    content: dict[str, Any] = {
        "command": command,
        "date": (today or datetime.date.today()).isoformat(),
        "machine": machine(device),
        "device": device.type,
        "threads": threads,
        "backend": backend,
        "versions": package_versions(),
        "size": {"name": size, **dataclasses.asdict(SIZES[size])},
        "results": [dataclasses.asdict(result) for result in results],
    }
    folder.mkdir(parents=True, exist_ok=True)
    data, page = (folder / f"speed_{size}_{device.type}{ending}" for ending in (".json", ".md"))
    data.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    text = _PAGE.format(
        device=device.type.upper(),
        machine="; ".join(content["machine"].values()),
        sizes=SIZES[size].describe(),
        table=table(results),
        versions=versions,
        **{key: content[key] for key in ("command", "date", "threads", "backend")},
    )
    page.write_text(text, encoding="utf-8")
    return [page, data]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


_PAGE = """# Speed, {device}

Command: `{command}`. Machine: {machine}; {threads} torch threads. Date: {date}. Compiler: {backend}.
{sizes}

Medians over rounds in which a computation and its bare work take turns; the ratio is the median of the ratios of
neighbours. The bare work is every matrix product that the computation cannot avoid: each linear map's forward pass, the
input gradients that must flow and the weight gradients of the networks being trained. Of a sample it is the reads of as
many bytes. Compilation is not part of a time. TFLOP/s are those of the bare products in the time of the whole. Launches
are operations that compute, on a CPU those of torch's functions in place of this package's kernels for it, which start
several for each; host reads are the numbers that Python waits for. They are counted in eager runs.

{table}

Versions: {versions}.
"""
