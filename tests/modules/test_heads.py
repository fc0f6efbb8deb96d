"""Several dynamics and reward heads on one encoder."""

from __future__ import annotations

import pytest
import torch

from torchrl_pwm import PWMWorldModel, TDMPC2Model, export_policy, make_pwm_actor
from torchrl_pwm.modules import WorldModelPolicy

HEADS, TASKS = 3, {"num_tasks": 3, "task_dim": 4}
FORMS = {
    "simnorm": {},
    "no simnorm": {"simnorm_dim": 0},
    "residual": {"residual": True},
    "residual without simnorm": {"residual": True, "simnorm_dim": 0},
    "scalar head": {"num_bins": None},
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
tasks = pytest.mark.parametrize("tasks", [{}, TASKS], ids=["single", "multitask"])


def build(num_heads=HEADS, **options):
    torch.manual_seed(0)
    sizes = {"latent_dim": 16, "encoder_units": (12,), "units": (12, 12), "num_bins": 11}
    model = PWMWorldModel(5, 2, **{**sizes, **options}, num_heads=num_heads)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def singles(model, **options):
    """Models of one head each, with the weights of the heads of ``model``."""
    state = model.state_dict()
    for head in range(HEADS):
        single = build(num_heads=1, **options)
        parts = ("_dynamics", "_reward")
        single.load_state_dict({key: v[head] if key.startswith(parts) else v for key, v in state.items()})
        yield single


def steps(model, tasks, rows):
    task = torch.randint(3, (rows,)) if tasks else None
    return model.encode_observation(torch.randn(rows, 5), task), torch.rand(rows, 2) * 2 - 1, task


def of_singles(model, latent, action, task, **options):
    found = [
        (m.next_latent(latent, action, task), m.reward_logits(latent, action, task)) for m in singles(model, **options)
    ]
    return (torch.stack(part) for part in zip(*found))


@forms
@tasks
@pytest.mark.parametrize("rows", [7, 600])
def test_each_head_steps_as_a_model_of_its_own(form, tasks, rows):
    model = build(**form, **tasks)
    latent, action, task = steps(model, tasks, rows)
    following, logits = of_singles(model, latent, action, task, **form, **tasks)
    context = model.task_context(task, "each")
    torch.testing.assert_close(model.next_latent(latent[None], action[None], context), following, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.reward_logits(latent[None], action[None], context), logits, rtol=1e-4, atol=1e-4)


@forms
@tasks
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_a_state_keeps_one_random_head(form, tasks, rows):
    model = build(**form, **tasks)
    latent, action, task = steps(model, tasks, rows)
    following, logits = of_singles(model, latent, action, task, **form, **tasks)
    chosen = set()
    for _ in range(12):
        context = model.task_context(task, "one")
        distance = (following - model.next_latent(latent, action, context)).abs().amax(-1)
        head = distance.argmin(0)
        assert distance.amin(0).amax() < 1e-5
        again = model.reward_logits(torch.stack([latent] * 2), torch.stack([action] * 2), context)
        for step in again:
            torch.testing.assert_close(step, logits[head, torch.arange(rows)], rtol=1e-4, atol=1e-4)
        assert head.bincount(minlength=HEADS).amax() - head.bincount(minlength=HEADS).amin() <= 1
        chosen.add(int(head[0]))
    assert len(chosen) > 1


@forms
def test_without_a_choice_the_mean_of_the_heads_steps(form):
    model = build(**form)
    latent, action, _ = steps(model, {}, 6)
    following, logits = of_singles(model, latent, action, None, **form)
    mean = following.mean(0)
    found = model.next_latent(latent, action)
    if form.get("residual") and form.get("simnorm_dim") == 0:  # back to a latent of this kind
        mean = torch.nn.functional.layer_norm(mean, mean.shape[-1:])
    torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-5)
    reward = model.reward_logits(latent, action)
    if logits.shape[-1] == 1:
        torch.testing.assert_close(reward, logits.mean(0))
    else:
        torch.testing.assert_close(reward.softmax(-1), logits.softmax(-1).mean(0))


def test_heads_begin_apart_and_one_head_has_the_published_layout():
    torch.manual_seed(0)
    model = PWMWorldModel(5, 2, latent_dim=16, units=(12,), num_heads=2)
    first, second = model.dynamics_network[0].weight
    assert not torch.equal(first, second)
    assert list(model.state_dict()) == list(PWMWorldModel(5, 2, latent_dim=16, units=(12,)).state_dict())


def test_gradients_reach_the_latent_through_its_own_head_alone():
    model = build(residual=True)
    latent, action, _ = steps(model, {}, 6)
    latent = latent.detach().requires_grad_()
    model.next_latent(latent, action, model.task_context(None, "one"))[2].square().sum().backward()
    used = [bool(part.grad[head].any()) for head in range(HEADS) for part in [model.dynamics_network[0].weight]]
    assert sum(used) == 1
    assert latent.grad[2].any() and not latent.grad[[0, 1, 3, 4, 5]].any()


def test_td_mpc2_refuses_what_it_does_not_train():
    with pytest.raises(ValueError, match=r"one dynamics head and no decoder.*num_heads=3 and decoder=False"):
        TDMPC2Model(build())
    with pytest.raises(ValueError, match="num_heads=1 and decoder=True"):
        TDMPC2Model(build(num_heads=1, decoder=True))


def test_a_new_task_leaves_the_others_as_they_are():
    model = build(residual=True, decoder=True, observation_dims=[5, 3, 4], **TASKS)
    latent, action, task = steps(model, TASKS, 6)
    before = model.next_latent(latent, action, task), model.decode_observation(latent, task)
    assert model.add_task(like=1) == 3
    after = model.next_latent(latent, action, task), model.decode_observation(latent, task)
    assert all(torch.equal(one, other) for one, other in zip(before, after))
    assert model.observation_masks.sum(-1).tolist() == [5, 3, 4, 5]
    assert model.constructor_arguments["observation_dims"] == [5, 3, 4, 5]


def test_an_exported_policy_carries_neither_heads_nor_decoder(tmp_path):
    sizes = []
    for options in ({}, {"num_heads": 4, "decoder": True}):
        model = PWMWorldModel(5, 2, latent_dim=16, units=(256, 256), **options)
        path = export_policy(WorldModelPolicy(model, make_pwm_actor(16, 2, units=(8,))), tmp_path / "policy.pt2")
        sizes.append(path.stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 10_000


@pytest.mark.parametrize(
    "options", [{}, {"residual": True, "simnorm_dim": 0}, {"residual": True, "encoder": torch.nn.Linear(5, 16)}]
)
def test_an_encoder_norm_that_would_be_a_second_one_is_refused(options):
    with pytest.raises(ValueError, match=r"encoder_norm=True is for residual=True with SimNorm.*Leave it out"):
        PWMWorldModel(5, 2, latent_dim=16, encoder_norm=True, **options)


def test_an_encoder_norm_spreads_the_first_latents_of_a_residual_model():
    torch.manual_seed(0)
    observation = torch.randn(200, 5)
    spread = [
        PWMWorldModel(5, 2, latent_dim=16, residual=True, encoder_norm=norm)
        .encode_observation(observation)
        .std(0)
        .mean()
        for norm in (False, True)
    ]
    assert spread[1] > 3 * spread[0]
