"""Devices and threads that tensors are computed on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def choose_device(device: str | None) -> str:
    """The device asked for, or the best there is.

    Raises:
        ValueError: if there is no such device.
    """
    if not device:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda or another of torch's, found {device!r}.") from error
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.type == "cuda" and (wanted.index or 0) >= there:
        found = f"finds {there} GPU{'s' * (there != 1)}" if there else "finds no GPU"
        raise ValueError(
            f"device={device}, but this PyTorch ({torch.__version__}) {found}: leave device out for the best there is, "
            "or install a build with CUDA from pytorch.org."
        )
    return device


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
