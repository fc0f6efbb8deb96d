"""Checks of arrays on their way to disk: finite, and actions in their range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["ACTION_LIMIT", "is_in_range", "refuse_actions", "refuse_lost_variation", "refuse_non_finite"]

#: Largest size of an action entry: 1, and what rounding may add.
ACTION_LIMIT = 1.0 + 1e-4


def is_in_range(action: np.ndarray) -> bool:
    """Whether all entries of actions lie in [-1, 1]."""
    return action.size == 0 or bool(action.max() <= ACTION_LIMIT and action.min() >= -ACTION_LIMIT)


def refuse_non_finite(array: np.ndarray, key: str, task: str, rows: Sequence[int | str]) -> None:
    """Raises ValueError if ``array`` [n, steps, ...] holds a NaN or infinity; ``rows`` numbers or names its rows."""
    finite = np.isfinite(array)
    if finite.all():
        return
    place = tuple(np.argwhere(~finite)[0].tolist())
    raise ValueError(
        f"{key} of task {task} is {array[place]} in {_named(rows[place[0]])} at step {place[1]}; "
        "data must be finite: drop the row or find out where the value comes from"
    )


def refuse_actions(
    action: np.ndarray, task: str, rows: Sequence[int | str], advice: str = "divide them by their largest size"
) -> None:
    """Raises ValueError if ``action`` [n, steps, A] leaves [-1, 1]; ``rows`` numbers or names its rows."""
    if is_in_range(action):
        return
    place = tuple(np.argwhere(~(np.abs(action) <= ACTION_LIMIT))[0].tolist())
    raise ValueError(
        f"action of task {task} is {action[place]:.4g} in {_named(rows[place[0]])} at step {place[1]}, entry "
        f"{place[2]}; actions lie in [-1, 1]: {advice}"
    )


def refuse_lost_variation(task: str, dtype: str, rounding: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    """Raises ValueError if an observation entry varies by hardly more than its rounding to the type on disk.

    A constant entry, whatever its size, and one that varies by the rounding of float64 alone have nothing to lose.

    Args:
        task: name of the task.
        dtype: type on disk.
        rounding: largest rounding error of each entry [O].
        mean, std: of each entry [O].
    """
    lost = (std > 1e-13 * np.abs(mean)) & (rounding > 0.1 * std)
    if not lost.any():
        return
    entry = int(lost.nonzero()[0][0])
    raise ValueError(
        f"observation entry {entry} of task {task} varies by {std[entry]:.3g} around {mean[entry]:.6g}, which {dtype} "
        f"rounds by up to {rounding[entry]:.3g}: what varies would be lost. Subtract its mean, or leave it out"
    )


def _named(row: int | str) -> str:
    return row if isinstance(row, str) else f"row {row}"
