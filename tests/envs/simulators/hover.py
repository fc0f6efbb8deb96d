"""A simulator of one's own, as a user would write it: a point that its actions push about."""

from __future__ import annotations

import torch

from torchrl_pwm.envs.simulators import Simulator, SimulatorStep


class Hover(Simulator):
    observation_size, action_size, episode_length = 2, 2, 6

    def __init__(self, num_envs, **options):
        super().__init__(num_envs, **options)
        self.position = torch.zeros(num_envs, 2, dtype=self.dtype, device=self.device)

    def reset(self, rows):
        self.position = torch.where(rows[:, None], self.uniform(2), self.position)
        return self.position

    def step(self, actions):
        self.position = self.position + 0.5 * torch.tanh(actions)
        distance = self.position.square().sum(-1)
        return SimulatorStep(self.position, -distance, terminated=distance > 4)


class SelfResetting(Hover):
    """The same, resetting the envs that are done within its step, as DFlex does."""

    def __init__(self, num_envs, **options):
        super().__init__(num_envs, **options)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)
        self.asked = []

    def reset(self, rows):
        self.asked.append(rows.tolist())
        self.steps = torch.where(rows, 0, self.steps)
        return super().reset(rows)

    def step(self, actions):
        step = super().step(actions)
        self.steps = self.steps + 1
        truncated = self.steps >= self.episode_length
        done = step.terminated | truncated
        after = Hover.reset(self, done) if done.any() else self.position
        self.steps = torch.where(done, 0, self.steps)
        return step._replace(truncated=truncated, after_reset=after)


class Root(Hover):
    """NaN, in value and gradient, where an env's first action is negative, and two steps later everywhere."""

    def step(self, actions):
        step = super().step(actions)
        self.position = self.position + 0 * actions[:, :1].sqrt()
        return step._replace(observation=self.position, reward=-self.position.square().sum(-1))
