"""What the scripts of ``examples/`` share: a run from the command line, and errors of its user as one line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from torchrl_pwm.runs.folder import open_run

# What a wrong option, file or package raises; each says what to do.
_USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    ImportError,
    FloatingPointError,
    InstantiationException,
)


def run_command(run: Callable[[DictConfig, Path], Path], config: DictConfig) -> tuple[DictConfig, Path, Path]:
    """Calls ``run(config, folder)`` for a new or resumed run, inside ``hydra.main``.

    What a wrong option, file or package raises ends the process with its message; with ``HYDRA_FULL_ERROR=1``, with the
    traceback.

    Args:
        run: returns the path of the summary.
        config: as composed by Hydra.

    Returns:
        The configuration of the run, its folder, and what ``run`` returned.
    """
    with user_errors():
        config, folder = open_run(config, overrides=HydraConfig.get().overrides.task)
        return config, folder, run(config, folder)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the process with the message of what a wrong option, file or package raises."""
    try:
        yield
    except _USER_ERRORS as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if isinstance(error, InstantiationException) and isinstance(error.__cause__, _USER_ERRORS):
            error = error.__cause__  # Hydra's own message repeats it and adds the call.
        sys.exit(f"{type(error).__name__}: {error}\n(HYDRA_FULL_ERROR=1 shows where this was raised.)")
