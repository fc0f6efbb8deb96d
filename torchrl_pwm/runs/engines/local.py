"""Processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torchrl_pwm._utils.devices import choose_device
from torchrl_pwm._utils.processes import run_jobs
from torchrl_pwm.runs.engines.work import Ended, Engine, Report, Work


class LocalEngine(Engine):
    """On a CPU as many processes as there are workers; beside a GPU one process trains, and the others evaluate.

    Args:
        device: that policies are trained on; None for the best there is.
        workers: processes; None for one per core.
    """

    def __init__(self, device: str | None = None, workers: int | None = None) -> None:
        self.device = choose_device(device)
        self.num_cpus = os.cpu_count() or 1
        self.processes = workers or self.num_cpus

    @property
    def batches(self) -> int:
        return self.processes if self.device == "cpu" else 1

    def evaluators(self, batches: int) -> int:
        return self.processes // max(1, min(self.batches, batches)) - 1

    def run(self, works: Sequence[Work], folder: Path, *, report: Report, ended: Ended) -> None:
        def passed_on(*message: object) -> object:
            done = message[0] if message else None
            return ended(works[done.number]) if isinstance(done, _Done) else report(*message)

        run_jobs(_do, list(enumerate(works)), workers=self.batches, report=passed_on)


class _Done:
    """Says that a work's results are there."""

    def __init__(self, number: int) -> None:
        self.number = number


def _do(numbered: tuple[int, Work], report: Report) -> None:
    number, work = numbered
    work(report)
    report(_Done(number))
