"""Policies on observations: what belongs to which state."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm import (
    ObservationNormalizer,
    PWMWorldModel,
    TDMPC2Model,
    WorldModelPolicy,
    make_pwm_actor,
)
from torchrl_pwm.modules import TrainedPolicy


def test_a_task_belongs_to_its_row_whatever_the_length_of_the_rows():
    model = PWMWorldModel(6, 2, latent_dim=16, units=(32,), num_tasks=4, task_dim=8)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    inner = WorldModelPolicy(model, make_pwm_actor(16, 2))
    tasks, rows = torch.arange(4), torch.randn(4, 1, 6)
    for policy in (inner, TrainedPolicy(inner, observation_dim=6, action_dim=2)):
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            each = policy(TensorDict({"observation": rows[:, 0], "task": tasks}, [4]))["action"]
            for steps in (4, 5):
                states = TensorDict({"observation": rows.expand(4, steps, 6), "task": tasks}, [4])
                torch.testing.assert_close(policy(states)["action"], each[:, None].expand(4, steps, 2))


def test_an_observation_that_is_not_there_is_named():
    model = PWMWorldModel(6, 2, latent_dim=16, units=(32,), num_bins=11)
    inner = WorldModelPolicy(model, make_pwm_actor(16, 2))
    policies = [inner, TrainedPolicy(inner, observation_dim=6, action_dim=2), TDMPC2Model(model)]
    for policy in [*policies, ObservationNormalizer(6)]:
        with pytest.raises(ValueError, match=r"needs the entry 'observation', found \['state'\]"):
            policy(TensorDict({"state": torch.randn(3, 6)}, [3]))
