"""Devices and threads that tensors are computed on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import Bounded, TensorSpec, Unbounded

_LARGEST_BLOCK = 33_000_000  # bytes; with what torch and the C library add, still below 32 MiB


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


def device_of(policy: Any) -> torch.device | None:
    """Where the first parameter of a policy is; ``None`` if it has none."""
    first = next(policy.parameters(), None) if isinstance(policy, nn.Module) else None
    return None if first is None else first.device


def is_host(device: torch.device | str | None) -> bool:
    """Whether reading a number waits for nothing there; ``None`` is the CPU."""
    return device is None or torch.device(device).type == "cpu"


def readable(*values: Tensor | None) -> bool:
    """Whether numbers can be read: not in compiled or captured code, nor those of ``meta`` tensors, which have none."""
    if torch.compiler.is_compiling() or any(value is not None and value.is_meta for value in values):
        return False
    return not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())


def place_buffers(module: nn.Module) -> None:
    """Puts the buffers of a module where its first parameter is.

    Losses are given networks that may have moved before; what they add themselves would stay on the CPU.
    """
    device = next(module.parameters()).device
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.device != device:
                setattr(part, name, buffer.to(device))


def send(batch: TensorDictBase, device: torch.device | str | None) -> TensorDictBase:
    """A batch on a device; to a GPU by pinned memory, for which nobody waits. Stays where it is for ``None``."""
    if device is None:
        return batch
    if torch.device(device).type != "cuda":
        return batch.to(device)
    leaves = batch.values(True, True)
    pinned = batch.pin_memory() if all(is_host(leaf.device) for leaf in leaves) else batch
    return pinned.to(device, non_blocking=True)


def spec_on(spec: TensorSpec, device: torch.device | str | None) -> TensorSpec:
    """The spec on a device. TorchRL compares the bounds of an env's specs; those of ``meta`` have no numbers."""
    if device is not None and torch.device(device).type == "meta" and isinstance(spec, Bounded):
        return Unbounded(spec.shape, device=device, dtype=spec.dtype)
    return spec if device is None else spec.to(device)


def keep_freed_memory() -> None:
    """Lets the process keep what it frees, up to 64 MB, for what comes next.

    Linux's C library gives free memory back beyond twice the largest block that it has ever mapped and freed, 32 MB at
    most. Where that was small, every update returns its memory and takes it again page by page, at a sixth of its time
    if it is a small one. One such block, freed before anything is written into it, ends that.
    """
    torch.empty(_LARGEST_BLOCK, dtype=torch.uint8, device="cpu")


def give_back_memory() -> None:
    """Frees what only refers to itself, and gives the memory back to the system, where the C library can.

    Simulators that are closed wait for Python's next collection, and then leave the heap in pieces, of which the
    library gives nothing back by itself. One without the other lets resident memory wander by hundreds of MB.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not Linux
        ctypes.CDLL(None).malloc_trim(0)


def reads_ahead(device: torch.device | str) -> dict[str, Any]:
    """Options of a replay buffer of files: for a GPU, which must not wait for the disk, batches are read ahead."""
    return {"prefetch": 2, "pin_memory": True} if torch.device(device).type == "cuda" else {}


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Computes with so many threads in the block, as before after it; with ``None`` or 0 as many as before it."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def one_thread() -> contextlib.AbstractContextManager[None]:
    """Computes with one thread: the same sums in the same order, whatever else runs and in whichever process."""
    return torch_threads(1)
