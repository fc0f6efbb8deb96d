"""Devices and threads that tensors are computed on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def choose_device(device: str | None) -> str:
    """The device asked for, or the best there is."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread: the same sums in the same order, whatever else runs and in whichever process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
