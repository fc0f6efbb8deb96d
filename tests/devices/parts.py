"""Small models, actors, critics and batches, on any device."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_pwm import PWMLoss, PWMWorldModel, TDMPC2Model, make_pwm_actor, make_value_ensemble

META = "meta"
OBSERVATION, ACTION, LATENT = 5, 2, 16

#: World models by name: options of each.
MODELS: dict[str, dict[str, Any]] = {
    "scalar head": {},
    "bins": {"num_bins": 11},
    "tasks": {"num_tasks": 3, "task_dim": 4, "action_dims": [2, 1, 2], "num_bins": 11},
    "residual": {"residual": True},
    "termination": {"termination": True},
    "normalised rewards": {"normalize_rewards": True},
    "all": {"num_tasks": 3, "task_dim": 4, "num_bins": 11, "residual": True, "termination": True},
    "heads and decoder": {"num_heads": 3, "decoder": True, "residual": True, "encoder_norm": True, "num_bins": 11},
}


def make_model(name: str, device: str = META, **options: Any) -> PWMWorldModel:
    sizes: dict[str, Any] = {"latent_dim": LATENT, "units": (32, 32), "encoder_units": (16,)}
    return PWMWorldModel(OBSERVATION, ACTION, **sizes, **MODELS[name], **options).to(device)


def make_tdmpc2(name: str, device: str = META) -> TDMPC2Model:
    bins = {} if "num_bins" in MODELS[name] else {"num_bins": 11}
    return TDMPC2Model(make_model(name, "cpu", **bins), units=(16,), num_q=3).to(device)


def make_policy_loss(model: PWMWorldModel, **options: Any) -> PWMLoss:
    """Networks that have moved before the loss is built around them."""
    device = next(model.parameters()).device
    actor, critics = make_pwm_actor(LATENT, ACTION, units=(16,)), make_value_ensemble(LATENT, units=(16,))
    return PWMLoss(actor.to(device), critics.to(device), model, **{"horizon": 3, **options})


def sequences(name: str = "scalar head", device: str = META, *, batch: int = 4, time: int = 3) -> TensorDictBase:
    """[batch, time] transitions."""
    size = (batch, time)
    ends = torch.zeros(*size, 1, dtype=torch.bool)
    following = {"observation": torch.randn(*size, OBSERVATION), "reward": torch.randn(*size, 1)}
    entries = {"observation": torch.randn(*size, OBSERVATION), "action": torch.rand(*size, ACTION) * 2 - 1}
    if "num_tasks" in MODELS[name]:
        entries["task"] = torch.zeros(size, dtype=torch.int64)
    nexts = TensorDict({**following, "done": ends, "terminated": ends.clone()}, size)
    return TensorDict({**entries, "next": nexts}, size).to(device)
