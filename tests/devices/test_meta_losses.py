"""Losses and models on ``meta``, which refuses mixed devices and every read of a number, as a GPU would wait for it."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from tests.devices.parts import LATENT, META, MODELS, make_model, make_policy_loss, make_tdmpc2, sequences
from torchrl_pwm import (
    FirstOrderLoss,
    ObservationNormalizer,
    PWMWorldModelLoss,
    SHACLoss,
    TDMPC2Loss,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.modules import DynamicsEnsemble, PercentileScale, RunningMoments

# normalised rewards are of models with a scalar head alone
BINNED = [name for name in MODELS if name not in ("normalised rewards", "heads and decoder")]


def assert_there(module, losses=None):
    tensors = [*module.named_parameters(), *module.named_buffers(), *(losses.items() if losses is not None else ())]
    assert [name for name, value in tensors if value.device.type != META] == []


def back_propagate(losses):
    sum(value.sum() for name, value in losses.items() if name.startswith("loss_")).backward()


@pytest.mark.parametrize("built", ["before it moves", "after it moved"])
@pytest.mark.parametrize("name", MODELS)
def test_world_model_loss(name, built):
    if built == "after it moved":
        loss = PWMWorldModelLoss(make_model(name))
    else:
        loss = PWMWorldModelLoss(make_model(name, "cpu")).to(META)
    losses = loss(sequences(name))
    back_propagate(losses)
    assert_there(loss, losses)


@pytest.mark.parametrize("name", MODELS)
def test_pwm_loss(name):
    options = {"mask_actions": True} if name == "tasks" else {}
    loss = make_policy_loss(make_model(name), behavior_coef=0.1, delay_value=True, **options)
    losses = loss(sequences(name)[:, 0])
    back_propagate(losses)
    assert_there(loss, losses)
    assert all(param.grad is not None for param in loss.parameters() if param.requires_grad)


@pytest.mark.parametrize("bootstrap", ["standard", "reference"])
@pytest.mark.parametrize("flags", [(), ("done",), ("done", "terminated"), ("continuation",), ("done", "continuation")])
def test_first_order_loss(flags, bootstrap):
    loss = FirstOrderLoss(make_pwm_actor(LATENT, 2).to(META), make_value_ensemble(LATENT).to(META), bootstrap=bootstrap)
    size = (4, 6)
    further = {
        flag: torch.ones(*size, 1, dtype=torch.float if flag == "continuation" else torch.bool) for flag in flags
    }
    reward = torch.randn(*size, 1, device=META, requires_grad=True)
    step = TensorDict({"latent": torch.randn(*size, LATENT), **further}, size).to(META).set("reward", reward)
    losses = loss(TensorDict({"latent": torch.randn(*size, LATENT, device=META), "next": step}, size))
    back_propagate(losses)
    assert_there(loss, losses)


def test_shac_loss_on_a_window_with_a_normaliser():
    key = "normalized_observation"
    actor, critics = make_pwm_actor(5, 1, in_key=key).to(META), make_value_ensemble(5, in_key=key).to(META)
    loss = SHACLoss(actor, critics, horizon=3, normalizer=ObservationNormalizer(5))
    step = TensorDict({"observation": torch.randn(4, 3, 5), key: torch.randn(4, 3, 5)}, [4, 3])
    step["done"] = step["terminated"] = torch.zeros(4, 3, 1, dtype=torch.bool)
    window = TensorDict({**step.exclude("done", "terminated"), "next": step}, [4, 3]).to(META)
    window["next", "reward"] = torch.randn(4, 3, 1, device=META, requires_grad=True)
    losses = loss(window)
    back_propagate(losses)
    assert_there(loss, losses)


@pytest.mark.parametrize("built", ["before it moves", "after it moved"])
@pytest.mark.parametrize("name", BINNED)
def test_tdmpc2_loss(name, built):
    model = make_tdmpc2(name, META if built == "after it moved" else "cpu")
    loss = TDMPC2Loss(model).to(META)
    losses = loss(sequences(name))
    back_propagate(losses)
    model.update_target()
    assert_there(loss, losses)


def test_coefficients_of_a_loss_lie_beside_the_networks_that_it_was_given():
    for loss in (PWMWorldModelLoss(make_model("termination")), TDMPC2Loss(make_tdmpc2("termination"))):
        assert_there(loss)


def test_value_targets_chosen_after_the_networks_moved_lie_beside_them():
    loss = make_policy_loss(make_model("scalar head"))
    loss.make_value_estimator(gamma=0.9, lmbda=0.8)
    assert_there(loss)


@pytest.mark.parametrize("name", ["scalar head", "tasks"])
def test_imagined_rewards_with_disagreement_penalised(name):
    model = make_model(name)
    ensemble = DynamicsEnsemble(model).to(META)
    loss = make_policy_loss(model, disagreement=ensemble, disagreement_coef=0.5)
    back_propagate(loss(sequences(name)[:, 0]))
    assert_there(ensemble)


@pytest.mark.parametrize("masked", [False, True])
def test_running_moments(masked):
    moments, batch = RunningMoments((3,)).to(META), torch.randn(8, 3, device=META)
    moments.update(batch, torch.ones(8, dtype=torch.bool, device=META) if masked else None)
    assert moments.unnormalize(moments.normalize(batch, clip=5.0)).device.type == META


def test_moments_of_the_samples_that_count_are_those_of_them_alone():
    batch, counts = torch.randn(50, 3) + 4.0, torch.rand(50) < 0.3
    masked, alone = RunningMoments((3,)), RunningMoments((3,))
    batch[~counts] = torch.nan
    for _ in range(2):
        masked.update(batch, counts)
        alone.update(batch[counts])
    torch.testing.assert_close(masked.state_dict(), alone.state_dict())
    before = masked.mean.clone()
    masked.update(batch, torch.zeros(50, dtype=torch.bool))
    assert torch.equal(masked.mean, before)


def test_percentile_scale_and_observation_normaliser():
    scale, values = PercentileScale().to(META), torch.randn(20, device=META)
    scale.update(values)
    assert scale(values).device.type == META
    normalizer = ObservationNormalizer(5).to(META)
    td = sequences()
    normalizer.update(td)
    assert normalizer(td)["normalized_observation"].device.type == META


@pytest.mark.parametrize("name", MODELS)
def test_statistics_and_heads_that_are_added_later_lie_beside_the_model(name):
    model = make_model(name)
    statistics = torch.zeros(5), torch.ones(5)
    model.set_observation_statistics(*(s.expand(3, 5) if model.num_tasks else s for s in statistics))
    if not model.termination:
        model.add_termination_head()
    assert_there(model)
    model.encode_observation(torch.randn(4, 5, device=META), 0 if model.num_tasks else None)
