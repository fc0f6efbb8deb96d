"""Whether a process is one of several that a launcher, such as ``torchrun``, started for one job."""

from __future__ import annotations

import os

__all__ = ["attempt", "launched", "local_rank", "rank"]

_SAID = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether the environment says which of how many processes this is, as ``torchrun`` does."""
    return all(name in os.environ for name in _SAID)


def rank() -> int:
    """Number of this process among all, from 0 on; 0 of one that was started alone."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """Number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


def attempt() -> int:
    """How often ``torchrun`` has started the processes of this job again.

    On several machines each counts the failures of its own alone, which would not agree: 0 there.
    """
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if alone else 0
