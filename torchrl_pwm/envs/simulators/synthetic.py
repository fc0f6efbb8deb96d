"""A task of any size, without physics: to test the many-muscled case, and early ends, at no cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_pwm.envs.simulators._analytic import AnalyticSimulator

__all__ = ["Synthetic"]


class Synthetic(AnalyticSimulator):
    """An unstable linear system that the actions must hold near zero.

    State and observation s [O]: s' = 1.02 Q s + 0.1 B a, with a fixed orthogonal Q [O, O] and a fixed B [O, A] of rows
    of length 1, the same for every seed. Reward: 1 - |s|^2 / O - 0.01 |a|^2 / A. Terminated where |s|^2 / O > 1, which
    comes after some 60 steps without action. Starts are normal with standard deviation 0.3. The sizes default to those
    of DFlex's SNU Humanoid, 53 observations and 152 muscles.

    Args:
        num_envs (int): number N of parallel envs.

    Keyword Args:
        observation_size, action_size (int): O and A.
        options: of :class:`AnalyticSimulator`.

    Raises:
        ValueError: for an option out of range.
    """

    growth = 1.02
    start_scale = 0.3

    def __init__(self, num_envs: int, *, observation_size: int = 53, action_size: int = 152, **options: Any) -> None:
        if min(observation_size, action_size) < 1:
            raise ValueError(f"sizes must be at least 1, found observation_size={observation_size}, {action_size=}")
        self.state_size = self.observation_size = observation_size
        self.action_size = action_size
        super().__init__(num_envs, **options)
        # Drawn on the CPU in float64, so that the task is the same on every device and in every dtype.
        fixed = torch.Generator("cpu").manual_seed(0)
        draws = torch.randn(observation_size, observation_size + action_size, generator=fixed, dtype=torch.float64)
        turn, _ = torch.linalg.qr(draws[:, :observation_size])
        push = torch.nn.functional.normalize(draws[:, observation_size:], dim=-1)
        self._turn, self._push = ((self.growth * turn).to(self.state), (0.1 * push).to(self.state))

    def start(self) -> Tensor:
        """Normal around zero; without ``stochastic_init`` the same 0.3 in every entry."""
        if not self.stochastic_init:
            return torch.full_like(self.state, self.start_scale)
        return self.start_scale * self.normal(self.state_size)

    def advance(self, state: Tensor, actions: Tensor) -> Tensor:
        return state @ self._turn.mT + actions @ self._push.mT

    def observe(self, state: Tensor) -> Tensor:
        return state

    def reward(self, state: Tensor, actions: Tensor) -> Tensor:
        return 1 - state.square().mean(-1) - 0.01 * actions.square().mean(-1)

    def terminated(self, state: Tensor) -> Tensor:
        return state.detach().square().mean(-1) > 1
