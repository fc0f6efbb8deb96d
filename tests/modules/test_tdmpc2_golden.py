"""TD-MPC2's heads on published checkpoints of both layouts, and the way from one layout to the other."""

from __future__ import annotations

import pytest
import torch

from tests.modules.test_checkpoints import FORWARD, LAYOUTS, as_published
from torchrl_pwm import TDMPC2Model

EPISODES = [100, 500, 1000]


def load(case, **options):
    config = case["config"]
    if config["multitask"]:
        options = {"action_dims": config["action_dims"], "episode_lengths": EPISODES, **options}
    return TDMPC2Model.from_checkpoint(as_published(case), **options).eval()


@pytest.fixture(params=LAYOUTS, ids="-".join)
def case(golden, request):
    layout, kind = request.param
    return golden(f"tdmpc2_checkpoint_{layout}")[kind]


def compute(model, inputs, members):
    """Every output that one of the fixtures holds."""
    task, world = inputs.get("task"), model.world_model
    z = world.encode_observation(inputs["obs"], task)
    logits = world.reward_logits(z, inputs["action"], task)
    sample = model.act(z, task, inputs["eps"])
    entropy, scaled = model.entropies(sample, task)
    result = {
        "z": z,
        "z_next": world.next_latent(z, inputs["action"], task),
        "reward_logits": logits,
        "reward": world.decode_reward(logits),
        "pi_mean": sample.mean,
        "pi_action": sample.action,
        "pi_log_std": sample.log_std,
        "pi_entropy": entropy,
        "pi_scaled_entropy": scaled,
        "q_all": model.q_logits(z, inputs["action"], task),
        "q_target_all": model.q_logits(z, inputs["action"], task, target=True),
    }
    for reduce in ("min", "avg"):
        how = {"reduce": reduce, "members": members}
        result[f"q_{reduce}"] = model.q_value(z, inputs["action"], task, **how)
        result[f"q_target_{reduce}"] = model.q_value(z, inputs["action"], task, target=True, **how)
    if "z_3d" in inputs:
        z, action = inputs["z_3d"], inputs["action_3d"]
        result["next_3d"] = world.next_latent(z, action, task)
        result["reward_logits_3d"] = world.reward_logits(z, action, task)
        result["q_all_3d"] = model.q_logits(z, action, task)
    return result


def test_published_checkpoints_give_every_published_output(case):
    outputs = case.get("outputs_tdmpc2") or case["outputs"]
    result = compute(load(case), case["inputs"], outputs["q_subset"])
    compared = set(outputs) - {"q_subset"}
    assert compared <= set(result) and len(compared) >= 10
    for name in compared:
        torch.testing.assert_close(result[name], outputs[name], **FORWARD, msg=lambda m, n=name: f"{n}: {m}")
