"""SHAC's windows in the analytic simulators."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import RewardSum, TransformedEnv

from torchrl_pwm import ObservationNormalizer, SHACLoss, make_pwm_actor, make_value_ensemble
from torchrl_pwm.envs.simulators import AnalyticEnv

KEY = "normalized_observation"


@pytest.mark.parametrize("task", ["cartpole_swingup", "double_pendulum"])
@pytest.mark.parametrize("transformed", [False, True])
def test_gradients_flow_through_the_analytic_simulators(task, transformed):
    env = AnalyticEnv(task, 3, requires_grad=True, dtype=torch.float64, episode_length=7)
    size = env.observation_spec["observation"].shape[-1]
    env = TransformedEnv(env, RewardSum()) if transformed else env
    actor = make_pwm_actor(size, 1, units=(8,), in_key=KEY)
    value = make_value_ensemble(size, units=(8,), in_key=KEY)
    loss = SHACLoss(actor, value, horizon=5, normalizer=ObservationNormalizer(size)).double()
    td, ended = env.reset(), []
    for _ in range(3):
        rollout, td = loss.rollout(env, td)
        ended.append(bool(rollout["next", "truncated"].any()))
        loss(rollout)["loss_actor"].backward()
        gradients = [param.grad for param in loss.actor_network_params.parameters()]
        assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in gradients)
    assert ended == [False, True, True] and loss.normalizer.moments.count == pytest.approx(45, rel=1e-3)


def test_a_analytic_simulator_without_gradient_is_refused():
    env = AnalyticEnv("double_pendulum", 3)
    loss = SHACLoss(make_pwm_actor(6, 1, in_key="observation"), make_value_ensemble(6, in_key="observation"))
    with pytest.raises((ValueError, RuntimeError), match="requires_grad=True"):
        loss.rollout(env, env.reset())
