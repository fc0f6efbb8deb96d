"""Helpers of the tests of the imagined env."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs import TransformedEnv

from tests.envs.drift_env import DriftEnv
from torchrl_pwm import PWMWorldModel, WorldModelWrapper


def make_model(num_tasks=0, num_bins=None):
    tasks = {"num_tasks": num_tasks, "task_dim": 4} if num_tasks else {}
    model = PWMWorldModel(5, 2, latent_dim=16, units=(24, 24), encoder_units=(20,), num_bins=num_bins, **tasks)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


KINDS = {"scalar": {}, "bins": {"num_bins": 11}, "tasks": {"num_tasks": 3, "num_bins": 11}}


def real_env(model, batch_size=(), **kwargs):
    base = DriftEnv(batch_size, num_tasks=model.num_tasks, **kwargs)
    return TransformedEnv(base, WorldModelWrapper(model))


def imagined_env(model, **kwargs):
    env = real_env(model)
    imagined = env.transform.imagined_env(**kwargs)
    imagined.real = [env]
    return imagined


def starts(model, batch=(4,)):
    td = TensorDict({"observation": torch.randn(*batch, 5)}, batch)
    return td.set("task", torch.randint(3, batch)) if model.num_tasks else td


def task_of(td):
    return td.get("task", None)
