"""World-model training losses agree with the published single-task form (``wm_loss.pt``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from tests.objectives.build import FORWARD, GRADIENT
from torchrl_pwm import PWMWorldModel, PWMWorldModelLoss


def sequences(inputs: dict[str, Any]) -> TensorDict:
    """The fixture's time-major arrays as [B, T] transitions."""
    observation = inputs["obs"].transpose(0, 1)
    action, reward = inputs["action"].transpose(0, 1), inputs["reward"].transpose(0, 1)
    shape = action.shape[:2]
    step = TensorDict({"observation": observation[:, 1:], "reward": reward}, shape)
    td = TensorDict({"observation": observation[:, :-1], "action": action, "next": step}, shape)
    if "task" in inputs:
        td["task"] = inputs["task"][:, None].expand(shape)
    return td


@pytest.mark.parametrize("case", ["single_H3", "single_H16"])
def test_single_task_losses_and_gradients_are_the_published_ones(golden, case: str) -> None:
    recorded = golden("wm_loss")[case]
    model = PWMWorldModel.from_tdmpc2(recorded["model"])
    losses = PWMWorldModelLoss.single_task(model, gamma=recorded["config"]["gamma"])(sequences(recorded["inputs"]))
    expected = recorded["outputs"]
    torch.testing.assert_close(losses["loss_consistency"], torch.as_tensor(expected["dynamics"]), **FORWARD)
    torch.testing.assert_close(losses["loss_reward"], torch.tensor(expected["reward"]), **FORWARD)
    total = losses["loss_consistency"] + losses["loss_reward"]
    torch.testing.assert_close(total, expected["total"], **FORWARD)
    total.backward()
    result = dict(model.named_parameters())
    assert set(result) == set(expected["grad_norms"])
    for name, norm in expected["grad_norms"].items():
        torch.testing.assert_close(result[name].grad.norm(), norm, **GRADIENT)
    for name, gradient in expected["grads"].items():
        torch.testing.assert_close(result[name].grad, gradient, **GRADIENT)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in result.values()])
    torch.testing.assert_close(norm, expected["global_grad_norm"], **GRADIENT)


def test_consistency_of_a_binned_model_is_the_published_one_and_its_faulty_reward_term_is_not_copied(golden) -> None:
    """The published regression subtracts raw rewards from bin logits; here a binned head gets its cross entropy."""
    recorded = golden("wm_loss")["multi_bins_quirk_H3"]
    model = PWMWorldModel.from_tdmpc2(recorded["model"])
    td = sequences(recorded["inputs"])
    losses = PWMWorldModelLoss.single_task(model)(td)
    torch.testing.assert_close(losses["loss_consistency"], recorded["outputs"]["dynamics"], **FORWARD)

    task = recorded["inputs"]["task"]
    latent, weighted = model.encode_observation(td["observation"][:, 0], task), []
    for step in range(td.shape[1]):
        logits = model.reward_logits(latent, td["action"][:, step], task)
        target = model.codec.encode(td["next", "reward"][:, step])
        weighted.append(0.99**step * -(target * logits.log_softmax(-1)).sum(-1).mean())
        latent = model.next_latent(latent, td["action"][:, step], task)
    expected = torch.stack(weighted).mean() / td.shape[1]
    torch.testing.assert_close(losses["loss_reward"], expected, **FORWARD)
