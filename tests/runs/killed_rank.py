"""``python -m tests.runs.killed_rank COMMAND ...``: the command line, whose last process kills itself once, midway.

To be started by torchrun, which then starts all processes again.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from torchrl_pwm.runs.cli import main
from torchrl_pwm.trainers.distributed import DistributedWorldModelStepper

UPDATES = 4  # that the process lives to begin


def die_midway() -> None:
    update, calls = DistributedWorldModelStepper.update, [0]

    def counted(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == UPDATES:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, batch)

    DistributedWorldModelStepper.update = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    if last and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        die_midway()
    main()
