"""The observation decoder as an auxiliary loss, and losses of several heads."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from tests.objectives.test_compile import check
from tests.objectives.test_loss_checklist import (
    ACTION,
    BATCH,
    HORIZON,
    LATENT,
    OBSERVATION,
    TASKS,
    flagged_sequences,
    make_model,
    sequences,
    starts,
)
from torchrl_pwm import PWMLoss, PWMWorldModelLoss, make_pwm_actor, make_value_ensemble
from torchrl_pwm.modules import symlog
from torchrl_pwm.objectives.stacked_pwm import StackedPWMLoss

OPTIONS = {"residual": True, "encoder_norm": True, "decoder": True, "num_heads": 3, "termination": True}
TASK_COUNTS = pytest.mark.parametrize("num_tasks", [0, TASKS], ids=["single", "multitask"])


def make_pwm(model, horizon=HORIZON):
    actor, value = make_pwm_actor(LATENT, ACTION, units=(12,)), make_value_ensemble(LATENT, units=(12,))
    return PWMLoss(actor, value, model, horizon=horizon)


@TASK_COUNTS
def test_it_is_the_error_of_all_latents_of_the_open_loop(num_tasks):
    model, td = make_model(num_tasks, decoder=True), sequences(num_tasks)
    task = td["task"][:, 0] if num_tasks else None
    latent, errors = model.encode_observation(td["observation"][:, 0], task), []
    for step in range(HORIZON + 1):
        observation = td["observation"][:, 0] if step == 0 else td["next", "observation"][:, step - 1]
        errors.append((model.decode_observation(latent, task, "standardized") - symlog(observation)).square().mean(-1))
        if step < HORIZON:
            latent = model.next_latent(latent, td["action"][:, step], task)
    expected = (errors[0] + torch.stack(errors[1:]).sum(0)).mean() / HORIZON
    for coefficient in (1.0, 0.5):
        found = PWMWorldModelLoss(model, decoder_coef=coefficient)(td)["loss_decoder"]
        torch.testing.assert_close(found, coefficient * expected)


def test_statistics_make_its_target_the_standardised_observation():
    model = make_model(decoder=True)
    model.set_observation_statistics(torch.full((OBSERVATION,), 3.0), torch.full((OBSERVATION,), 2.0))
    observation = torch.randn(4, OBSERVATION)
    torch.testing.assert_close(model.observation_target(observation), (observation - 3) / 2)
    latent = model.encode_observation(observation)
    raw, standardized = (model.decode_observation(latent, None, space) for space in ("raw", "standardized"))
    torch.testing.assert_close(raw, 2 * standardized + 3)


def test_its_gradient_reaches_encoder_and_dynamics():
    model = make_model(decoder=True)
    loss = PWMWorldModelLoss(model)
    loss(sequences())["loss_decoder"].backward()
    for network in (model.encoder_network, model.dynamics_network, model.decoder_network):
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in model.reward_network.parameters())


def test_padded_entries_of_smaller_tasks_do_not_count():
    model, td = make_model(TASKS, decoder=True, observation_dims=[2, 3, OBSERVATION]), sequences(TASKS)
    td["task"] = torch.zeros(BATCH, HORIZON, dtype=torch.int64)
    loss = PWMWorldModelLoss(model)
    with torch.no_grad():
        before = loss(td)["loss_decoder"]
        model.decoder_network[-1].bias[2:] += 100.0
        torch.testing.assert_close(loss(td)["loss_decoder"], before)
        model.decoder_network[-1].bias[:2] += 100.0
        assert loss(td)["loss_decoder"] > 100 * before


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_steps_of_another_episode_do_not_count(reduction):
    loss, td = PWMWorldModelLoss(make_model(**OPTIONS), reduction=reduction, termination_noise=0.0), flagged_sequences()
    td["next", "done"][:, 1] = True
    other = td.clone()
    other["next", "observation"][:, 2:] = 7.0
    other["next", "reward"][:, 2:] = 7.0
    other["action"][:, 2:] = 1.0
    first, second = loss(td), loss(other)
    for key in ("loss_decoder", "loss_consistency", "loss_reward", "loss_termination"):
        torch.testing.assert_close(first[key], second[key])
        assert first[key].shape == ((BATCH, HORIZON) if reduction == "none" else ())


@TASK_COUNTS
def test_losses_of_several_heads_are_the_mean_of_those_of_each(num_tasks):
    options = {"decoder": True, "residual": True, "termination": True}
    model, td = make_model(num_tasks, num_heads=3, **options), flagged_sequences(num_tasks)
    nn.init.normal_(model.dynamics_network[-1].weight, std=0.3)
    found = PWMWorldModelLoss(model, termination_noise=0.0)(td)
    state, losses = model.state_dict(), []
    for head in range(3):
        single = make_model(num_tasks, **options)
        parts = ("_dynamics", "_reward")
        single.load_state_dict({key: v[head] if key.startswith(parts) else v for key, v in state.items()})
        losses.append(PWMWorldModelLoss(single, termination_noise=0.0)(td))
    for key in list(found.keys()):
        torch.testing.assert_close(
            found[key], torch.stack([loss[key] for loss in losses]).mean(0), rtol=1e-4, atol=1e-5
        )


@TASK_COUNTS
def test_a_sequence_may_train_one_head_drawn_at_random(num_tasks):
    model, td = make_model(num_tasks, num_heads=3, residual=True), flagged_sequences(num_tasks)
    nn.init.normal_(model.dynamics_network[-1].weight, std=0.3)
    each = PWMWorldModelLoss(model, reduction="none")
    one = PWMWorldModelLoss(model, heads="one", reduction="none")
    of_head = []
    for head in range(3):
        single = make_model(num_tasks, residual=True)
        parts = ("_dynamics", "_reward")
        single.load_state_dict({k: v[head] if k.startswith(parts) else v for k, v in model.state_dict().items()})
        of_head.append(PWMWorldModelLoss(single, reduction="none")(td)["loss_consistency"].detach())
    taken = set()
    for _ in range(20):
        found = one(td)["loss_consistency"].detach()
        near = torch.stack([(found - other).abs().amax(-1) for other in of_head])  # [head, sequence]
        assert (near.amin(0) < 1e-4).all(), "each sequence has the loss of one head"
        counts = near.argmin(0).bincount(minlength=3)
        assert counts.max() - counts.min() <= 1, "all heads have equal work"
        taken.add(int(near.argmin(0)[0]))
    assert taken == {0, 1, 2}
    assert each(td)["loss_consistency"].shape == found.shape


def test_masked_padding_of_actions_decides_nothing():
    model = make_model(TASKS, action_dims=[1] * TASKS, decoder=True)
    nn.init.normal_(model.dynamics_network[-1].weight, std=0.3)
    td = flagged_sequences(TASKS)
    other = td.clone()
    other["action"][..., 1:].neg_()
    for masked in (True, False):
        loss = PWMWorldModelLoss(model, mask_actions=masked)
        assert torch.equal(loss(td)["loss_consistency"], loss(other)["loss_consistency"]) is masked
    with pytest.raises(ValueError, match="needs a world model built with action_dims"):
        PWMWorldModelLoss(make_model(TASKS), mask_actions=True)


@pytest.mark.slow
def test_all_options_compile_whole():
    model = make_model(TASKS, **OPTIONS)
    check(PWMWorldModelLoss(model), flagged_sequences(TASKS)[:, :2])
    check(make_pwm(model.requires_grad_(False), horizon=2), starts(TASKS))


@TASK_COUNTS
@pytest.mark.parametrize("batch", [1, BATCH, 7])
def test_a_policy_is_imagined_in_one_head_a_state(num_tasks, batch):
    model = make_model(num_tasks, num_heads=3, residual=True)
    nn.init.normal_(model.dynamics_network[-1].weight, std=0.3)
    td = TensorDict({"observation": torch.randn(batch, OBSERVATION)}, [batch])
    task = torch.randint(num_tasks, (batch,)) if num_tasks else None
    td = td if task is None else td.set("task", task)
    rollout = make_pwm(model).imagine(td)
    latent, action = rollout["latent"], rollout["action"]
    context, rows = model.task_context(task, "each"), slice(None)
    each = torch.stack(
        [model.next_latent(latent[None, rows, t], action[None, rows, t], context) for t in range(HORIZON)], 2
    )
    error = (each - rollout["next", "latent"]).abs().amax((-2, -1))  # over the whole rollout
    assert error.amin(0).amax() < 1e-5
    (rollout["next", "reward"].sum()).backward()


@TASK_COUNTS
def test_tasks_together_imagine_as_each_alone_in_the_heads_that_it_drew(num_tasks):
    model = make_model(num_tasks, num_heads=3, residual=True)
    nn.init.normal_(model.dynamics_network[-1].weight, std=0.3)
    losses = [make_pwm(model) for _ in range(2)]
    batches = [starts(num_tasks), starts(num_tasks)]
    heads, noise = torch.tensor([[2, 0, 1], [1, 2, 0]]), torch.randn(HORIZON, 2, BATCH, ACTION)
    expected = [loss.imagine(*each) for loss, *each in zip(losses, batches, noise.unbind(1), heads)]
    found = StackedPWMLoss(losses).imagine(torch.stack(batches), noise, heads)
    for alone, together in zip(expected, found.unbind(0)):
        for key in ("latent", ("next", "latent"), ("next", "reward")):
            torch.testing.assert_close(together[key], alone[key], rtol=1e-4, atol=1e-5)


def test_several_heads_are_imagined_in_bfloat16_too():
    loss, td = make_pwm(make_model(TASKS, num_heads=3, residual=True)), starts(TASKS)
    noise, heads = torch.randn(HORIZON, BATCH, ACTION), torch.tensor([2, 0, 1])
    expected = loss.imagine(td, noise, heads)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss.imagine(td, noise, heads)
    for key in ("latent", "action", ("next", "latent"), ("next", "reward")):
        assert found[key].dtype is torch.float32
        torch.testing.assert_close(found[key], expected[key], rtol=0.05, atol=0.05)


def test_a_decoder_that_came_after_the_loss_is_said():
    model = make_model()
    loss = PWMWorldModelLoss(model)
    model.add_decoder()
    with pytest.raises(ValueError, match="new decoder: build the loss after"):
        loss(sequences())
