"""Steps on disk: what a step holds, and the reader of blocks of steps."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["Steps", "StepsFile", "split_steps"]

# Reading ahead fills the cache of a file that fits into it, but around each block of a larger one it only reads what is
# thrown away again.
_READAHEAD_LIMIT = 4 << 30
# Bytes of the blocks that are read before they are handed out: they stay in the processor's cache, and in memory that
# is not given back to the system and fetched again at each batch.
_AT_ONCE = 1 << 17
_HAS_PREADV = hasattr(os, "preadv")  # not on Windows


class Steps(NamedTuple):
    """T transitions: observation [..., T + 1, O], action [..., T, A] and reward [..., T]."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray


def split_steps(steps: np.ndarray, action_dim: int) -> Steps:
    """Views of steps [..., T + 1, O + A + 1]: one after the other observation, action and reward of each.

    The last step has the observation that the last transition leads to; its action and reward belong to none of the T
    transitions.
    """
    reward = steps.shape[-1] - 1
    action = reward - action_dim
    return Steps(steps[..., :action], steps[..., :-1, action:reward], steps[..., :-1, reward])


class StepsFile:
    """A file of steps [..., W], opened for reading blocks of consecutive steps anywhere in it.

    A block is one piece of the file and is copied from it by one system call. Nothing stays mapped, so the memory of
    the process does not grow with what it has read. A read keeps no position: threads and forked processes share the
    open file. It is closed with the object.

    Args:
        path: the file, of the size that dtype and shape give.
        dtype: type on disk.
        shape: (N, L + 1, W) for rows of one length, (S, W) for episodes one after the other.

    Attributes:
        array: the whole file as a read-only memory map.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path = path
        self._dtype = np.dtype(dtype)
        self._width = shape[-1]
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        mapping = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        if len(mapping) > _READAHEAD_LIMIT and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self.array = np.frombuffer(mapping, self._dtype).reshape(shape)

    def blocks(self, first: np.ndarray, count: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Blocks of ``count`` steps that begin at the steps ``first`` [B], counted from the beginning of the file.

        Yields:
            Which of the B blocks follow, and their steps [b, count, W], in memory that the next ones overwrite.

        Raises:
            ValueError: if the file ends before a block does.
        """
        size = count * self._width * self._dtype.itemsize
        at_once = max(1, _AT_ONCE // size)
        blocks = np.empty((at_once, count, self._width), self._dtype)
        memory = [(block.data,) for block in blocks]
        for start in range(0, len(first), at_once):
            here = first[start : start + at_once]
            if _HAS_PREADV:
                self._read(here, memory, size)
            else:
                blocks[: len(here)] = self.array.reshape(-1, self._width)[here[:, None] + np.arange(count)]
            yield slice(start, start + len(here)), blocks[: len(here)]

    def _read(self, first: np.ndarray, memory: list[tuple[memoryview]], size: int) -> None:
        """Reads ``size`` bytes from each first step [b], counted from the beginning of the file."""
        step_size = self._width * self._dtype.itemsize
        for place, block in zip((first * step_size).tolist(), memory):
            if os.preadv(self._descriptor, block, place) != size:
                raise ValueError(
                    f"{self.path} has {os.fstat(self._descriptor).st_size} bytes, but a block ends at byte "
                    f"{place + size}; the file was cut after it was opened: restore it or make the data set again"
                )
