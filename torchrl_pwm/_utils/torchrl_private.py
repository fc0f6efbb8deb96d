"""Private names of TorchRL that there is no public way around."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase


def collector_td(collector: Any) -> TensorDictBase:
    """The TensorDict of the step that a collector stands at."""
    return collector._carrier


def set_collector_td(collector: Any, td: TensorDictBase) -> None:
    """Puts a collector at another step."""
    collector._carrier = td


def buffer_generator(buffer: Any) -> torch.Generator | None:
    """The generator of a replay buffer; None where it draws from torch's global one."""
    return buffer._rng


def buffer_prefetches(buffer: Any) -> bool:
    """Whether a replay buffer reads batches ahead."""
    return bool(getattr(buffer, "_prefetch", False))
