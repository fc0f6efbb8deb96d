"""What an engine is given to do, and what every engine can."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torchrl_pwm._utils.devices import give_back_memory
from torchrl_pwm._utils.files import locked, replace_file

Report = Callable[..., object]
Ended = Callable[["Work"], object]
Failed = Callable[["Work", BaseException], object]
Value = TypeVar("Value")

_PATIENCE = 300.0  # seconds that a work waits for one before it that is still in its folders
_PAUSE = 0.2  # seconds between two looks


@dataclass(frozen=True)
class Work:
    """A part of a run that a process, here or on another machine, does by itself.

    Args:
        function: of a module, or a ``functools.partial`` of one, called with ``job`` and a function that reports how it
            goes.
        job: what it is about: dataclasses, lists and tuples of them, in which every place is a :class:`~pathlib.Path`.
        name: what it is called in a sentence.
        reads: files that are sent to the machine that does it.
        needs: files and folders that this machine must see under the same path.
        folders: that it works in, where a later process goes on from its checkpoints. It leaves its results there.
        files: that it leaves elsewhere.
        trains: whether it is done on the device of the run. Any other takes one CPU core.
        alone: whether it is a run by itself, which needs a process in which nothing was done before, and keeps others
            out of its folders without help. Its failure concerns no other: :meth:`.Engine.run` is given ``failed``.
    """

    function: Callable[[Any, Report], object]
    job: Any
    name: str
    reads: tuple[Path, ...] = ()
    needs: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    trains: bool = True
    alone: bool = False

    def __call__(self, report: Report) -> None:
        """Does it in this process, and gives back the memory that it took."""
        try:
            self.function(self.job, report)
        finally:
            give_back_memory()

    def check_needs(self) -> None:
        """Raises FileNotFoundError if this machine does not see what the work needs."""
        for path in self.needs:
            if not path.exists():
                raise FileNotFoundError(
                    f"{self.name} needs {path.absolute()}, which is not there on {socket.gethostname()}: put it on a "
                    "disk that all machines share, or a copy under the same path on each"
                )

    def absolute(self) -> Work:
        """The same work, wherever the process that does it was started."""
        return _with_paths(self, Path.absolute)

    def moved(self, paths: Sequence[Path], folder: Path) -> Work:
        """The same work with some of its absolute paths, and all below them, inside another folder."""

        def move(path: Path) -> Path:
            return mirrored(path, folder) if any(path.is_relative_to(root) for root in paths) else path

        return _with_paths(self, move)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps others out of its folders for the block; for a work that is alone, waits until they are out.

        Where a run was killed, what worked for it on another machine may take a moment longer to end.

        Raises:
            BlockingIOError: if another process does not leave one of them.
        """
        until = time.monotonic() + _PATIENCE
        with contextlib.ExitStack() as stack:
            for folder in self.folders:
                folder.mkdir(parents=True, exist_ok=True)
                while stack.enter_context(locked(folder)) is False:
                    if time.monotonic() > until:
                        raise BlockingIOError(f"another process does not leave {folder}: stop it, and resume the run")
                    time.sleep(_PAUSE)
            if self.alone:
                stack.close()
            yield


class Engine(ABC):
    """Does works, several at a time, each in a process that may die.

    Attributes:
        device: where works compute that train.
        num_cpus: CPU cores of each of them; those beyond the first evaluate beside it.
    """

    device: str
    num_cpus: int

    @property
    @abstractmethod
    def batches(self) -> int:
        """How many works that train are done at once, if there are so many."""

    @property
    def threads(self) -> int:
        """Torch threads of a work that trains; on a CPU one, so that numbers do not depend on what else runs."""
        return 1 if self.device == "cpu" else self.num_cpus

    def evaluators(self, batches: int) -> int:
        """Processes that evaluate beside each of so many works that train."""
        return self.num_cpus - 1

    @abstractmethod
    def run(
        self, works: Sequence[Work], folder: Path, *, report: Report, ended: Ended, failed: Failed | None = None
    ) -> None:
        """Does all works.

        After a failure what runs goes on to its end, so that its results are kept, and what waits does not start. Where
        a signal ends the run, see :mod:`torchrl_pwm._utils.stopping`, what runs saves and ends.

        Args:
            works: with their results in ``folder``.
            folder: of the run or round.

        Keyword Args:
            report: called in this process with what the works report.
            ended: called in this process with each work whose results are in the folder.
            failed: called in this process with each work that failed, and what would be raised below; the others go on.

        Raises:
            ChildProcessError: if a process that did a work died, and dies again where it is tried again.
            Stopped: where a signal ended the run.
            BaseException: what the first work that failed raised.
        """


def mirrored(path: Path, folder: Path) -> Path:
    """The place of an absolute path inside another folder, in which neighbours stay neighbours."""
    path = path.absolute()
    return folder / path.relative_to(path.anchor)


def pack(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of all files in a folder, by relative name."""
    if path.is_file():
        return {"": path.read_bytes()}
    files = (file for file in path.rglob("*") if file.is_file() and not file.name.endswith(".tmp"))
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def unpack(packed: dict[str, bytes], path: Path) -> None:
    """Writes what :func:`pack` read to a place in which there may be an earlier state of it.

    A folder is made beside its place and put there when it is whole: a process that dies leaves the earlier state, or
    none.
    """
    if "" in packed:
        return replace_file(path, bytes(packed[""]))
    aside = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, content in packed.items():
        replace_file(aside / name, bytes(content))
    if path.is_dir():
        shutil.rmtree(path)
    aside.rename(path)


def _with_paths(value: Any, move: Callable[[Path], Path]) -> Any:
    """A value with every path inside it moved."""
    if isinstance(value, Path):
        return move(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_with_paths(entry, move) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {entry.name: _with_paths(getattr(value, entry.name), move) for entry in dataclasses.fields(value)}
        return dataclasses.replace(value, **entries)
    return value
