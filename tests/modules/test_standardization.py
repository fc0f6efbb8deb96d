"""Rewards in units of their spread."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_pwm import PWMLoss, PWMWorldModel, PWMWorldModelLoss, make_pwm_actor, make_value_ensemble


def make_model(**options):
    torch.manual_seed(0)
    model = PWMWorldModel(3, 2, latent_dim=8, units=(8,), encoder_units=(8,), **{"normalize_rewards": True, **options})
    # Its own first output is zero.
    torch.nn.init.normal_(model.reward_network[-1].weight)
    return model


def make_sequences(rewards):
    size = rewards.shape[:2]
    draws = torch.Generator().manual_seed(1)
    step = TensorDict({"observation": torch.randn(*size, 3, generator=draws), "reward": rewards}, size)
    root = {"observation": torch.randn(*size, 3, generator=draws), "action": torch.zeros(*size, 2), "next": step}
    return TensorDict(root, size)


def test_the_head_learns_clipped_normalised_rewards_after_the_moments_took_in_the_batch():
    model = make_model()
    rewards = torch.randn(64, 4, 1, generator=torch.Generator().manual_seed(2)) * 3 + 7
    rewards[0, 0] = 500.0
    td = make_sequences(rewards)
    loss = PWMWorldModelLoss(model, reward_coef=1.0, rho=1.0)
    result = loss(td)["loss_reward"]
    mean, var = rewards.mean(), rewards.var(correction=0)
    torch.testing.assert_close(model.reward_moments.mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.reward_moments.var, var, rtol=1e-4, atol=1e-4)
    target = ((rewards - mean) / (var + 1e-5).sqrt()).clamp(-5, 5)
    assert (target == 5).sum() == 1
    latent, errors = model.encode_observation(td["observation"][:, 0]), []
    for step in range(4):
        errors.append((model.reward_logits(latent, td["action"][:, step]) - target[:, step]).square())
        latent = model.next_latent(latent, td["action"][:, step])
    torch.testing.assert_close(result, torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)


def test_moments_stand_still_in_eval_mode_and_leave_out_what_belongs_to_another_episode():
    model = make_model()
    rewards = torch.ones(8, 4, 1)
    rewards[:, 2:] = 100.0
    td = make_sequences(rewards)
    td["next", "done"] = torch.zeros(8, 4, 1, dtype=torch.bool)
    td["next", "done"][:, 1] = True
    loss = PWMWorldModelLoss(model)
    loss.eval()(td)
    assert model.reward_moments.count < 1
    loss.train()(td)
    torch.testing.assert_close(model.reward_moments.mean, torch.tensor(1.0), rtol=1e-3, atol=1e-3)


def test_raw_rewards_are_in_the_tasks_units_and_the_policys_return_in_those_of_the_head():
    model = make_model()
    model.reward_moments.update(torch.tensor([0.0, 20.0]))
    td = TensorDict({"observation": torch.randn(5, 3), "action": torch.zeros(5, 2)}, [5])
    normalised = model.reward_logits(model.encode_observation(td["observation"]), td["action"])
    torch.testing.assert_close(model(td)["next", "reward"], normalised * 10 + 10, rtol=1e-3, atol=1e-2)
    assert model.decode_reward(normalised, "symlog") is normalised
    actor, value = make_pwm_actor(8, 2), make_value_ensemble(8)
    noise = torch.zeros(2, 5, 2)
    rewards = [
        PWMLoss(actor, value, model, horizon=2, reward_space=space).imagine(td, noise)["next", "reward"]
        for space in ("raw", "symlog")
    ]
    torch.testing.assert_close(rewards[0], model.reward_moments.unnormalize(rewards[1]))


def test_moments_are_saved_with_the_model():
    model = make_model()
    model.reward_moments.update(torch.tensor([0.0, 20.0]))
    other = make_model()
    other.load_state_dict(model.state_dict())
    assert other.reward_moments.mean == model.reward_moments.mean
    assert "reward_moments.mean" not in PWMWorldModel(3, 2, latent_dim=8).state_dict()


def test_bins_need_no_moments():
    with pytest.raises(ValueError, match=r"needs a scalar reward head .* found num_bins=101"):
        make_model(num_bins=101)
