"""Episodes that end inside a rollout agree with the published implementation (``actor_loss_env.pt``).

There an environment runs beside the imagination and says when an episode ends; imagination then goes on from the
encoding of the observation after the reset.
"""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from tests.objectives.build import FORWARD, GRADIENT, actor_head, check_moments, golden_loss, time_major

CASES = ["no_done", "truncation_mid", "termination_mid", "done_at_last_step", "all_ret_rms"]


@pytest.mark.parametrize("case", CASES)
def test_dones_inside_a_rollout_give_the_published_loss_gradients_and_targets(golden, case: str) -> None:
    recorded = golden("actor_loss_env")[case]
    config, inputs, outputs = recorded["config"], recorded["inputs"], recorded["outputs"]
    loss = golden_loss(config, recorded["models"], normalize_returns=config["ret_rms"])
    done = inputs["termination"] | inputs["truncation"]
    rollout = rollout_beside_env(loss, inputs, done)

    torch.testing.assert_close(rollout["action"].transpose(0, 1), outputs["actions"], **FORWARD)
    torch.testing.assert_close(rollout["latent"].transpose(0, 1), outputs["obs_buf"], **FORWARD)
    torch.testing.assert_close(time_major(rollout["next", "reward"]), outputs["rew_buf"], **FORWARD)
    torch.testing.assert_close(time_major(loss.value_target(rollout)), outputs["target_values"], **FORWARD)
    actor_loss = loss.actor_loss(rollout)
    torch.testing.assert_close(actor_loss, outputs["actor_loss"], **FORWARD)
    actor_loss.backward()
    for name, parameter in actor_head(loss).named_parameters():
        torch.testing.assert_close(parameter.grad, outputs["grads"][name], **GRADIENT)
    if config["ret_rms"]:
        check_moments(loss, outputs["ret_rms_after"])


def rollout_beside_env(loss, inputs, done) -> TensorDict:
    model, horizon = loss.world_model, loss.horizon
    latent = model.encode_observation(inputs["obs0"]).detach()
    steps = []
    for k in range(horizon):
        loc, scale = actor_head(loss)(latent.detach())
        action = torch.tanh(loc + scale * inputs["eps"][k])
        following = model.next_latent(latent, action)
        reward = model.decode_reward(model.reward_logits(latent, action), "symlog")
        nexts = {"latent": following, "reward": reward}
        nexts |= {"done": done[k][:, None], "terminated": inputs["termination"][k][:, None]}
        steps.append(TensorDict({"latent": latent, "action": action, "next": nexts}, [len(latent)]))
        fresh = model.encode_observation(inputs["obs_after_reset"][k]).detach()
        latent = torch.where(done[k][:, None], fresh, following)
    return torch.stack(steps, 1)
