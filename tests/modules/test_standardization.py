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


def test_a_part_of_a_state_dict_leaves_the_statistics_as_they_are():
    model = PWMWorldModel(5, 2, latent_dim=16, units=(8,))
    model.set_observation_statistics(torch.arange(5.0), torch.ones(5) * 2)
    part = {name: value for name, value in model.state_dict().items() if name.startswith("_reward.")}
    model.load_state_dict(part, strict=False)
    assert model.observation_mean.flatten().tolist() == [0, 1, 2, 3, 4]
    other = PWMWorldModel(5, 2, latent_dim=16, units=(8,))
    model.load_state_dict({**other.state_dict()}, strict=False)
    assert model.observation_std.flatten().tolist() == [2] * 5


def test_a_whole_state_dict_without_statistics_takes_them_away():
    model, other = (PWMWorldModel(5, 2, latent_dim=16, units=(8,)) for _ in range(2))
    model.set_observation_statistics(torch.zeros(5), torch.ones(5) * 2)
    model.load_state_dict(other.state_dict())
    assert model.observation_mean is None and model.observation_std is None


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("lost", ["observation_mean", "observation_std"])
def test_half_of_the_statistics_is_refused(lost, strict):
    model, other = (PWMWorldModel(5, 2, latent_dim=16, units=(8,)) for _ in range(2))
    model.set_observation_statistics(torch.zeros(5), torch.ones(5) * 2)
    state = {name: value for name, value in model.state_dict().items() if name != lost}
    with pytest.raises(RuntimeError, match=lost):
        other.load_state_dict(state, strict=strict)


def test_half_of_the_statistics_replaces_its_half_of_those_that_are_there():
    model = PWMWorldModel(5, 2, latent_dim=16, units=(8,))
    model.set_observation_statistics(torch.zeros(5), torch.ones(5) * 2)
    model.load_state_dict({"observation_mean": torch.ones(1, 5)}, strict=False)
    assert model.observation_mean.eq(1).all() and model.observation_std.eq(2).all()


def test_standardized_observations_are_clipped_where_that_is_asked_for():
    model = PWMWorldModel(2, 1, latent_dim=16, units=(8,), observation_clip=3.0)
    raw = torch.tensor([[9.0, -1.0]])
    assert model.standardize_observation(raw).equal(raw)
    model.set_observation_statistics(torch.zeros(2), torch.ones(2))
    assert model.standardize_observation(raw).tolist() == [[3.0, -1.0]]


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_a_clip_that_is_not_positive_is_refused(clip):
    with pytest.raises(ValueError, match="observation_clip must be above 0"):
        PWMWorldModel(2, 1, latent_dim=16, observation_clip=clip)


def test_a_part_of_the_state_of_a_module_around_it_leaves_the_statistics_as_they_are():
    model = PWMWorldModel(5, 2, latent_dim=16, units=(8,))
    model.set_observation_statistics(torch.zeros(5), torch.ones(5) * 2)
    around = torch.nn.ModuleDict({"world_model": model, "other": torch.nn.Linear(1, 1)})
    part = {name: value for name, value in around.state_dict().items() if "_encoder" not in name and "std" not in name}
    around.load_state_dict({name: value for name, value in part.items() if "mean" not in name}, strict=False)
    assert model.observation_std.eq(2).all()
    around.load_state_dict(around.state_dict())
    assert model.observation_std.eq(2).all()


def test_an_encoder_of_ones_own_reads_standardised_vectors_and_pictures_have_no_statistics():
    model = PWMWorldModel(3, 2, latent_dim=8, units=(8,), encoder=torch.nn.Linear(3, 8), observation_clip=2.0)
    raw = torch.tensor([[4.0, 30.0, -500.0]])
    expected = model.encode_observation(torch.tensor([[1.0, 2.0, -2.0]]))
    model.set_observation_statistics(torch.tensor([2.0, 10.0, 0.0]), torch.tensor([2.0, 10.0, 1.0]))
    assert torch.equal(model.encode_observation(raw), expected)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8))
    pictures = PWMWorldModel((3, 4, 4), 2, latent_dim=8, units=(8,), encoder=encoder)
    with pytest.raises(ValueError, match=r"Statistics are for vectors, found .*\(3, 4, 4\)"):
        pictures.set_observation_statistics(torch.zeros(48), torch.ones(48))


def test_the_size_of_a_vector_may_be_given_as_a_shape():
    model = PWMWorldModel(torch.Size([3]), 2, latent_dim=8, units=(8,))
    model.set_observation_statistics(torch.zeros(3), torch.ones(3))
    assert model.observation_dim == 3 and model.observation_mean.shape == (1, 3)
