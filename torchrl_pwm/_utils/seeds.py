"""Draws that leave torch's global generator as it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator of the CPU for the block; after it, it is where it was.

    ``torch.manual_seed`` would seed those of the GPUs too, now or when CUDA starts, and nothing would put them back.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Draws inside leave no trace in torch's global generators, those of the GPUs included."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


def seed_worker_process(seed: int, parent: int) -> None:
    """Seeds torch's global generator, if this process is not the one with the id ``parent``.

    Processes that are started anew all begin with the same generator: without a seed of its own each worker of a
    collector would draw the same random actions.
    """
    if os.getpid() != parent:
        torch.manual_seed(seed)


def make_generator(device: torch.device | str | None, seed: int = 0) -> torch.Generator:
    """A generator whose draws land on ``device``; of ``meta`` tensors, which have no numbers, one of the CPU."""
    place = torch.device("cpu" if device is None else device)
    return torch.Generator("cpu" if place.type == "meta" else place).manual_seed(seed)


def uniform_actions(*shape: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Actions of this shape, uniform in [-1, 1], on the generator's device."""
    return 2 * torch.rand(*shape, generator=generator, device=generator.device, dtype=dtype) - 1


class TorchGenerators:
    """The global torch generators as one component of a checkpoint.

    A host may have fewer GPUs than the one that saved it, or more: those that both have go on where they were.
    """

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        torch.set_rng_state(state_dict["cpu"])
        if "cuda" in state_dict and torch.cuda.is_available():
            for index, state in zip(range(torch.cuda.device_count()), state_dict["cuda"]):
                torch.cuda.set_rng_state(state, index)


class OwnGenerators(TorchGenerators):
    """Global torch generators of one of several trainings in a process, in force inside ``with``.

    They begin where the global ones are when this is made. What is saved is what a training alone in its process would.

    Examples:
        >>> with kept_generators():
        ...     _ = torch.manual_seed(0)
        ...     own = OwnGenerators()
        ...     first = torch.rand(())
        ...     with own:
        ...         again = torch.rand(())
        >>> torch.equal(first, again)
        True
    """

    def __init__(self) -> None:
        self._own = TorchGenerators.state_dict(self)
        self._outside: dict[str, Any] | None = None

    def __enter__(self) -> OwnGenerators:
        self._outside = TorchGenerators.state_dict(self)
        TorchGenerators.load_state_dict(self, self._own)
        return self

    def __exit__(self, *_: object) -> None:
        self._own, outside = TorchGenerators.state_dict(self), self._outside
        self._outside = None
        if outside is not None:
            TorchGenerators.load_state_dict(self, outside)

    def state_dict(self) -> dict[str, Any]:
        return self._own if self._outside is None else super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._outside is None:
            self._own = state_dict
        else:
            super().load_state_dict(state_dict)
