"""TD-MPC2's losses: which network each one reaches, ends of episodes, tasks, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict

from tests.modules.tdmpc2 import ACTION, LATENT, OBSERVATION, TASKS, make_model
from torchrl_pwm import PWMLoss, PWMWorldModelLoss, TDMPC2Loss, make_pwm_actor, make_value_ensemble
from torchrl_pwm.objectives import TDMPC2Noise

BATCH, TIME = 6, 4
EXACT = {"rtol": 1e-5, "atol": 1e-6}


def sequences(num_tasks: int = 0, **flags: torch.Tensor) -> TensorDict:
    shape = [BATCH, TIME]
    step = {"observation": torch.randn(*shape, OBSERVATION), "reward": torch.randn(*shape, 1), **flags}
    entries = {"observation": torch.randn(*shape, OBSERVATION), "action": torch.rand(*shape, ACTION) * 2 - 1}
    if num_tasks:
        entries["task"] = (torch.arange(BATCH) % num_tasks)[:, None].expand(shape)
    return TensorDict({**entries, "next": TensorDict(step, shape)}, shape)


def flags(*rows_and_steps: tuple[int, int]) -> torch.Tensor:
    value = torch.zeros(BATCH, TIME, 1, dtype=torch.bool)
    for row, step in rows_and_steps:
        value[row, step] = True
    return value


def fixed_noise() -> TDMPC2Noise:
    pair = torch.tensor([3, 0])
    return TDMPC2Noise(torch.randn(TIME, BATCH, ACTION), pair, torch.randn(TIME + 1, BATCH, ACTION), pair)


# Gradients.

WORLD = tuple(f"world_model.{part}" for part in ("_encoder", "_dynamics", "_reward", "_task_emb"))
PARTS = (*WORLD, "world_model._termination", "q.", "policy", "target_q")


def reached(model) -> set[str]:
    touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    result = {part for part in PARTS if any(n.startswith(part) for n in touched)}
    model.zero_grad(set_to_none=True)
    return result


def test_each_loss_reaches_the_networks_that_it_should() -> None:
    model = make_model(TASKS, episodic=True)
    losses = TDMPC2Loss(model)(sequences(TASKS, terminated=flags((1, 2))))
    chain = {"world_model._encoder", "world_model._dynamics", "world_model._task_emb"}
    expected = {
        "loss_consistency": chain,
        "loss_reward": chain | {"world_model._reward"},
        "loss_value": chain | {"q."},
        "loss_termination": chain | {"world_model._termination"},
        "loss_policy": {"policy"},
    }
    for name, parts in expected.items():
        losses[name].backward(retain_graph=True)
        assert reached(model) == parts, name
    assert {key for key, _ in losses.items() if key.startswith("loss_")} == set(expected)


def test_the_policy_goes_towards_higher_values() -> None:
    model = make_model()
    loss = TDMPC2Loss(model, entropy_coef=0.0).eval()
    latents, td, noise = torch.rand(TIME + 1, BATCH, LATENT), sequences(), fixed_noise()
    optimizer = torch.optim.Adam(model.policy.parameters(), 1e-2)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        out = loss.policy_loss(latents, td, noise)
        out["loss_policy"].backward()
        optimizer.step()
        values.append(-out["loss_policy"].item())
    assert values[-1] > values[0]


# Numbers.


def test_value_targets_stop_where_an_episode_terminates() -> None:
    model, td, noise = make_model(), sequences(terminated=flags((0, 1), (4, 3))), fixed_noise()
    loss = TDMPC2Loss(model)
    z = model.world_model.encode_observation(td["next", "observation"].transpose(0, 1)).detach()
    reward, terminated = (td["next", key].transpose(0, 1).float() for key in ("reward", "terminated"))
    target = loss.value_target(z, reward, terminated, None, noise)
    action = model.act(z, None, noise.target_action).action
    values = model.world_model.codec.decode(model.q_logits(z, action, members=noise.target_members, target=True))
    alive = 1 - td["next", "terminated"].float()
    expected = td["next", "reward"] + 0.99 * alive * values.amin(0).transpose(0, 1)
    torch.testing.assert_close(target.transpose(0, 1), expected, **EXACT)
    torch.testing.assert_close(target[1, 0], td["next", "reward"][0, 1])
    torch.testing.assert_close(loss.model_losses(td, noise)[0]["value_target_mean"], expected.mean(), **EXACT)


def test_discounts_are_those_of_each_task() -> None:
    model = make_model(TASKS, episode_lengths=[100, 500, 1000])
    loss, td, noise = TDMPC2Loss(model), sequences(TASKS), fixed_noise()
    task, rewards = td["task"][:, 0], td["next", "reward"].transpose(0, 1)
    z = model.world_model.encode_observation(td["next", "observation"].transpose(0, 1), task)
    target = loss.value_target(z, rewards, None, task, noise)
    model.discount.zero_()
    torch.testing.assert_close(loss.value_target(z, rewards, None, task, noise), rewards)
    model.discount.fill_(1.0)
    undiscounted = loss.value_target(z, rewards, None, task, noise)
    discount = torch.tensor([0.95, 0.99, 0.995])[task][None, :, None]
    torch.testing.assert_close(target - rewards, discount * (undiscounted - rewards), rtol=1e-4, atol=1e-5)


def test_consistency_and_reward_are_those_of_the_world_model_loss() -> None:
    model, td = make_model(TASKS), sequences(TASKS, done=flags((0, 1), (2, 0), (2, 2)))
    mine = TDMPC2Loss(model, rho=0.9)(td)
    plain = PWMWorldModelLoss(model.world_model, rho=0.9)(td)
    for key in ("loss_consistency", "loss_reward", "reward_error", "latent_error_last"):
        torch.testing.assert_close(mine[key], plain[key], **EXACT)


def test_the_termination_loss_is_a_cross_entropy_of_predicted_latents() -> None:
    model, terminated = make_model(episodic=True), flags((0, 3), (3, 1))
    td = sequences(terminated=terminated)
    losses, latents = TDMPC2Loss(model, termination_coef=2.0).model_losses(td)
    logits = model.termination_logits(latents[1:])
    expected = 2 * F.binary_cross_entropy_with_logits(logits, terminated.transpose(0, 1).float())
    torch.testing.assert_close(losses["loss_termination"], expected, **EXACT)


def test_a_termination_head_learns_which_states_end() -> None:
    torch.manual_seed(0)
    model = make_model(episodic=True)
    loss = TDMPC2Loss(model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        td = sequences()
        td["next", "terminated"] = td["action"][..., :1] > 0
        losses, latents = loss.model_losses(td)
        optimizer.zero_grad()
        losses["loss_termination"].backward()
        optimizer.step()
    guess = model.termination_logits(latents[1:]) > 0
    assert (guess == td["next", "terminated"].transpose(0, 1)).float().mean() > 0.8


def test_steps_of_another_episode_do_not_count() -> None:
    model, noise = make_model(), fixed_noise()
    done = flags((0, 1), (3, 0))
    td = sequences(done=done, terminated=done)
    later = td.clone()
    for row, step in ((0, 2), (3, 1)):
        later["action"][row, step:] = 0.5
        later["next", "reward"][row, step:] = 100.0
        later["next", "observation"][row, step:] = 9.0
    loss = TDMPC2Loss(model).eval()
    for how in ("mean", "sum", "none"):
        loss.reduction = how
        (first, latents), (second, others) = (loss.model_losses(batch, noise) for batch in (td, later))
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, **EXACT)
        assert not torch.allclose(latents, others)
        policies = [loss.policy_loss(z, td, noise) for z in (latents, others)]
        for key, value in policies[0].items():
            torch.testing.assert_close(policies[1][key], value, **EXACT)


def test_padding_of_a_collector_does_not_count() -> None:
    model, noise, td = make_model(), fixed_noise(), sequences()
    mask = torch.arange(TIME) < torch.tensor([4, 3, 2, 1, 4, 4])[:, None]
    td["collector"] = TensorDict({"mask": mask}, td.shape)
    loss = TDMPC2Loss(model).eval()
    before, latents = loss.model_losses(td, noise)
    td["next", "reward"][~mask] = torch.nan
    after, _ = loss.model_losses(td, noise)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value)
    assert loss.policy_loss(latents, td, noise)["loss_policy"].isfinite()


def test_the_range_of_values_moves_in_training_mode_alone() -> None:
    model = make_model()
    loss, latents, td = TDMPC2Loss(model), torch.rand(TIME + 1, BATCH, LATENT) * 20, sequences()
    loss.eval().policy_loss(latents, td)
    assert model.scale.value == 1
    model.scale.tau = 1.0
    with torch.no_grad():
        model.q.params[8].mul_(5)
    out = loss.train().policy_loss(latents, td)
    assert model.scale.value > 1 and out["value_scale"] == model.scale.value


def test_the_entropy_form_is_chosen() -> None:
    model, td, noise = make_model(), sequences(), fixed_noise()
    latents = torch.rand(TIME + 1, BATCH, LATENT)
    result = [
        TDMPC2Loss(model, entropy=form).eval().policy_loss(latents, td, noise)["policy_scaled_entropy"]
        for form in ("current", "mid-2024")
    ]
    sample = model.act(latents, None, noise.policy_action)
    torch.testing.assert_close(result[1], model.entropies(sample, None, "mid-2024")[1].mean(), **EXACT)
    assert not torch.allclose(*result)


# One model for both methods.


@pytest.mark.parametrize("num_tasks", [0, TASKS])
def test_the_world_model_goes_into_pwm_as_it_is(num_tasks: int) -> None:
    model = make_model(num_tasks)
    td = sequences(num_tasks)
    actor, value = make_pwm_actor(LATENT, ACTION, units=(12,)), make_value_ensemble(LATENT, units=(12,))
    loss = PWMLoss(actor, value, model.world_model, horizon=3)
    losses = loss(td[:, 0])
    (losses["loss_actor"] + losses["loss_value"]).backward()
    assert all(p.grad is not None for p in loss.parameters()) and reached(model) == set()


# What is refused.


@pytest.mark.parametrize("missing", ["observation", "action", "task", ("next", "observation"), ("next", "reward")])
def test_a_missing_entry_is_named(missing) -> None:
    with pytest.raises(ValueError, match=r"TDMPC2Loss needs the entry"):
        TDMPC2Loss(make_model(TASKS))(sequences(TASKS).exclude(missing))


def test_a_termination_head_needs_the_flag() -> None:
    with pytest.raises(ValueError, match=r"needs the entry \('next', 'terminated'\)"):
        TDMPC2Loss(make_model(episodic=True))(sequences())


def test_tasks_of_another_shape_are_refused() -> None:
    td = sequences(TASKS)
    td["task"] = td["task"].unsqueeze(-1)
    with pytest.raises(ValueError, match=r"task indices of shape \[6, 4\] under 'task', found \[6, 4, 1\]"):
        TDMPC2Loss(make_model(TASKS))(td)


def test_batches_that_are_no_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch \[B, T\], found batch \[6\]"):
        TDMPC2Loss(make_model())(sequences()[:, 0])


def test_rewards_without_their_last_axis_are_refused() -> None:
    td = sequences()
    td["next", "reward"] = td["next", "reward"].squeeze(-1)
    with pytest.raises(ValueError, match=r"reward.* of shape .*unsqueeze"):
        TDMPC2Loss(make_model())(td)


def test_an_unknown_entropy_is_refused() -> None:
    with pytest.raises(ValueError, match="entropy must be"):
        TDMPC2Loss(make_model(), entropy="2023")


def test_nested_keys_are_read() -> None:
    model, td = make_model(TASKS), sequences(TASKS, done=flags((0, 1)), terminated=flags((0, 1)))
    loss, noise = TDMPC2Loss(model), fixed_noise()
    expected, _ = loss.model_losses(td, noise)
    names = {"observation": "obs", "reward": "pay", "done": "over", "terminated": "dead"}
    nested = TensorDict({"agent": {"obs": td["observation"], "act": td["action"], "id": td["task"]}}, td.shape)
    nested["next"] = TensorDict({"agent": {new: td["next", old] for old, new in names.items()}}, td.shape)
    loss.set_keys(action=("agent", "act"), task=("agent", "id"), **{old: ("agent", new) for old, new in names.items()})
    result, _ = loss.model_losses(nested, noise)
    for key, value in expected.items():
        torch.testing.assert_close(result[key], value)
    assert ("next", "agent", "pay") in loss.in_keys
