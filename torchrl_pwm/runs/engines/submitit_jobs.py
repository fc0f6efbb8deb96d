"""Jobs of Slurm, by submitit."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrl import torchrl_logger

from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.files import locked, replace_file
from torchrl_pwm._utils.stopping import check_stop, finishing, stop_asked, stoppable
from torchrl_pwm.runs.engines.work import Ended, Engine, Failed, Report, Work

_FOLDER = "slurm"  # in that of the run: what jobs print, and what they report
_JOBS = "jobs.json"
_WAIT = 1.0  # seconds between two looks at the jobs


class SubmititEngine(Engine):
    """A job of Slurm for each work, in a run folder that all nodes share.

    A job that runs out of time, or is moved off its node, is queued again by submitit, one that died by the run; both
    go on from the checkpoints. Jobs of a run that was killed are cancelled when it is resumed.

    Args:
        device: of works that train; None for the GPU.

    Keyword Args:
        cluster: ``slurm``, or ``local`` for processes of this machine, one per work and all at once.
        num_gpus: GPUs of a work that trains; None for one, and for none where the device is another.
        num_cpus: CPU cores of a work that trains.
        hours: that a job may take.
        parameters: further ones of submitit's ``update_parameters``.
        retries: how often a work is tried again whose job died.

    Raises:
        ImportError: if submitit is not installed.
        ValueError: if there is no Slurm, or a part of a GPU is asked for.
    """

    def __init__(
        self,
        device: str | None = None,
        *,
        cluster: str = "slurm",
        num_gpus: float | None = None,
        num_cpus: int = 1,
        hours: float = 24,
        parameters: Mapping[str, Any] | None = None,
        retries: int = 3,
    ) -> None:
        self.submitit: Any = require("submitit", extra="submitit", purpose="engine=submitit")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise ValueError(
                "engine=submitit submits jobs with sbatch, which this machine does not have: start the run on a login "
                "node, or take engine.cluster=local to try it out with processes"
            )
        if num_gpus is None:
            num_gpus = float(device is None or device.startswith("cuda")) if cluster == "slurm" else 0
        if num_gpus != int(num_gpus):
            raise ValueError(
                f"Slurm gives whole GPUs, found engine.num_gpus={num_gpus:g}: tasks_per_batch puts several policies on "
                "one"
            )
        self.device = device or ("cuda" if num_gpus else "cpu")
        self.cluster, self.num_gpus, self.num_cpus = cluster, int(num_gpus), num_cpus
        self.hours, self.parameters, self.retries = hours, dict(parameters or {}), retries

    @property
    def batches(self) -> int:
        return 1  # Slurm decides; no batch is made smaller for the sake of more of them

    def run(
        self, works: Sequence[Work], folder: Path, *, report: Report, ended: Ended, failed: Failed | None = None
    ) -> None:
        place = folder.absolute() / _FOLDER
        place.mkdir(parents=True, exist_ok=True)
        with finishing(), locked(place) as free:
            if free is False:
                raise BlockingIOError(f"another process waits for the jobs of {place}: let it end, or stop it")
            _Jobs(self, works, place, report, ended, failed).finish()
        check_stop()

    def executor(self, folder: Path, *, trains: bool) -> Any:
        """That of submitit for works of a kind."""
        executor = self.submitit.AutoExecutor(folder=folder, cluster=self.cluster)
        cores, gpus = (self.num_cpus, self.num_gpus) if trains else (1, 0)
        executor.update_parameters(timeout_min=max(1, round(60 * self.hours)), cpus_per_task=cores, gpus_per_node=gpus)
        executor.update_parameters(**self.parameters)
        return executor


class _Jobs:
    """The jobs of some works: which run, what they have said, and what has become of those that have ended."""

    def __init__(
        self,
        engine: SubmititEngine,
        works: Sequence[Work],
        folder: Path,
        report: Report,
        ended: Ended,
        failed: Failed | None,
    ) -> None:
        self.engine, self.works, self.folder = engine, works, folder
        self.report, self.ended, self.failed = report, ended, failed
        self._cancel_earlier()
        self.running: dict[int, Any] = {}
        self.tries, self.read = [0] * len(works), [0] * len(works)
        self.failure: BaseException | None = None

    def finish(self) -> None:
        """Does all of them, as :meth:`.Engine.run` says; after a failure those that wait in the queue run, too."""
        try:
            self._submit(range(len(self.works)))
            while self.running and not stop_asked():
                time.sleep(_WAIT)
                for number, job in list(self.running.items()):
                    done = job.done()  # before what it has said is read, so that nothing is left unread
                    self._pass_on(number)
                    if done:
                        self._end(number)
        finally:
            for job in self.running.values():
                job.cancel(check=False)
            (self.folder / _JOBS).unlink(missing_ok=True)
        if self.failure is not None:
            raise self.failure

    def _submit(self, numbers: Sequence[int]) -> None:
        for trains in (True, False):
            chosen = [number for number in numbers if self.works[number].trains is trains]
            if not chosen:
                continue
            executor = self.engine.executor(self.folder, trains=trains)
            for number in chosen:
                self._said(number).unlink(missing_ok=True)
            with executor.batch():  # one array
                jobs = [executor.submit(_Job(self.works[number].absolute(), self._said(number))) for number in chosen]
            for number, job in zip(chosen, jobs, strict=True):
                self.running[number], self.read[number] = job, 0
                self.tries[number] += 1
        replace_file(self.folder / _JOBS, json.dumps([job.job_id for job in self.running.values()]).encode())

    def _said(self, number: int) -> Path:
        return self.folder / f"reports-{number}.jsonl"

    def _pass_on(self, number: int) -> None:
        file = self._said(number)
        if not file.exists():
            return
        with open(file, "rb") as lines:
            lines.seek(self.read[number])
            said = lines.read()
        whole = said[: said.rfind(b"\n") + 1]
        self.read[number] += len(whole)
        for line in whole.splitlines():
            self.report(*json.loads(line))

    def _end(self, number: int) -> None:
        """Looks whether a job did its work, submits it again, or notes why it failed."""
        work, job = self.works[number], self.running.pop(number)
        try:
            failure = job.result()
        except self.engine.submitit.core.utils.UncompletedJobError as error:
            said = f"{work.name}: its job {job.job_id} died"
            if self.tries[number] <= self.engine.retries:
                torchrl_logger.warning(f"{said}; it is tried again ({self.tries[number]} of {self.engine.retries})")
                self._submit([number])
                return
            failure = ChildProcessError(f"{said}, for the {self.tries[number]}. time: {error}")
        for file in self.folder.glob(f"{job.job_id}_*.pkl"):
            file.unlink()
        self._said(number).unlink(missing_ok=True)
        if failure is None:
            self.ended(work)
        elif self.failed is not None:
            self.failed(work, failure)
        elif self.failure is None:
            self.failure = failure

    def _cancel_earlier(self) -> None:
        """Ends the jobs of a run that was killed: they would write to the files of this one."""
        file = self.folder / _JOBS
        if self.engine.cluster == "slurm" and file.exists():
            for number in json.loads(file.read_text()):
                self.engine.submitit.SlurmJob(self.folder, str(number)).cancel(check=False)


@dataclass(frozen=True)
class _Job:
    """What a job does; submitit pickles it.

    Args:
        work: with absolute paths.
        said: file that its reports are written to, a line each.
    """

    work: Work
    said: Path

    def __call__(self) -> Exception | None:
        """Returns what the work raised, for the run to raise it as it is."""
        try:
            self.work.check_needs()
            with stoppable(), self.work.held(), open(self.said, "a", buffering=1) as file:
                self.work(lambda *message: file.write(json.dumps(message) + "\n"))
        except Exception as error:
            return error
        return None

    def checkpoint(self) -> Any:
        """What is queued again when the job runs out of time: the same, which goes on from the checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
