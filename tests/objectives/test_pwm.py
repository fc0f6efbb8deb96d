"""PWMLoss: start states, reward spaces, noise, masks, policies and value networks of other kinds."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator

from tests.objectives.test_loss_checklist import (
    ACTION,
    BATCH,
    HORIZON,
    LATENT,
    TASKS,
    make_model,
    make_pwm,
    sequences,
    starts,
)
from torchrl_pwm import PWMLoss, make_pwm_actor, make_value_ensemble


@pytest.mark.parametrize(
    ("option", "value"), [("horizon", 0), ("reward_space", "log"), ("bootstrap", "none"), ("mask_actions", True)]
)
def test_bad_options_are_refused(option: str, value) -> None:
    actor, critic = make_pwm_actor(LATENT, ACTION), make_value_ensemble(LATENT)
    with pytest.raises(ValueError, match=option):
        PWMLoss(actor, critic, make_model(), **{option: value})


@pytest.mark.parametrize(
    ("actor", "critics", "message"),
    [
        ((32, ACTION), LATENT, f"the actor reads latents of 32 entries, those of the model have {LATENT}"),
        ((LATENT, 9), LATENT, f"the actor writes actions of 9 entries, those of the model have {ACTION}"),
        ((LATENT, ACTION), 32, f"the critics read latents of 32 entries, those of the model have {LATENT}"),
    ],
)
def test_networks_for_another_model_are_refused(actor, critics, message) -> None:
    with pytest.raises(ValueError, match=message):
        PWMLoss(make_pwm_actor(*actor), make_value_ensemble(critics), make_model())


def test_missing_start_states_are_named() -> None:
    with pytest.raises(ValueError, match=r"observation.*latent.*state.*set_keys"):
        make_pwm()(TensorDict({"state": torch.zeros(2, 5)}, [2]))


def test_missing_task_is_named() -> None:
    with pytest.raises(ValueError, match="task"):
        make_pwm(TASKS)(starts())


def test_latents_serve_as_start_states() -> None:
    loss, td = make_pwm(), starts()
    noise = torch.randn(HORIZON, BATCH, ACTION)
    latent = loss.world_model.encode_observation(td["observation"])
    expected = loss.imagine(td, noise)
    torch.testing.assert_close(loss.imagine(TensorDict({"latent": latent}, [BATCH]), noise), expected)


def test_reward_space_raw_is_the_decoded_reward() -> None:
    loss, td = make_pwm(), starts()
    noise = torch.zeros(HORIZON, BATCH, ACTION)
    symlog = loss.imagine(td, noise)["next", "reward"]
    loss.reward_space = "raw"
    raw = loss.imagine(td, noise)["next", "reward"]
    torch.testing.assert_close(raw, symlog.sign() * symlog.abs().expm1())


def test_same_seed_same_losses_and_noise_overrides_it() -> None:
    loss, td = make_pwm(), starts()
    rollouts = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        rollouts.append(loss.imagine(td)["action"])
    assert torch.equal(rollouts[0], rollouts[1]) and not torch.equal(rollouts[0], rollouts[2])
    noise = torch.randn(HORIZON, BATCH, ACTION)
    assert torch.equal(loss.imagine(td, noise)["action"], loss.imagine(td, noise)["action"])


def test_masked_actions_are_zero_in_the_padding_of_each_task() -> None:
    actor, value = make_pwm_actor(LATENT, ACTION, units=(12,)), make_value_ensemble(LATENT, units=(12,))
    loss = PWMLoss(actor, value, make_model(TASKS, action_dims=[1, 2, 1]), horizon=HORIZON, mask_actions=True)
    td = starts(TASKS).set("task", torch.tensor([0, 1, 2, 0, 1, 2]))
    action = loss.imagine(td)["action"]
    assert (action[[0, 2, 3, 5], :, 1] == 0).all() and (action[[1, 4]] != 0).all()


def test_another_reparameterised_policy_works_and_refuses_noise() -> None:
    net = TensorDictModule(nn.Linear(LATENT, 2 * ACTION), ["latent"], ["params"])
    split = TensorDictModule(lambda x: (x[..., :ACTION], x[..., ACTION:].exp()), ["params"], ["loc", "scale"])
    actor = ProbabilisticActor(
        TensorDictSequential(net, split), in_keys=["loc", "scale"], distribution_class=IndependentNormal
    )
    loss = PWMLoss(actor, make_value_ensemble(LATENT), make_model(), horizon=2)
    loss(starts())["loss_actor"].backward()
    assert net.module.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="tanh-Gaussian"):
        loss.imagine(starts(), torch.zeros(2, BATCH, ACTION))


def test_a_single_torchrl_value_network_works() -> None:
    value = ValueOperator(nn.Linear(LATENT, 1), in_keys=["latent"])
    loss = PWMLoss(make_pwm_actor(LATENT, ACTION), value, make_model(), horizon=HORIZON)
    loss(starts())["loss_value"].backward()
    assert value.module.weight.grad.abs().sum() > 0


def test_first_steps_of_replayed_sequences_serve_as_start_states() -> None:
    buffer = ReplayBuffer(storage=LazyTensorStorage(BATCH), batch_size=3)
    buffer.extend(sequences(TASKS))
    assert make_pwm(TASKS)(buffer.sample()[:, 0])["loss_actor"].isfinite()


def test_float64_stays_float64() -> None:
    loss = make_pwm()
    loss.double()
    loss.world_model.double()
    out = loss(starts().double())
    assert out["loss_actor"].dtype == out["loss_value"].dtype == torch.float64


def test_evaluation_mode_leaves_the_return_scale_as_it_is() -> None:
    loss = make_pwm()
    before = loss.return_moments.count.clone()
    loss.eval()(starts())
    assert loss.return_moments.count == before
    loss.train()(starts())
    assert loss.return_moments.count > before
