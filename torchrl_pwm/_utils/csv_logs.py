"""Metrics in CSV files, which a resumed run goes on with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from torchrl.record.loggers import Logger
from torchrl.record.loggers.csv import CSVLogger

from torchrl_pwm._utils.files import replace_file


def rewind_metrics(logger: Logger | None, step: int) -> None:
    """Removes the rows of steps after ``step``, and a last row cut short, from a CSVLogger's files.

    Other loggers keep what they were told; their backends show the later value of a step.
    """
    if not isinstance(logger, CSVLogger):
        return
    for file in Path(logger.experiment.log_dir).glob("scalars/**/*.csv"):
        rows = file.read_text(errors="replace").splitlines(keepends=True)
        kept = [row for row in rows if row.endswith("\n") and -1 < _step(row) <= step]
        if len(kept) < len(rows):
            _close(logger, file)
            if kept:
                replace_file(file, "".join(kept).encode())
            else:
                file.unlink()


def _step(row: str) -> int:
    """The step of a row; -1 of one that a machine left damaged when it went down."""
    first = row.split(",")[0]
    return int(first) if first.isdecimal() else -1


def _close(logger: CSVLogger, file: Path) -> None:
    # An open file would go on writing to the one that is replaced.
    if (stream := logger.experiment.files.pop(str(file), None)) is not None:
        with contextlib.suppress(OSError):  # of a row that there was no room for
            stream.close()


def _write_row(logger: Logger, key: str, value: float, step: int) -> None:
    """Logs a number; where the disk has no room for a row, the file ends with the row before.

    Raises:
        OSError: then, with the name of the file.
    """
    try:
        logger.log_scalar(key, value, step=step)
    except OSError as error:
        if not isinstance(logger, CSVLogger):
            raise
        file = Path(logger.experiment.log_dir) / "scalars" / f"{key}.csv"
        _close(logger, file)
        with contextlib.suppress(OSError):
            whole = file.read_bytes().rpartition(b"\n")
            os.truncate(file, len(whole[0]) + len(whole[1]))
        raise OSError(error.errno, error.strerror, str(file)) from error


def logged_rows(logger: Logger | None, steps: Collection[int]) -> set[tuple[str, int]]:
    """Key and step of the rows that a CSVLogger's files hold of these steps; of other loggers none."""
    if not isinstance(logger, CSVLogger) or not steps:
        return set()
    folder = Path(logger.experiment.log_dir) / "scalars"
    return {
        (file.relative_to(folder).with_suffix("").as_posix(), _step(row))
        for file in folder.glob("**/*.csv")
        for row in file.read_text().splitlines()
        if _step(row) in steps
    }


class MetricsLog:
    """Numbers for a logger, each key at a step once."""

    def __init__(self, logger: Logger | None) -> None:
        self.logger = logger
        self._steps: dict[str, int] = {}
        self._kept: set[tuple[str, int]] = set()

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs what was not logged of this step before."""
        for key, value in metrics.items():
            known = self._steps.get(key) == step or (key, step) in self._kept
            if self.logger is not None and not known:
                _write_row(self.logger, key, value, step)
            self._steps[key] = step

    def close(self) -> None:
        """Closes the files of a CSVLogger, which it would hold until it is collected; a further row opens its own."""
        if isinstance(self.logger, CSVLogger):
            for file in list(self.logger.experiment.files):
                if file.endswith(".csv"):  # others it would write anew
                    _close(self.logger, Path(file))

    def rewind(self, step: int, repeated: Collection[int] = ()) -> None:
        """Removes what is after ``step``, see :func:`rewind_metrics`, and keeps what there is of ``repeated`` steps."""
        rewind_metrics(self.logger, step)
        self._kept = logged_rows(self.logger, repeated)
