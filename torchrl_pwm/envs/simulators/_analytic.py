"""Base class of the analytic tasks."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from torchrl_pwm.envs.simulators.base import RewardTiming, Simulator, SimulatorStep


class AnalyticSimulator(Simulator):
    """A task whose state is one tensor [N, S] and whose parts are functions of it.

    Args:
        num_envs (int): number N of parallel envs.

    Keyword Args:
        episode_length (int, optional): instead of the task's own.
        stochastic_init (bool): whether starts are drawn. Default: ``True``.
        early_termination (bool): whether episodes end where the task terminates them. Without, they go on to their full
            length, so that a model learns what happens there.
        reward_timing (str): ``"after"`` rewards the state that the step reaches, ``"before"`` the one it leaves.
        device, dtype, seed: of :class:`Simulator`.

    Raises:
        ValueError: for an option out of range.
    """

    state_size: int
    episode_length: int = 240

    def __init__(
        self,
        num_envs: int,
        *,
        episode_length: int | None = None,
        stochastic_init: bool = True,
        early_termination: bool = True,
        reward_timing: RewardTiming = "after",
        **options: Any,
    ) -> None:
        super().__init__(num_envs, **options)
        if reward_timing not in ("after", "before"):
            raise ValueError(f'reward_timing must be "after" or "before", found {reward_timing!r}')
        if episode_length is not None:
            self.episode_length = episode_length
        self.stochastic_init = stochastic_init
        self.early_termination = early_termination
        self.terminates = early_termination and type(self).terminated is not AnalyticSimulator.terminated
        self.reward_timing = reward_timing
        self.state = torch.zeros(num_envs, self.state_size, dtype=self.dtype, device=self.device)

    def reset(self, rows: Tensor) -> Tensor:
        self.state = torch.where(rows[:, None], self.start(), self.state)
        return self.observe(self.state)

    def step(self, actions: Tensor) -> SimulatorStep:
        """Actions beyond [-1, 1] act as the bound, with zero gradient."""
        actions = actions.clamp(-1, 1)
        before = self.state
        self.state = self.advance(before, actions)
        rewarded = self.state if self.reward_timing == "after" else before
        terminated = self.terminated(self.state)
        if not self.early_termination:
            terminated = torch.zeros_like(terminated)
        return SimulatorStep(self.observe(self.state), self.reward(rewarded, actions), terminated)

    def terminated(self, state: Tensor) -> Tensor:
        """Whether the episode ended at ``state``, bool [N]: here never."""
        return torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    @abstractmethod
    def start(self) -> Tensor:
        """A start state for every env, [N, S]."""

    @abstractmethod
    def advance(self, state: Tensor, actions: Tensor) -> Tensor:
        """The state one control step later, [N, S]."""

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """The observation of ``state``, [N, O]."""

    @abstractmethod
    def reward(self, state: Tensor, actions: Tensor) -> Tensor:
        """The reward of ``state`` and the actions of the same step, [N]."""
