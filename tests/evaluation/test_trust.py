"""Predicted beside real rewards."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

pytest.importorskip("dm_control")

from torchrl_pwm import PWMWorldModel, make_pwm_actor
from torchrl_pwm.envs import MT80
from torchrl_pwm.evaluation.open_loop import ObservationReader
from torchrl_pwm.evaluation.trust import open_loop_rewards, probe_trust, trust_line


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = PWMWorldModel(39, 6, latent_dim=16, encoder_units=(16,), units=(16,), num_bins=11, num_tasks=80, task_dim=4)
    model.requires_grad_(False)
    for parameter in model.parameters():
        # the reward head of a new model is zero
        parameter.normal_(std=0.3)
    return model


def test_open_loop_rewards_are_those_of_single_steps(model):
    batch = TensorDict(
        {
            "observation": torch.randn(3, 4, 39),
            "action": torch.rand(3, 4, 6),
            "task": torch.tensor([[1], [4], [7]]).expand(3, 4),
        },
        [3, 4],
    )
    rewards = open_loop_rewards(model, batch)
    latent, task = model.encode_observation(batch["observation"][:, 0], batch["task"][:, 0]), batch["task"][:, 0]
    for step in range(4):
        action = batch["action"][:, step]
        torch.testing.assert_close(
            rewards[:, step], model.decode_reward(model.reward_logits(latent, action, task))[:, 0]
        )
        latent = model.next_latent(latent, action, task)


def test_a_model_that_promises_one_more_than_the_env_pays_shows_it(model, monkeypatch):
    actor = make_pwm_actor(16, 6, units=(8,))
    # a pendulum that hangs is paid nothing: the constant that the model promises is its error
    bins = torch.full((11,), -30.0)
    bins[6] = 30.0
    monkeypatch.setattr(model, "reward_logits", lambda latent, *_: bins.expand(*latent.shape[:-1], 11))
    promised = float(model.decode_reward(bins[None]))
    probe = probe_trust(actor, model, "pendulum-swingup", episodes=1, seed=1)
    paid = probe.returns[0] / MT80["pendulum-swingup"].episode_length
    assert set(probe.errors) == {1, 4, 8, 16} and probe.successes is None
    assert abs(probe.errors[1] - (promised - paid)) < 0.05
    logged = probe.metrics()
    assert {f"trust_step{step}": error for step, error in probe.errors.items()}.items() <= logged.items()
    # what is promised in each step of an imagined episode as well
    assert logged["predicted_return"] == pytest.approx(promised * MT80["pendulum-swingup"].episode_length, rel=1e-3)
    assert logged["exploited"] == 1.0 and probe.line.startswith("exploits its model: imagined ")
    assert all(probe.absolute_errors[step] >= abs(error) - 1e-6 for step, error in probe.errors.items())


def test_what_a_policy_writes_into_the_padding_is_no_error_of_a_masked_action():
    torch.manual_seed(0)
    options = {"latent_dim": 16, "units": (16,), "num_bins": 11, "num_tasks": 80, "task_dim": 4}
    model = PWMWorldModel(39, 6, action_dims=MT80.action_dims, **options).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    actor = make_pwm_actor(16, 6, units=(8,))
    found = []
    for shift in (-3.0, 3.0):
        # of a pendulum's six entries the last five
        actor.state_dict()["module.0.module.mu_net.3.bias"][1:] = shift
        found.append(probe_trust(actor, model, "pendulum-swingup", episodes=1, seed=1, mask_actions=True))
    assert found[0].returns == pytest.approx(found[1].returns)
    assert found[0].errors == pytest.approx(found[1].errors)
    unmasked = probe_trust(actor, model, "pendulum-swingup", episodes=1, seed=1)
    assert unmasked.errors != pytest.approx(found[1].errors)


def test_success_is_that_of_the_last_step_and_seeds_repeat(model):
    pytest.importorskip("metaworld")
    actor = make_pwm_actor(16, 6, units=(8,))
    first, second = (probe_trust(actor, model, "mw-reach", episodes=2, seed=3) for _ in range(2))
    assert first.successes.shape == (2,)
    assert first.errors == second.errors and (first.returns == second.returns).all()


@pytest.mark.parametrize("options", [{"steps": (0, 4)}, {"steps": (501,)}, {"episodes": 0}])
def test_steps_that_no_episode_has_are_refused(model, options):
    with pytest.raises(ValueError, match="steps must lie in 1 to 500"):
        probe_trust(make_pwm_actor(16, 6), model, "pendulum-swingup", **options)


def test_the_line_names_what_it_knows():
    assert trust_line(True, 852.31, 401.0, 24.31) == "exploits its model: imagined 852.3, real 401, V - G +24.3"
    assert trust_line(False, 10.0, 12.0, None) == "no sign of exploitation: imagined 10, real 12"


@pytest.mark.parametrize("decoder", [False, True])
def test_observations_are_read_in_their_standard_deviations(decoder):
    torch.manual_seed(0)
    model = PWMWorldModel(4, 2, latent_dim=32, encoder_units=(64,), simnorm_dim=0, decoder=decoder)
    states = TensorDict({"observation": torch.randn(512, 4) * torch.tensor([1.0, 50.0, 0.02, 0.0])}, [512])
    model.set_observation_statistics(torch.zeros(4), torch.tensor([1.0, 50.0, 0.02, 1.0]))
    reader = ObservationReader(model, states)
    read = reader(model.encode_observation(states["observation"]))
    # the entry that does not vary is left out, and an untrained decoder explains nothing
    assert read.shape == (512, 3)
    if decoder:
        assert reader.explained < 0.1
    else:
        expected = states["observation"][:, :3] / states["observation"][:, :3].std(0)
        assert reader.explained > 0.8 and (read - expected).square().mean() < 0.2
