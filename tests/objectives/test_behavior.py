"""The behaviour term of PWMLoss, and the warm start that uses it."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import TensorDictReplayBuffer, TensorStorage

from tests.objectives.test_loss_checklist import ACTION, BATCH, LATENT, TASKS, make_model, make_pwm, starts
from torchrl_pwm import PWMLoss, make_pwm_actor, make_value_ensemble
from torchrl_pwm.trainers import PWMOptimizationStepper
from torchrl_pwm.trainers.pwm import warm_start


def with_actions(num_tasks: int = 0) -> TensorDict:
    return starts(num_tasks).set("action", torch.rand(BATCH, ACTION) * 2 - 1)


def mean_action(loss: PWMLoss, td: TensorDict) -> torch.Tensor:
    latent = loss.world_model.encode_observation(td["observation"], td.get("task", None))
    return loss.actor_network.get_dist(TensorDict({"latent": latent}, [BATCH])).deterministic_sample


def test_it_is_the_squared_distance_of_the_mean_action():
    loss, td = make_pwm(behavior_coef=0.7), with_actions()
    expected = 0.7 * (mean_action(loss, td) - td["action"]).square().mean()
    torch.testing.assert_close(loss(td)["loss_behavior"], expected)
    assert "loss_behavior" in loss.out_keys and "action" in loss.in_keys


def test_padded_entries_do_not_count():
    actor, value = make_pwm_actor(LATENT, ACTION, units=(12,)), make_value_ensemble(LATENT, units=(12,))
    loss = PWMLoss(actor, value, make_model(TASKS, action_dims=[1, 2, 2]), horizon=2, behavior_coef=1.0)
    td = with_actions(TASKS)
    td["task"].zero_()
    expected = (mean_action(loss, td) - td["action"])[:, 0].square().mean()
    torch.testing.assert_close(loss(td)["loss_behavior"], expected)


def test_only_the_mean_of_the_actor_is_trained_by_it():
    loss = make_pwm(behavior_coef=1.0)
    loss.behavior_loss(with_actions()).backward()
    grads = {name: p.grad for name, p in loss.named_parameters()}
    assert any(grad is not None and grad.abs().sum() > 0 for name, grad in grads.items() if "mu_net" in name)
    assert all(grad is None for name, grad in grads.items() if "value" in name or "logstd" in name)
    assert all(p.grad is None for p in loss.world_model.parameters())


def test_without_it_the_losses_are_as_before():
    loss, td = make_pwm(), with_actions()
    assert "loss_behavior" not in loss(td)
    assert "action" not in loss.in_keys


def test_call_without_tensordict_takes_the_action():
    loss, td = make_pwm(behavior_coef=1.0), with_actions()
    values = loss(observation=td["observation"], action=td["action"])
    assert values[loss.out_keys.index("loss_behavior")] == loss(td)["loss_behavior"]


def test_start_states_without_action_are_refused():
    with pytest.raises(ValueError, match="needs the entry 'action'"):
        make_pwm(behavior_coef=1.0)(starts())


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_coefficients_are_refused(value):
    with pytest.raises(ValueError, match="behavior_coef must be finite and at least 0"):
        make_pwm(behavior_coef=value)


def test_the_warm_start_clones_and_values_the_behaviour():
    torch.manual_seed(0)
    loss = make_pwm()
    stepper = PWMOptimizationStepper(loss, iterations=1, critic_iterations=1)
    td = with_actions()
    td["action"] = td["observation"][:, :ACTION].tanh()
    replay = TensorDictReplayBuffer(storage=TensorStorage(td), batch_size=BATCH)
    before = loss.behavior_distance(td).item()
    critics = [p.detach().clone() for p in stepper.critic_params]
    warm_start(loss, stepper, replay, behavior_updates=300, lr=1e-2)
    assert loss.behavior_distance(td).item() < 0.1 * before
    assert all(torch.equal(p, old) for p, old in zip(stepper.critic_params, critics))
    actor = [p.detach().clone() for p in stepper.actor_params]
    warm_start(loss, stepper, replay, value_updates=2)
    assert all(torch.equal(p, old) for p, old in zip(stepper.actor_params, actor))
    assert not all(torch.equal(p, old) for p, old in zip(stepper.critic_params, critics))


def test_an_update_takes_the_behaviour_term_along():
    torch.manual_seed(0)
    loss = make_pwm(behavior_coef=1e3)
    stepper = PWMOptimizationStepper(loss, iterations=200, critic_iterations=1, actor_lr=5e-3)
    td = with_actions()
    before = loss.behavior_distance(td).item()
    for _ in range(200):
        metrics = stepper.update(td)
    assert loss.behavior_distance(td).item() < 0.2 * before
    assert float(metrics["loss_behavior"]) > 0
