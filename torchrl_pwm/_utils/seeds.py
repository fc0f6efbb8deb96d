"""Draws that leave torch's global generator as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator for the block; after it, the CPU's is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def uniform_actions(*shape: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Actions of this shape, uniform in [-1, 1], on the generator's device."""
    return 2 * torch.rand(*shape, generator=generator, device=generator.device, dtype=dtype) - 1
