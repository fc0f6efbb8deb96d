"""What TorchRL logs of its own workings, kept from the user."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from torchrl import torchrl_logger


@contextlib.contextmanager
def quiet_torchrl() -> Iterator[None]:
    """Keeps what TorchRL says of its own workings from the user; its warnings and our own lines stay."""

    def ours(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or "torchrl_pwm" in Path(record.pathname).parts

    torchrl_logger.addFilter(ours)
    try:
        yield
    finally:
        torchrl_logger.removeFilter(ours)
