"""The actor and value losses agree with the published implementation (``actor_loss.pt``)."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives.utils import ValueEstimators

from tests.objectives.build import FORWARD, GRADIENT, actor_head, check_moments, golden_loss, time_major
from torchrl_pwm import PWMLoss

CASES = [
    f"{noise}_rms_{rms}_{detach}"
    for noise in ("noise", "mean")
    for rms in ("off", "fresh", "warm")
    for detach in ("detach", "attached")
]


def imagined(golden, name: str, case: str):
    """The loss of a case, its rollout and what was recorded."""
    model = golden("actor_loss")["models"][name]
    noise, _, rms, detach = case.split("_")
    recorded, inputs = model["cases"][case], model["inputs"]
    loss = golden_loss(model["config"], model, normalize_returns=rms != "off", detach_latent=detach == "detach")
    if rms == "warm":
        before = recorded["ret_rms_before"]
        loss.return_moments.load_state_dict({key: torch.as_tensor(before[key]).reshape(()) for key in before})
    start = TensorDict({"observation": inputs["obs"]}, [len(inputs["obs"])])
    if "task" in inputs:
        start["task"] = inputs["task"]
    eps = inputs["eps"] if noise == "noise" else torch.zeros_like(inputs["eps"])
    return loss, loss.imagine(start, eps), recorded


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["single", "multi"])
def test_actor_loss_and_gradients_are_the_published_ones(golden, name: str, case: str) -> None:
    loss, rollout, recorded = imagined(golden, name, case)
    actor_loss = loss.actor_loss(rollout)
    torch.testing.assert_close(actor_loss, recorded["actor_loss"], **FORWARD)
    actor_loss.backward()
    result = dict(actor_head(loss).named_parameters())
    assert set(result) == set(recorded["grads"])
    for key, gradient in recorded["grads"].items():
        torch.testing.assert_close(result[key].grad, gradient, **GRADIENT, msg=lambda text, key=key: f"{key}: {text}")
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in result.values()])
    torch.testing.assert_close(norm, recorded["grad_norm"], **GRADIENT)
    torch.testing.assert_close(result["logstd"].detach(), recorded["actor_logstd_after_clamp"])
    if recorded["ret_rms_after"] != "none":
        check_moments(loss, recorded["ret_rms_after"])


@pytest.mark.parametrize("case", ["noise_rms_off_detach", "mean_rms_off_detach"])
@pytest.mark.parametrize("name", ["single", "multi"])
def test_rollout_and_value_targets_are_the_published_ones(golden, name: str, case: str) -> None:
    loss, rollout, recorded = imagined(golden, name, case)
    torch.testing.assert_close(rollout["latent"].transpose(0, 1), recorded["obs_buf"], **FORWARD)
    torch.testing.assert_close(time_major(rollout["next", "reward"]), recorded["rew_buf"], **FORWARD)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.99)
    torch.testing.assert_close(time_major(loss.value_target(rollout)), recorded["target_values_one_step"], **FORWARD)


@pytest.mark.parametrize("name", ["single", "multi"])
def test_td_lambda_is_one_step_where_every_step_is_done_as_in_the_published_offline_runs(golden, name: str) -> None:
    loss, rollout, recorded = imagined(golden, name, "noise_rms_off_detach")
    rollout["next", "done"] = time_major(recorded["done_mask"].unsqueeze(0)).bool().reshape(*rollout.shape, 1)
    torch.testing.assert_close(time_major(loss.value_target(rollout)), recorded["target_values_td_lambda"], **FORWARD)
    torch.testing.assert_close(recorded["target_values_td_lambda"], recorded["target_values_one_step"], **FORWARD)


@pytest.mark.parametrize("case", ["noise_rms_off_detach", "mean_rms_off_detach"])
@pytest.mark.parametrize("name", ["single", "multi"])
def test_value_loss_and_gradients_are_the_published_ones(golden, name: str, case: str) -> None:
    loss, rollout, recorded = imagined(golden, name, case)
    rollout = rollout.detach()
    rollout["value_target"] = recorded["target_values_one_step"].transpose(0, 1).unsqueeze(-1)
    value_loss = loss.value_loss(rollout)
    torch.testing.assert_close(value_loss, recorded["critic_loss_full"], **FORWARD)
    value_loss.backward()
    for key, parameter in loss.value_network.named_parameters():
        torch.testing.assert_close(parameter.grad, recorded["critic_grads_full"][key], **GRADIENT)
    values = loss.value_network.values(rollout["latent"].transpose(0, 1))
    torch.testing.assert_close(values, recorded["critic_values"], **FORWARD)

    rows = rollout.transpose(0, 1).reshape(-1)
    minibatches = rows.split(len(rows) // 4)
    assert len(minibatches) == recorded["critic_num_minibatches"]
    assert len(minibatches[0]) == recorded["critic_minibatch_size"]
    result = torch.stack([loss.value_loss(minibatch) for minibatch in minibatches])
    torch.testing.assert_close(result, recorded["critic_loss_minibatch"], **FORWARD)


def test_another_noise_gives_another_loss(golden) -> None:
    model = golden("actor_loss")["models"]["single"]
    loss: PWMLoss = golden_loss(model["config"], model)
    start = TensorDict({"observation": model["inputs"]["obs"]}, [6])
    eps = model["inputs"]["eps"]
    assert loss.actor_loss(loss.imagine(start, eps)) != loss.actor_loss(loss.imagine(start, -eps))
