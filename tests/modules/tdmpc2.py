"""A small TD-MPC2 model with nothing zero in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchrl_pwm import PWMWorldModel, TDMPC2Model

TASKS, OBSERVATION, ACTION, LATENT = 3, 5, 2, 16


def make_model(num_tasks: int = 0, *, action_dims: Any = None, **options: Any) -> TDMPC2Model:
    world_model = PWMWorldModel(
        OBSERVATION, ACTION, latent_dim=LATENT, encoder_units=(12,), units=(12, 12), num_bins=11, num_tasks=num_tasks,
        task_dim=4 if num_tasks else 0, action_dims=action_dims,
    )  # fmt: skip
    model = TDMPC2Model(world_model, **{"dropout": 0.0, **options})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_encoder" not in name:
                nn.init.normal_(parameter, std=0.4)
        for index in (2, 6):
            model.q.params[index].add_(1.0)
            model.target_q.params[index].add_(1.0)
    return model
