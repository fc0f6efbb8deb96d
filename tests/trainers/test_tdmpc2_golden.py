"""One complete update of the published TD-MPC2, repeated by the real stepper (``tdmpc2_update.pt``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from torchrl_pwm import TDMPC2Loss, TDMPC2Model
from torchrl_pwm.objectives import TDMPC2Noise
from torchrl_pwm.trainers import TDMPC2OptimizationStepper

CASES = ("single_H3", "multi_H5")
FORWARD = {"rtol": 1e-4, "atol": 1e-5}
GRADIENT = {"rtol": 1e-3, "atol": 2e-6}
# One step of Adam moves a parameter by at most 3e-4, so that parameters need a narrower band to say anything.
PARAMETERS = {"rtol": 1e-4, "atol": 2e-5}


def build(case: dict[str, Any]) -> tuple[TDMPC2OptimizationStepper, TensorDict, TDMPC2Noise]:
    config, inputs = case["config"], case["inputs"]
    lengths = config["episode_lengths"] if config["multitask"] else config["episode_length"]
    model = TDMPC2Model.from_checkpoint(case["model"], episode_lengths=lengths, dropout=config["dropout"])
    names = ("consistency_coef", "reward_coef", "value_coef", "entropy_coef", "rho")
    loss = TDMPC2Loss(model, **{name: config[name] for name in names})
    stepper = TDMPC2OptimizationStepper(
        loss,
        lr=config["lr"],
        encoder_lr_scale=config["enc_lr_scale"],
        clip=config["grad_clip_norm"],
        tau=config["tau"],
    )
    data = {name: inputs[name].transpose(0, 1) for name in ("obs", "action", "reward", "terminated")}
    shape = data["action"].shape[:2]
    following = {"observation": data["obs"][:, 1:], "reward": data["reward"], "terminated": data["terminated"].bool()}
    entries = {"observation": data["obs"][:, :-1], "action": data["action"], "next": TensorDict(following, shape)}
    if "task" in inputs:
        entries["task"] = inputs["task"][:, None].expand(shape)
    noise = TDMPC2Noise(
        inputs["eps_td_target"], inputs["randperm_td_target"][:2], inputs["eps_pi"], inputs["randperm_pi"][:2]
    )
    return stepper, TensorDict(entries, shape), noise


def by_published_name(model: TDMPC2Model, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by parameter name under the names of the current published layout."""
    with torch.no_grad():
        copy = TDMPC2Model.from_checkpoint(model.to_checkpoint())
        for name, param in copy.named_parameters():
            param.copy_(values.get(name, torch.full_like(param, torch.nan)))
    return copy.to_checkpoint()["model"]


def gradients(model: TDMPC2Model) -> dict[str, torch.Tensor]:
    return by_published_name(model, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("name", CASES)
def test_one_update_equals_the_published_one(name, golden, monkeypatch):
    case = golden("tdmpc2_update")[name]
    expected = case["outputs"]
    stepper, batch, noise = build(case)
    loss, model = stepper.loss_module, stepper.loss_module.model
    torch.testing.assert_close(model.discount, expected["discount"].reshape(-1))
    seen = {}
    estimate, unroll = loss.value_target, loss.model_losses

    def keep_target(*args):
        seen["td_target"] = estimate(*args)
        return seen["td_target"]

    def keep_latents(*args):
        out, seen["zs"] = unroll(*args)
        return out, seen["zs"]

    monkeypatch.setattr(loss, "value_target", keep_target)
    monkeypatch.setattr(loss, "model_losses", keep_latents)
    assert model.scale.value == expected["scale_before"]
    metrics = stepper.update(batch, noise)

    for key, value in seen.items():
        torch.testing.assert_close(value, expected[key], **FORWARD, msg=lambda m, k=key: f"{k}: {m}")
    info, config = expected["info"], case["config"]
    found = {
        "consistency_loss": metrics["loss_consistency"] / config["consistency_coef"],
        "reward_loss": metrics["loss_reward"] / config["reward_coef"],
        "value_loss": metrics["loss_value"] / config["value_coef"],
        "total_loss": metrics["loss_consistency"] + metrics["loss_reward"] + metrics["loss_value"],
        "termination_loss": torch.zeros(()),
        "grad_norm": metrics["model_grad_norm"],
        "pi_loss": metrics["loss_policy"],
        "pi_grad_norm": metrics["policy_grad_norm"],
        "pi_entropy": metrics["policy_entropy"],
        "pi_scaled_entropy": metrics["policy_scaled_entropy"],
        "pi_scale": metrics["value_scale"],
    }
    assert set(found) == set(info)
    for key, value in info.items():
        torch.testing.assert_close(found[key], torch.as_tensor(value), **GRADIENT, msg=lambda m, k=key: f"{k}: {m}")
    torch.testing.assert_close(model.scale.value.reshape(1), expected["scale_after"], **FORWARD)

    grads = gradients(model)
    for key, value in {**expected["grads_model_after_clip"], **expected["grads_pi_after_clip"]}.items():
        torch.testing.assert_close(grads[key], value, **GRADIENT, msg=lambda m, k=key: f"{k}: {m}")
    for key, norm in expected["grad_norms_model_after_clip"].items():
        torch.testing.assert_close(grads[key].norm(), torch.as_tensor(norm), **GRADIENT)
    after = model.to_checkpoint()["model"]
    for key, value in expected["model_after_selected"].items():
        torch.testing.assert_close(after[key], value, **PARAMETERS, msg=lambda m, k=key: f"{k}: {m}")
