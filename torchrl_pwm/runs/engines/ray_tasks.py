"""Tasks of Ray, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrl import torchrl_logger

from torchrl_pwm._utils.errors import first_line
from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.stopping import SIGNALS, check_stop, finishing, stop_asked, stoppable
from torchrl_pwm.runs.engines.work import Ended, Engine, Failed, Report, Work, mirrored, pack, unpack

Packed = dict[str, Any]

_QUIET = {"log_to_driver": False, "logging_level": "warning"}
_PATIENCE = 10.0  # seconds in which a cluster answers
_WAIT = 0.5  # seconds between two looks at what workers report


class RayEngine(Engine):
    """A task of Ray for each work.

    What works read, such as the frozen world model, is placed in the object store once. A worker that sees the run
    folder works in it; any other in a folder of its own, whose files are sent back when the work is done. A work whose
    worker died is tried again, from its checkpoints where the folder is shared, else anew.

    Args:
        device: of works that train; None for the GPU where they have a share in one.

    Keyword Args:
        workers: CPU cores of a cluster that is started; None for all of the machine.
        address: of a cluster that runs; None for ``RAY_ADDRESS``, and without it one is started on this machine.
        num_gpus: GPUs, or the share in one, of a work that trains; None for one where the cluster has any.
        num_cpus: CPU cores of a work that trains.
        batches: that train at once; None for as many as there is room for.
        retries: how often a work is tried again whose worker died.

    Raises:
        ImportError: if Ray is not installed.
        ConnectionError: if no cluster answers at the address.
    """

    def __init__(
        self,
        device: str | None = None,
        *,
        workers: int | None = None,
        address: str | None = None,
        num_gpus: float | None = None,
        num_cpus: int = 1,
        batches: int | None = None,
        retries: int = 3,
    ) -> None:
        self.ray: Any = require("ray", extra="ray", purpose="engine=ray")
        self._device, self._gpus, self._batches = device, num_gpus, batches
        self.workers, self.num_cpus, self.retries = workers, num_cpus, retries
        if address := address or os.environ.get("RAY_ADDRESS"):
            self._connect(address)

    @property
    def device(self) -> str:  # type: ignore[override]
        return self._device or ("cuda" if self.num_gpus else "cpu")

    @property
    def num_gpus(self) -> float:
        """Of a work that trains."""
        if self._gpus is None:
            wanted = self._device is None or self._device.startswith("cuda")
            self._gpus = float(wanted and any(machine.get("GPU", 0) >= 1 for machine in self._machines()))
        return self._gpus

    @property
    def batches(self) -> int:
        if self._batches is None:
            machines = self._machines()
            self._batches = sum(self._room(machine) for machine in machines)
            if not self._batches:
                there = "; ".join(f"{m.get('CPU', 0):g} CPU cores and {m.get('GPU', 0):g} GPUs" for m in machines)
                raise ValueError(
                    f"a batch asks for engine.num_cpus={self.num_cpus} and engine.num_gpus={self.num_gpus:g}, and no "
                    f"machine of the cluster has both (there are: {there}): ask for less, or say with engine.batches "
                    "how many are done at once by machines that are yet to come"
                )
        return self._batches

    def run(
        self, works: Sequence[Work], folder: Path, *, report: Report, ended: Ended, failed: Failed | None = None
    ) -> None:
        self._connect()
        with finishing(), _marked(folder) as mark:
            _Tasks(self, works, mark, report, ended, failed).finish()
        check_stop()

    def _connect(self, address: str | None = None) -> None:
        if self.ray.is_initialized():
            return
        with _own_signals():
            if address:
                self._join(address)
            else:
                self._start()

    def _join(self, address: str) -> None:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            if port.isdigit():  # Ray itself asks for minutes
                socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
            self.ray.init(address, **_QUIET)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConnectionError(
                f"no Ray cluster answers at {address}, which engine.address or RAY_ADDRESS names ({first_line(error)})"
                ": start one with `ray start --head`, or name none to have one started on this machine"
            ) from error

    def _start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray.init(num_cpus=self.workers, include_dashboard=False, **_QUIET)
        there = self.ray.cluster_resources()
        torchrl_logger.info(
            "engine=ray: neither engine.address nor RAY_ADDRESS names a cluster; one was started for this run on this "
            f"machine, with {there.get('CPU', 0):g} CPU cores and {there.get('GPU', 0):g} GPUs"
        )

    def _machines(self) -> list[dict[str, float]]:
        self._connect()
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _room(self, machine: dict[str, float]) -> int:
        """How many works that train have room on a machine."""
        room = int(machine.get("CPU", 0) // self.num_cpus)
        if not self.num_gpus:
            return room
        gpus = int(machine.get("GPU", 0))
        # a share is of one GPU, and several are whole ones
        return min(room, int(gpus // self.num_gpus) if self.num_gpus >= 1 else gpus * int(1 / self.num_gpus))


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps this process's handlers of signals, in place of which Ray sets its own when it begins."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class _Mark:
    """A file of content that no other has, by which a worker sees whether it shares a folder with the driver."""

    file: Path
    content: str

    def seen(self) -> bool:
        return self.file.exists() and self.file.read_text() == self.content


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[_Mark]:
    """A folder with a mark in it for the block."""
    mark = _Mark(folder.absolute() / ".engine", secrets.token_hex(16))
    replace_file(mark.file, mark.content.encode())
    try:
        yield mark
    finally:
        mark.file.unlink(missing_ok=True)


class _Tasks:
    """The tasks of some works: which run, and what has become of those that have ended."""

    def __init__(
        self,
        engine: RayEngine,
        works: Sequence[Work],
        mark: _Mark,
        report: Report,
        ended: Ended,
        failed: Failed | None,
    ) -> None:
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.engine, self.ray, self.works = engine, engine.ray, works
        self.mark, self.report, self.ended, self.failed = mark, report, ended, failed
        # on the driver's machine: what outlives this one has nobody to report to
        here = NodeAffinitySchedulingStrategy(self.ray.get_runtime_context().get_node_id(), soft=False)
        self.messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.stored = {path: self.ray.put(pack(path)) for path in {path for work in works for path in work.reads}}
        self.running: dict[Any, int] = {}
        self.begun: dict[int, str] = {}  # on which machine
        self.tries = [0] * len(works)
        self.failure: BaseException | None = None
        self.cancelled = False

    def finish(self) -> None:
        """Does all of them, as :meth:`.Engine.run` says."""
        try:
            for number in range(len(self.works)):
                self._start(number)
            while self.running:
                found, _ = self.ray.wait(list(self.running), timeout=_WAIT)
                self._pass_on()
                for task in found:
                    self._end(task)
                if stop_asked() and not self.cancelled:
                    self._cancel(self.running)
        finally:
            self._cancel(self.running)
            self.messages.shutdown(force=True)
        if self.failure is not None:
            raise self.failure

    def _start(self, number: int) -> None:
        work, engine = self.works[number], self.engine
        resources = {"num_cpus": engine.num_cpus, "num_gpus": engine.num_gpus} if work.trains else {"num_cpus": 1}
        # a process that ends with its task does no other; options() does not take max_calls
        function = self.ray.remote(max_calls=1)(_do) if work.alone else self.ray.remote(_do)
        task = function.options(max_retries=0, name=work.name, **resources)
        stored = [self.stored[path] for path in work.reads]
        self.tries[number] += 1
        self.running[task.remote(work.absolute(), number, self.mark, self.messages, *stored)] = number

    def _pass_on(self) -> None:
        for number, machine, message in self.messages.get_nowait_batch(self.messages.size()):
            self.begun[number] = machine
            if message is not None:
                self.report(*message)

    def _end(self, task: Any) -> None:
        """Takes the results of a task, or starts it again, or notes why it failed."""
        errors = self.ray.exceptions
        number = self.running.pop(task)
        work = self.works[number]
        try:
            made = self.ray.get(task)
        except errors.TaskCancelledError:
            if not self.cancelled and self.failure is None:  # the machine was taken away, with a signal before
                self._lost(number, "was told to end")
        except errors.RayTaskError as error:
            self._fail(number, error.cause if isinstance(error.cause, BaseException) else error)
        except errors.RayError as error:
            self._lost(number, f"died ({type(error).__name__})")
        else:
            if made is not None:
                for path, packed in zip((*work.folders, *work.files), made, strict=True):
                    unpack(packed, path)
            self.ended(work)

    def _lost(self, number: int, how: str) -> None:
        work, machine = self.works[number], self.begun.pop(number, "a machine")
        said = f"{work.name}: its worker on {machine} {how}"
        if self.tries[number] > self.engine.retries:
            self._fail(
                number,
                ChildProcessError(
                    f"{said}, for the {self.tries[number]}. time, often for want of memory: take fewer batches at once "
                    "(engine.num_cpus, engine.num_gpus); what is finished is kept, and resume= goes on from there"
                ),
            )
        elif self.failure is None and not self.cancelled:
            torchrl_logger.warning(f"{said}; it is tried again ({self.tries[number]} of {self.engine.retries})")
            self._start(number)

    def _fail(self, number: int, failure: BaseException) -> None:
        if self.failed is not None:
            self.failed(self.works[number], failure)
        elif self.failure is None:
            self.failure = failure
            self._cancel([task for task, number in self.running.items() if number not in self.begun])

    def _cancel(self, tasks: Any) -> None:
        """Ends tasks as a signal would: those that run save first."""
        if tasks is self.running:
            self.cancelled = True
        for task in tasks:
            self.ray.cancel(task, force=False)


def _do(work: Work, number: int, mark: _Mark, messages: Any, *stored: Packed) -> list[Packed] | None:
    """Does a work in a process of Ray.

    Returns:
        What it has left, one by one, if the driver does not see it.
    """

    def say(message: tuple[Any, ...] | None) -> None:
        # Without waiting: a task that waits gives its cores away meanwhile.
        messages.actor.put_nowait.remote((number, socket.gethostname(), message))

    say(None)  # it has begun
    work.check_needs()
    shared = mark.seen()
    # By this signal Ray ends a task; one that was started in the background would not hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stoppable(), tempfile.TemporaryDirectory(prefix="torchrl-pwm-") as name:
        folder = Path(name)
        for path, packed in zip(work.reads, stored, strict=True):
            unpack(packed, mirrored(path, folder))
        left = () if shared else (*work.folders, *work.files)
        here = work.moved((*work.reads, *left), folder)
        with here.held():
            here(lambda *message: say(message))
        return None if shared else [pack(mirrored(path, folder)) for path in left]
