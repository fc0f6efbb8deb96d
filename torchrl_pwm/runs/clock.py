"""Wall time of a run in all of its sittings."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.runs.folder import works_in
from torchrl_pwm.runs.saved import read_seconds


class RunClock:
    """Seconds that a run has taken, with those before it was resumed.

    As a context it notes them in the run's folder, in ``seconds.json``, as it ends: finished, stopped, or by an error.
    What was done by a process that was killed is not in them.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file, self._start = folder, folder / "seconds.json", time.perf_counter()

    @property
    def seconds(self) -> float:
        """All of them.

        Raises:
            DamagedFileError: if what was noted is damaged.
        """
        return read_seconds(self._file) + time.perf_counter() - self._start

    def __enter__(self) -> RunClock:
        return self

    def __exit__(self, *_: object) -> None:
        if works_in(self._folder):
            with contextlib.suppress(DamagedFileError):  # of which the report spoke, or speaks when there is one
                replace_file(self._file, json.dumps(round(self.seconds, 1)).encode())
