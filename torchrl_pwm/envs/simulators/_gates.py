"""Gates that cut the gradient of single envs of a batch afterwards, when one of them turns out not to be finite."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

__all__ = ["Gates"]


class Gates:
    """Lets the gradient of actions through, except in envs that turned non-finite later in the same episode.

    A zero gradient that meets a NaN on its way back is NaN: replacing the reward is not enough.
    """

    def __init__(self, num_envs: int, device: torch.device | None) -> None:
        self._open: list[Tensor] = []  # per gate since the last cut: bool [N, 1]
        self._first = torch.zeros(num_envs, dtype=torch.int64, device=device)  # first gate of each env's episode

    def __call__(self, action: Tensor) -> Tensor:
        is_open = torch.ones_like(action[:, :1], dtype=torch.bool)
        self._open.append(is_open)
        action = action.clone()
        action.register_hook(partial(_masked, is_open))
        return action

    def restart(self, envs: Tensor) -> None:
        self._first = torch.where(envs, len(self._open), self._first)

    def close(self, envs: Tensor) -> None:
        for index, is_open in enumerate(self._open):
            is_open &= ~(envs & (self._first <= index))[:, None]

    def clear(self) -> None:
        self._open = []
        self._first = torch.zeros_like(self._first)


def _masked(is_open: Tensor, grad: Tensor) -> Tensor:
    return torch.where(is_open, grad, 0.0)
