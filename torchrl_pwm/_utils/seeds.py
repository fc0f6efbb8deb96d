"""Draws that leave torch's global generator as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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


class TorchGenerators:
    """The global torch generators as one component of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        torch.set_rng_state(state_dict["cpu"])
        if "cuda" in state_dict and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state_dict["cuda"])
