"""TorchRL's batched envs, which leave torch the threads that they found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchrl import envs
from torchrl.envs import EnvBase

from torchrl_pwm._utils.devices import torch_threads


def batched_env(
    num_envs: int,
    make: Callable[[], EnvBase] | Sequence[Callable[[], EnvBase]],
    *,
    parallel: bool = False,
    device: torch.device | str | None = None,
) -> envs.SerialEnv | envs.ParallelEnv:
    """So many envs as one, each in a process of its own, or all in this one.

    As TorchRL's close they give torch a thread for each env, up to those that it had when it was imported, whether
    they took any or not. A run of one thread would be one of many from then on, to other sums.
    """
    if parallel:
        return ParallelEnv(num_envs, make, device=device)
    # In one process there is nobody to share with: shared tensors would hold a file handle each.
    return SerialEnv(num_envs, make, device=device, shared_memory=False)


class SerialEnv(envs.SerialEnv):
    def close(self, *, raise_if_closed: bool = True) -> None:
        with torch_threads(None):
            super().close(raise_if_closed=raise_if_closed)


class ParallelEnv(envs.ParallelEnv):
    """Its processes take threads from this one as they start, and give them back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._most_threads = torch.get_num_threads()
        super().__init__(*args, **kwargs)

    def close(self, *, raise_if_closed: bool = True) -> None:
        super().close(raise_if_closed=raise_if_closed)
        torch.set_num_threads(min(torch.get_num_threads(), self._most_threads))
