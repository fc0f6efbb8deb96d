"""Residual dynamics: where they begin, what they keep, and what they buy."""

from __future__ import annotations

import pytest
import torch

from torchrl_pwm import PWMWorldModel, PWMWorldModelLoss
from torchrl_pwm.data import make_online_replay
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.modules.layers import ResidualLatent
from torchrl_pwm.trainers import WorldModelOptimizationStepper


def make_model(simnorm_dim, **options):
    return PWMWorldModel(5, 1, latent_dim=16, units=(32, 32), simnorm_dim=simnorm_dim, residual=True, **options)


@pytest.mark.parametrize("simnorm_dim", [0, 8])
def test_a_new_model_changes_nothing(simnorm_dim):
    model = make_model(simnorm_dim)
    latent = model.encode_observation(torch.randn(7, 5))
    torch.testing.assert_close(model.next_latent(latent, torch.randn(7, 1)), latent, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("simnorm_dim", [0, 8])
def test_latents_stay_normalised_and_the_gradient_flows(simnorm_dim):
    torch.manual_seed(0)
    model = make_model(simnorm_dim)
    for parameter in model.dynamics_network.parameters():
        torch.nn.init.normal_(parameter)
    latent = start = model.encode_observation(torch.randn(7, 5)).detach().requires_grad_()
    for _ in range(20):
        latent = model.next_latent(latent, torch.randn(7, 1))
    if simnorm_dim:
        torch.testing.assert_close(latent.unflatten(-1, (-1, simnorm_dim)).sum(-1), torch.ones(7, 2))
    else:
        torch.testing.assert_close(latent.mean(-1), torch.zeros(7), atol=1e-5, rtol=0)
        torch.testing.assert_close(latent.var(-1, correction=0), torch.ones(7), atol=1e-3, rtol=0)
    latent.square().sum().backward()
    assert start.grad.isfinite().all()


def test_a_latent_of_zero_probability_has_a_finite_step():
    latent = torch.tensor([[1.0, 0.0]], requires_grad=True)
    step = ResidualLatent(2).step(latent, torch.zeros(1, 2))
    step[0, 0].backward()
    assert step.isfinite().all() and latent.grad.isfinite().all()


def test_precomputed_task_parts_give_the_same_step():
    model = make_model(8, num_tasks=3, task_dim=4)
    torch.nn.init.normal_(model.dynamics_network[-1].weight)
    task = torch.tensor([0, 2, 1, 2])
    latent = model.encode_observation(torch.randn(4, 5), task)
    action = torch.randn(4, 1)
    torch.testing.assert_close(
        model.next_latent(latent, action, model.task_context(task)), model.next_latent(latent, action, task)
    )


def test_it_predicts_further_than_the_published_form_after_as_many_updates():
    torch.manual_seed(0)
    data = AnalyticEnv("cartpole_swingup", 64, seed=0).rollout(240).detach()
    replay = make_online_replay(data.numel(), slice_len=16, batch_size=64)
    replay.extend(data.select("observation", "action", "next"))
    seen, errors = data["observation"].reshape(-1, 5), {}
    for residual in (False, True):
        torch.manual_seed(0)
        sizes = {"latent_dim": 32, "encoder_units": (64,), "units": (64, 64)}
        model = PWMWorldModel(5, 1, **sizes, num_bins=None, normalize_rewards=True, residual=residual)
        model.set_observation_statistics(seen.mean(0), seen.std(0))
        stepper = WorldModelOptimizationStepper(
            PWMWorldModelLoss(model, reward_coef=1.0), iterations=150, lr=1e-3, encoder_lr_scale=1.0
        )
        for _ in range(150):
            stepper.update(replay.sample())
        with torch.no_grad():
            latent = model.encode_observation(data["observation"][:, 40])
            for step in range(40, 56):
                latent = model.next_latent(latent, data["action"][:, step])
            reward = model.decode_reward(model.reward_logits(latent, data["action"][:, 56]))
            errors[residual] = (reward - data["next", "reward"][:, 56]).square().mean()
    assert errors[True] < 0.5 * errors[False]
