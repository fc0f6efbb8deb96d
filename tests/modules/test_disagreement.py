"""The ensemble whose disagreement says where data are missing."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_pwm import DynamicsEnsemble, PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble


def make_model(num_tasks: int = 3) -> PWMWorldModel:
    return PWMWorldModel(
        5, 2, latent_dim=16, units=(16,), num_bins=11, num_tasks=num_tasks, task_dim=4 if num_tasks else 0
    )


@pytest.mark.parametrize("num_tasks", [0, 3])
def test_shapes_follow_the_batch(num_tasks):
    ensemble = DynamicsEnsemble(make_model(num_tasks), num_heads=4)
    task = torch.tensor([0, 2, 1]) if num_tasks else None
    assert ensemble(torch.rand(7, 3, 16), torch.rand(7, 3, 2), task).shape == (7, 3, 1)
    assert ensemble.predict(torch.rand(3, 16), torch.rand(3, 2), task).shape == (4, 3, 17)


def test_the_model_is_no_part_of_it():
    model = make_model()
    names = {name for name, _ in DynamicsEnsemble(model).named_parameters()}
    assert names and all(name.startswith(("weights", "biases")) for name in names)


def test_training_brings_agreement_on_the_data_and_not_beyond():
    torch.manual_seed(0)
    model = make_model(0)
    ensemble = DynamicsEnsemble(model)
    latent = model.encode_observation(torch.randn(256, 5)).detach()
    action = torch.rand(256, 2) * 0.4
    with torch.no_grad():
        following, reward = model.next_latent(latent, action), action.sum(-1, keepdim=True)
    optimizer = torch.optim.Adam(ensemble.parameters(), 1e-3)
    for _ in range(600):
        optimizer.zero_grad()
        ensemble.loss(latent, action, following, reward, None).backward()
        optimizer.step()
    with torch.no_grad():
        at_home, away = ensemble(latent, action).mean(), ensemble(latent, -action - 0.5).mean()
    assert 0.3 < at_home < 3.0  # in units of its own average
    assert away > 3 * at_home


def test_the_penalty_is_taken_off_the_rewards_and_reaches_the_policy():
    torch.manual_seed(0)
    model = make_model(0)
    actor, value = make_pwm_actor(16, 2, units=(8,)), make_value_ensemble(16, units=(8,))
    ensemble = DynamicsEnsemble(model)
    plain, careful = (
        PWMLoss(actor, value, model, horizon=3, disagreement=ensemble, disagreement_coef=coefficient)
        for coefficient in (0.0, 0.5)
    )
    start, noise = TensorDict({"observation": torch.randn(6, 5)}, [6]), torch.randn(3, 6, 2)
    with_penalty, without = careful.imagine(start, noise), plain.imagine(start, noise)
    spread = ensemble(without["latent"], without["action"])
    torch.testing.assert_close(with_penalty["next", "reward"], without["next", "reward"] - 0.5 * spread)
    careful(start)["loss_actor"].backward()
    assert all(weight.grad is None for weight in ensemble.parameters())
    # the untrained reward head is zero: what reaches the actor came through the penalty
    assert any(p.grad.abs().sum() > 0 for p in careful.actor_network_params.parameters())


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="at least 2 heads, found 1"):
        DynamicsEnsemble(make_model(), num_heads=1)
    actor, value = make_pwm_actor(16, 2), make_value_ensemble(16)
    with pytest.raises(ValueError, match="disagreement_coef needs disagreement="):
        PWMLoss(actor, value, make_model(), disagreement_coef=0.1)
