"""Losses with the weights of a golden file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchrl_pwm import PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble

FORWARD = {"rtol": 1e-4, "atol": 1e-5}
GRADIENT = {"rtol": 1e-3, "atol": 2e-4}


def golden_loss(config: dict[str, Any], weights: dict[str, Any], **options: Any) -> PWMLoss:
    """PWMLoss with the published bootstrap, on the fixture's networks."""
    actor = make_pwm_actor(config["latent_dim"], config["act_dim"], units=config["actor_units"])
    actor.load_reference_state_dict(weights["actor"])
    value = make_value_ensemble(config["latent_dim"], units=config["critic_units"])
    value.load_reference_state_dict(weights["critic"])
    model = PWMWorldModel.from_tdmpc2(weights["world_model"])
    loss = PWMLoss(actor, value, model, horizon=config["horizon"], bootstrap="reference", **options)
    return loss.make_value_estimator("TDLambda", gamma=config["gamma"], lmbda=config["lam"])


def actor_head(loss: PWMLoss) -> nn.Module:
    """The module whose parameters have the published names."""
    return loss.actor_network.get_submodule("module.0.module")


def time_major(entry: Tensor) -> Tensor:
    """[B, H, 1] to [H, B]."""
    return entry.squeeze(-1).transpose(0, 1)


def check_moments(loss: PWMLoss, expected: dict[str, Any]) -> None:
    for name in ("mean", "var", "count"):
        torch.testing.assert_close(
            getattr(loss.return_moments, name).reshape(()), torch.as_tensor(expected[name]).reshape(()), **FORWARD
        )
