"""Choice of a device."""

from __future__ import annotations

import torch


def choose_device(device: str | None) -> str:
    """The device asked for, or the best there is."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
