"""Steps on disk: what a step holds, and the reader of blocks of steps."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["Steps", "StepsFile", "split_steps"]

# Reading ahead fills the cache of a file that fits into it, but around each block of a larger one it only reads what is
# thrown away again.
_READAHEAD_LIMIT = 4 << 30
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
    """A file of rows of steps [N, L + 1, W], opened for reading blocks of consecutive steps anywhere in it.

    A block is one piece of the file and is copied from it by one system call. Nothing stays mapped, so the memory of
    the process does not grow with what it has read. A read keeps no position: threads and forked processes share the
    open file. It is closed with the object.

    Args:
        path: the file, of the size that dtype and shape give.
        dtype: type on disk.
        shape: (N, L + 1, W).

    Attributes:
        array: the whole file as a read-only memory map.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path = path
        self._dtype = np.dtype(dtype)
        self._length, self._width = shape[1:]
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        mapping = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        if len(mapping) > _READAHEAD_LIMIT and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self.array = np.frombuffer(mapping, self._dtype).reshape(shape)

    def read(self, row: np.ndarray, step: np.ndarray, count: int) -> np.ndarray:
        """Blocks of ``count`` steps that begin at step ``step`` [B] of row ``row`` [B] -> [B, count, W].

        Raises:
            ValueError: if the file ends before a block does.
        """
        first = row * self._length + step
        if not _HAS_PREADV:
            return self.array.reshape(-1, self._width)[first[:, None] + np.arange(count)]
        step_size = self._width * self._dtype.itemsize
        size = count * step_size
        blocks = np.empty(len(first) * size, np.uint8)
        memory = blocks.data
        for begin, place in zip(range(0, len(blocks), size), (first * step_size).tolist()):
            if os.preadv(self._descriptor, (memory[begin : begin + size],), place) != size:
                raise ValueError(
                    f"{self.path} has {os.fstat(self._descriptor).st_size} bytes, but a block ends at byte "
                    f"{place + size}; the file was cut after it was opened: restore it or make the data set again"
                )
        return blocks.view(self._dtype).reshape(len(first), count, self._width)
