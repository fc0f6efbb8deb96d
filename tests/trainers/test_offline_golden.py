"""Three complete iterations of the published multi-task loop, repeated by the real training code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.objectives import ValueEstimators

from torchrl_pwm import PWMLoss, PWMWorldModel, PWMWorldModelLoss, make_pwm_actor, make_value_ensemble
from torchrl_pwm._utils.gated_steps import linear_schedule
from torchrl_pwm.trainers import PWMOptimizationStepper, PWMTrainer, WorldModelOptimizationStepper

CASES = ("single", "multi", "single_finetune")
STEPS = ("0", "1", "2")
UPDATE = {"rtol": 1e-3, "atol": 2e-4}
# Three steps of Adam move a parameter by at most 1.5e-3, so that parameters need a narrower band to say anything.
PARAMETERS = {"rtol": 1e-4, "atol": 2e-5}


def make_loss(case: dict[str, Any], value_type: ValueEstimators = ValueEstimators.TD0) -> PWMLoss:
    config, initial = case["config"], case["initial"]
    model = PWMWorldModel.from_tdmpc2(initial["world_model"], simnorm_dim=config["simnorm_dim"])
    actor = make_pwm_actor(config["latent_dim"], config["act_dim"], units=config["actor_units"])
    actor.load_reference_state_dict(initial["actor"])
    value = make_value_ensemble(config["latent_dim"], units=config["critic_units"], num_nets=config["num_critics"])
    value.load_reference_state_dict(initial["critic"])
    loss = PWMLoss(actor, value, model, horizon=config["horizon"], bootstrap="reference")
    return loss.make_value_estimator(value_type, gamma=config["gamma"])


def make_batch(case: dict[str, Any], step: str) -> TensorDictBase:
    """The stored time-major arrays as sequences [B, T]."""
    data = {name: case["inputs"][step][name].transpose(0, 1) for name in ("obs", "action", "reward")}
    size = data["action"].shape[:2]
    following = TensorDict({"observation": data["obs"][:, 1:], "reward": data["reward"]}, size)
    batch = TensorDict({"observation": data["obs"][:, :-1], "action": data["action"], "next": following}, size)
    if "task" in case:
        batch["task"] = torch.as_tensor(case["task"]).reshape(-1, 1).expand(size).clone()
    return batch


def make_model_stepper(case: dict[str, Any], loss: PWMLoss) -> WorldModelOptimizationStepper | None:
    if not case["config"]["finetune_wm"]:
        return None
    return WorldModelOptimizationStepper(
        PWMWorldModelLoss.single_task(loss.world_model, gamma=case["config"]["gamma"]),
        iterations=case["config"]["max_epochs"],
        final_lr=1e-5,
        encoder_lr_scale=1.0,
    )


def assert_final_parameters(case: dict[str, Any], loss: PWMLoss) -> None:
    final = case["final"]
    actor = loss.actor_network.get_submodule("module.0.module")
    with loss.actor_network_params.to_module(loss.actor_network):
        torch.testing.assert_close(dict(actor.state_dict()), dict(final["actor"]), **PARAMETERS)
    with loss.value_network_params.to_module(loss.value_network):
        torch.testing.assert_close(dict(loss.value_network.state_dict()), dict(final["critic"]), **PARAMETERS)
    if "world_model" in final:
        torch.testing.assert_close(dict(loss.world_model.state_dict()), dict(final["world_model"]), **PARAMETERS)


def as_float(value: Any) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float32).reshape(())


@pytest.mark.parametrize("name", CASES)
def test_three_updates_equal_the_published_ones(name, golden, monkeypatch):
    case = golden("offline_update")[name]
    loss = make_loss(case)
    stepper = PWMOptimizationStepper(loss, iterations=case["config"]["max_epochs"])
    model_stepper = make_model_stepper(case, loss)
    targets, norms = [], []
    estimate, clip = loss.value_target, nn.utils.clip_grad_norm_
    monkeypatch.setattr(loss, "value_target", lambda rollout: targets.append(estimate(rollout)) or targets[-1])
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *args: norms.append(clip(*args)) or norms[-1])

    for step in STEPS:
        batch, expected = make_batch(case, step), case["steps"][step]
        found: dict[str, Any] = {}
        if model_stepper is not None:
            model = model_stepper.update(batch)
            found["dynamics_loss"], found["reward_loss"] = model["loss_consistency"], model["loss_reward"]
            found["wm_loss"], found["wm_grad_norm"] = sum(found.values()), model["model_grad_norm"]
            assert model["model_lr"].item() == pytest.approx(expected["lrs"][2])
        rates = [
            float(group["lr"])
            for opt in (stepper.actor_optimizer, stepper.critic_optimizer)
            for group in opt.param_groups
        ]
        metrics = stepper.update(batch, case["inputs"][step]["eps"])
        found["actor_loss"], found["actor_grad_norm"] = metrics["loss_actor"], metrics["actor_grad_norm"]
        # The published code reports the norm of the last minibatch, we the mean of all.
        found["value_loss"], found["critic_grad_norm"] = metrics["loss_value"], norms[-1]

        assert rates == pytest.approx(expected["lrs"][:2])
        assert metrics["actor_lr"].item() == pytest.approx(expected["lrs"][0])
        assert set(found) == set(expected["metrics"])
        for key, value in expected["metrics"].items():
            torch.testing.assert_close(as_float(found[key]), as_float(value), **UPDATE, msg=lambda m, k=key: k + m)
        for key, value in expected["ret_rms"].items():
            torch.testing.assert_close(as_float(getattr(loss.return_moments, key)), as_float(value), **UPDATE)
        torch.testing.assert_close(targets[-1].squeeze(-1).T, expected["target_values"], rtol=1e-4, atol=1e-5)
        assert len(targets) == int(step) + 1
    assert_final_parameters(case, loss)


class GoldenNoise(PWMOptimizationStepper):
    """Takes the stored policy noise of each update, and fine-tunes the model first where the run did."""

    def __init__(self, case: dict[str, Any], loss: PWMLoss) -> None:
        super().__init__(loss, iterations=case["config"]["max_epochs"])
        self.noise = iter([case["inputs"][step]["eps"] for step in STEPS])
        self.model_stepper = make_model_stepper(case, loss)

    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        if self.model_stepper is not None:
            self.model_stepper.update(sub_batch)
        return self.update(sub_batch, next(self.noise))


@pytest.mark.parametrize("name", CASES)
def test_trainer_reaches_the_published_parameters(name, golden):
    case = golden("offline_update")[name]
    loss = make_loss(case)
    batches = torch.cat([make_batch(case, step) for step in STEPS])
    replay = ReplayBuffer(
        storage=LazyTensorStorage(len(batches)), sampler=SamplerWithoutReplacement(shuffle=False), batch_size=8
    )
    replay.extend(batches)
    PWMTrainer(loss, replay, iterations=3, optimization_stepper=GoldenNoise(case, loss), progress_bar=False).train()
    assert_final_parameters(case, loss)


@pytest.mark.parametrize("change", ("noise", "targets", "order"))
def test_the_band_is_narrow_enough_to_tell(change, golden):
    case = golden("offline_update")["multi"]
    loss = make_loss(case, ValueEstimators.TDLambda if change == "targets" else ValueEstimators.TD0)
    stepper = PWMOptimizationStepper(loss, iterations=case["config"]["max_epochs"])
    for step in reversed(STEPS) if change == "order" else STEPS:
        noise = case["inputs"][step]["eps"]
        stepper.update(make_batch(case, step), noise.flip(0) if change == "noise" else noise)
    with pytest.raises(AssertionError):
        assert_final_parameters(case, loss)


def test_learning_rates_fall_along_the_published_table(golden):
    table = golden("schedule_and_init")["lr_schedule"]
    config = table["config"]
    first = [config[f"{name}_lr"] for name in ("actor", "critic", "model")]
    optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr) for lr in first]
    schedules = [linear_schedule(optimizer, config["final"], config["max_epochs"]) for optimizer in optimizers]
    rates = []
    for _ in range(int(table["epochs"].max()) + 1):
        rates.append(torch.tensor([rate for each in schedules for rate in each.get_last_lr()], dtype=torch.float64))
        for optimizer, each in zip(optimizers, schedules):
            optimizer.step()
            each.step()
    found = torch.stack([rates[int(epoch)] for epoch in table["epochs"]])
    torch.testing.assert_close(found, table["lrs"], rtol=1e-9, atol=0)


def test_optimisers_have_the_published_settings(golden):
    expected = golden("schedule_and_init")["optimizers"]
    case = golden("offline_update")["single"]
    loss = make_loss(case)
    stepper = PWMOptimizationStepper(loss)
    model_stepper = WorldModelOptimizationStepper(PWMWorldModelLoss(loss.world_model), iterations=1)
    optimizers = {
        "actor": stepper.actor_optimizer,
        "critic": stepper.critic_optimizer,
        "world_model": model_stepper.optimizer,
    }
    for name, optimizer in optimizers.items():
        settings = {**optimizer.defaults, "betas": list(optimizer.defaults["betas"])}
        assert {key: settings[key] for key in ("betas", "eps", "weight_decay")} == {
            key: expected[name][key] for key in ("betas", "eps", "weight_decay")
        }


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_the_encoder_keeps_its_share_of_a_falling_rate(golden, scale):
    model_loss = PWMWorldModelLoss(make_loss(golden("offline_update")["single"]).world_model)
    stepper = WorldModelOptimizationStepper(model_loss, iterations=4, lr=1e-3, final_lr=1e-4, encoder_lr_scale=scale)
    for expected in (1e-3, 7.75e-4, 5.5e-4, 3.25e-4, 1e-4, 1e-4):
        assert stepper.optimizer.scheduled_rates == pytest.approx([scale * expected, expected])
        stepper.optimizer.step()
        stepper.scheduler.step()


def test_no_updates_have_a_schedule_too():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    assert linear_schedule(optimizer, 0.01, 0).get_last_lr() == [0.1]
