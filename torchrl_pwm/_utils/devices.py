"""Devices and threads that tensors are computed on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def choose_device(device: str | None) -> str:
    """The device asked for, or the best there is."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Computes with so many threads in the block, as before after it; ``None`` or 0 changes nothing."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads:
            torch.set_num_threads(before)


def one_thread() -> contextlib.AbstractContextManager[None]:
    """Computes with one thread: the same sums in the same order, whatever else runs and in whichever process."""
    return torch_threads(1)
