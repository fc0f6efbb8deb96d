"""The handles that this process holds open."""

from __future__ import annotations

import os
from pathlib import Path

LISTED = Path("/proc/self/fd")


def open_handles() -> set[tuple[str, str]]:
    """Number and target of each; of a file its path, of a pipe or a socket its own number."""
    return {(link.name, target) for link in LISTED.iterdir() if (target := _target(link))}


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:  # that of the listing itself
        return ""
