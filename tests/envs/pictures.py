"""A pendulum that is drawn, not measured, and an encoder for it."""

from __future__ import annotations

import torch
from torch import nn
from torchrl.data import Bounded
from torchrl.envs import EnvBase, ObservationTransform, TransformedEnv

from torchrl_pwm.envs.simulators import AnalyticEnv


class Drawing(ObservationTransform):
    """The observation as one bright spot of a picture uint8 [*, 1, 8, 8], in its place."""

    def __init__(self) -> None:
        super().__init__(in_keys=["observation"], out_keys=["observation"])

    def _apply_transform(self, observation):
        grid = torch.linspace(-1, 1, 8)
        x, y = observation[..., 2, None, None], observation[..., 3, None, None]
        light = torch.exp(-4 * ((grid - x).square() + (grid[:, None] - y).square()))
        return (255 * light).to(torch.uint8).unsqueeze(-3)

    def _reset(self, tensordict, tensordict_reset):
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec):
        observation_spec["observation"] = Bounded(0, 255, (*observation_spec.shape, 1, 8, 8), dtype=torch.uint8)
        return observation_spec


def make_picture_env(num_envs: int) -> EnvBase:
    return TransformedEnv(AnalyticEnv("cartpole_swingup", num_envs), Drawing())


def make_encoder() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
