"""Mean and standard deviation of observations that are seen a block at a time."""

from __future__ import annotations

import numpy as np

__all__ = ["ObservationMoments"]

_ROWS_AT_ONCE = 256


class ObservationMoments:
    """Mean and standard deviation of each observation entry, in float64 and little memory.

    Sums are taken about the first observation: far from it, squares would lose the small variations. They are added row
    by row, so the result does not depend on how the rows were divided into blocks.

    Examples:
        >>> import numpy as np
        >>> moments = ObservationMoments()
        >>> for block in np.arange(24.0).reshape(2, 2, 3, 2):
        ...     moments.update(block)
        >>> moments.mean.tolist()
        [11.0, 12.0]
    """

    def __init__(self) -> None:
        self.count = 0

    def update(self, observation: np.ndarray) -> None:
        """Adds rows of observations [n, T, O]."""
        for first in range(0, len(observation), _ROWS_AT_ONCE):
            block = np.array(observation[first : first + _ROWS_AT_ONCE], np.float64)
            if self.count == 0:
                self._origin = block[0, 0].copy()
                self._total = np.zeros_like(self._origin)
                self._squares = np.zeros_like(self._origin)
            block -= self._origin
            self.count += block.shape[0] * block.shape[1]
            self._total = _added(self._total, block.sum(1))
            self._squares = _added(self._squares, np.square(block, out=block).sum(1))

    @property
    def mean(self) -> np.ndarray:
        """[O]."""
        return self._origin + self._total / self.count

    @property
    def std(self) -> np.ndarray:
        """Population form [O]."""
        return np.sqrt(np.maximum(self._squares / self.count - (self._total / self.count) ** 2, 0.0))


def _added(start: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """start [O] + rows [n, O], one row after the other."""
    return np.cumsum(np.concatenate([start[None], rows]), axis=0)[-1]
