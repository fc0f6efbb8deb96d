"""Uniform random actions as a policy."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_pwm._utils.seeds import uniform_actions

__all__ = ["RandomPolicy"]


class RandomPolicy(TensorDictModuleBase):
    """Uniform actions in [-1, 1] from a generator of its own, which TorchRL's class of this name has not.

    Args:
        action_dim: size A of the action it writes, ``[*, A]``.
        seed: seed of the generator.
        dtype: of the actions.

    Examples:
        >>> from tensordict import TensorDict
        >>> RandomPolicy(3, seed=0)(TensorDict(batch_size=[2]))["action"].shape
        torch.Size([2, 3])
    """

    def __init__(self, action_dim: int, seed: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.in_keys: list[str] = []
        self.out_keys = ["action"]
        self.action_dim, self.dtype, self.generator = action_dim, dtype, torch.Generator().manual_seed(seed)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        action = uniform_actions(*td.batch_size, self.action_dim, generator=self.generator, dtype=self.dtype)
        return td.set("action", action.to(td.device or "cpu"))
