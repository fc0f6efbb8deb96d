"""Where the transitions of rows and episodes are: their numbers, and the places at which slices may start."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

__all__ = ["EpisodeLayout", "RowLayout", "SliceStarts"]


class SliceStarts(NamedTuple):
    """The places at which slices may start.

    Args:
        places: number of them.
        rows: number of rows or episodes that have one.
        transitions: number of transitions in these.
        ends: for episodes, places of an episode and all before it [N]; None for rows, which have equally many.
    """

    places: int
    rows: int
    transitions: int
    ends: torch.Tensor | None = None


class RowLayout:
    """Rows of L transitions each: item i is transition ``i % L`` of row ``i // L``.

    Args:
        num_rows: number of rows N.
        length: transitions of a row, L.
    """

    def __init__(self, num_rows: int, length: int) -> None:
        self.num_rows, self.length = num_rows, length
        self.num_transitions, self.longest = num_rows * length, length

    def locate(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and step of each item."""
        return np.divmod(items, self.length)

    def lengths(self, row: np.ndarray) -> int | np.ndarray:
        """Transitions of rows."""
        return self.length

    def starts(self, slice_len: int, start: int, stop: int | None, strict: bool) -> SliceStarts:
        """Places at which slices of ``slice_len`` transitions may start, see :class:`.EpisodeSliceSampler`."""
        last = max(self.length - slice_len + 1, 0 if strict else 1)
        count = max(min(last, last if stop is None else stop) - start, 0)
        rows = self.num_rows if count else 0
        return SliceStarts(count * self.num_rows, rows, rows * self.length)

    def slices(self, starts: SliceStarts, drawn: torch.Tensor, slice_len: int, start: int) -> torch.Tensor:
        """Items [B, T] of the slices at the places ``drawn`` [B, 1], the last repeated where an episode is shorter."""
        each = starts.places // self.num_rows
        row = torch.div(drawn, each, rounding_mode="floor")
        first = row * self.length + (drawn - row * each) + start
        return first + torch.arange(slice_len).clamp_max_(self.length - 1)


class EpisodeLayout:
    """Episodes of E_1, E_2, ... transitions one after the other.

    Args:
        lengths: transitions of each episode, int64 [N].
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self._lengths = lengths
        self._ends = lengths.cumsum()
        self._firsts = self._ends - lengths
        self.num_rows, self.num_transitions = len(lengths), int(self._ends[-1])
        self.longest = int(lengths.max())

    def locate(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Episode and step of each item."""
        if items.ndim == 2 and items.size:
            row = self._row(items[:, 0])[:, None]
            step = items - self._firsts[row]
            if (step >= 0).all() and (step < self._lengths[row]).all():
                return np.broadcast_to(row, items.shape), step
        row = self._row(items)
        return row, items - self._firsts[row]

    def _row(self, items: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._ends, items, side="right")

    def lengths(self, row: np.ndarray) -> np.ndarray:
        """Transitions of episodes."""
        return self._lengths[row]

    def starts(self, slice_len: int, start: int, stop: int | None, strict: bool) -> SliceStarts:
        """Places at which slices of ``slice_len`` transitions may start, see :class:`.EpisodeSliceSampler`."""
        last = np.maximum(self._lengths - slice_len + 1, 0 if strict else 1)
        each = np.maximum((last if stop is None else np.minimum(last, stop)) - start, 0)
        ends, some = each.cumsum(), each > 0
        return SliceStarts(int(ends[-1]), int(some.sum()), int(self._lengths[some].sum()), torch.from_numpy(ends))

    def slices(self, starts: SliceStarts, drawn: torch.Tensor, slice_len: int, start: int) -> torch.Tensor:
        """Items [B, T] of the slices at the places ``drawn`` [B, 1], the last repeated where an episode is shorter."""
        assert starts.ends is not None
        row = torch.searchsorted(starts.ends, drawn, right=True)
        ends, firsts = torch.from_numpy(self._ends), torch.from_numpy(self._firsts)
        before = torch.where(row > 0, starts.ends[row - 1], 0)
        first = firsts[row] + (drawn - before) + start
        return torch.minimum(first + torch.arange(slice_len), ends[row] - 1)
