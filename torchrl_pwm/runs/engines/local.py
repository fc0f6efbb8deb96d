"""Processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torchrl import torchrl_logger

from torchrl_pwm._utils.devices import choose_device
from torchrl_pwm._utils.processes import run_apart, run_jobs
from torchrl_pwm.runs.engines.work import Ended, Engine, Failed, Report, Work


class LocalEngine(Engine):
    """On a CPU as many processes as there are workers; beside a GPU one process trains, and the others evaluate.

    Args:
        device: that policies are trained on; None for the best there is.
        workers: processes; None for one per core.
        retries: how often a work is tried again whose process was killed, if the others go on without it.
    """

    def __init__(self, device: str | None = None, workers: int | None = None, retries: int = 3) -> None:
        self.device = choose_device(device)
        self.num_cpus = os.cpu_count() or 1
        self.processes, self.retries = workers or self.num_cpus, retries

    @property
    def batches(self) -> int:
        return self.processes if self.device == "cpu" else 1

    def evaluators(self, batches: int) -> int:
        return self.processes // max(1, min(self.batches, batches)) - 1

    def run(
        self, works: Sequence[Work], folder: Path, *, report: Report, ended: Ended, failed: Failed | None = None
    ) -> None:
        if failed is not None:
            return self._run_apart(works, report, ended, failed)

        def passed_on(*message: object) -> object:
            done = message[0] if message else None
            return ended(works[done.number]) if isinstance(done, _Done) else report(*message)

        run_jobs(_do, list(enumerate(works)), workers=self.batches, report=passed_on)

    def _run_apart(self, works: Sequence[Work], report: Report, ended: Ended, failed: Failed) -> None:
        tries = [0] * len(works)

        def over(number: int, error: BaseException | None) -> bool:
            tries[number] += 1
            if error is None:
                ended(works[number])
            elif isinstance(error, ChildProcessError) and tries[number] <= self.retries:
                tried = f"it is tried again ({tries[number]} of {self.retries})"
                torchrl_logger.warning(f"{works[number].name}: its process was killed; {tried}")
                return True
            else:
                failed(works[number], error)
            return False

        run_apart(works, workers=self.batches, report=report, over=over)


class _Done:
    """Says that a work's results are there."""

    def __init__(self, number: int) -> None:
        self.number = number


def _do(numbered: tuple[int, Work], report: Report) -> None:
    number, work = numbered
    work(report)
    report(_Done(number))
