"""Imagined steps as one function on a CPU: the numbers of steps taken one by one, and only where they are the same."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_pwm import PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble

# Torch says so whenever oneDNN is switched.
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")

STATES, HORIZON, ACTIONS = 160, 3, 5


def by_torch():
    """A context in which steps are taken one by one, by torch's own functions."""
    return torch.backends.mkldnn.flags(enabled=False)


def make_loss(model_type=PWMWorldModel, tasks=2, dtype=torch.float64, simnorm_dim=8, residual=False, **options):
    torch.manual_seed(0)
    model = model_type(
        7,
        ACTIONS,
        latent_dim=16,
        units=(64, 72),
        simnorm_dim=simnorm_dim,
        residual=residual,
        num_tasks=tasks,
        task_dim=3 if tasks else 0,
        action_dims=[2, ACTIONS] if tasks else None,
    )
    actor = make_pwm_actor(16, ACTIONS, units=(64, 56))
    with torch.no_grad():
        for parameter in [*model.parameters(), *actor.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    value = make_value_ensemble(16, units=(64,))
    return PWMLoss(actor.to(dtype), value.to(dtype), model.to(dtype), horizon=HORIZON, **options)


def starts(tasks=2, dtype=torch.float64):
    torch.manual_seed(1)
    batch = TensorDict({"observation": torch.randn(STATES, 7, dtype=dtype)}, [STATES])
    return batch.set("task", torch.randint(tasks, (STATES,))) if tasks else batch


def rollout_and_gradients(loss, batch):
    """Entries of a rollout, and the gradients of the actor's weights of a function of all of them."""
    noise = torch.randn(HORIZON, STATES, ACTIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rollout = loss.imagine(batch, noise)
    entries = [rollout["latent"], rollout["action"], rollout["next", "latent"], rollout["next", "reward"]]
    total = sum((entry.sin() * (2 + entry)).sum() for entry in entries)
    return [*entries, *torch.autograd.grad(total, list(loss.actor_network_params.parameters()))]


def nodes(tensor):
    """Number of nodes of the graph behind a tensor."""
    seen, ahead = set(), [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [following for following, _ in node.next_functions]
    return len(seen)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_actions": True},
        {"detach_latent": False},
        {"tasks": 0},
        {"simnorm_dim": 0},
        {"residual": True},
    ],
)
def test_rollouts_and_gradients_are_those_of_single_steps_to_rounding(options):
    loss, batch = make_loss(**options), starts(options.get("tasks", 2))
    found = rollout_and_gradients(loss, batch)
    with by_torch():
        expected = rollout_and_gradients(loss, batch)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10 * float(theirs.detach().abs().max()))


def test_further_steps_add_nothing_to_the_graph():
    loss, batch = make_loss(mask_actions=True), starts()
    few = nodes(loss.imagine(batch)["next", "latent"])
    loss.horizon = 4 * HORIZON
    assert nodes(loss.imagine(batch)["next", "latent"]) == few


def test_gradients_of_a_rollout_can_be_differentiated_again():
    def curvature(loss, batch):
        noise = torch.zeros(HORIZON, STATES, ACTIONS, dtype=torch.float64)
        weights = list(loss.actor_network_params.parameters())
        reward = loss.imagine(batch, noise)["next", "reward"].square().sum()
        gradients = torch.autograd.grad(reward, weights, create_graph=True, allow_unused=True)
        penalty = sum(gradient.square().sum() for gradient in gradients if gradient is not None)
        return [entry for entry in torch.autograd.grad(penalty, weights, allow_unused=True) if entry is not None]

    loss, batch = make_loss(mask_actions=True), starts()
    with torch.no_grad():
        for parameter in loss.world_model.reward_network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = curvature(loss, batch)
    with by_torch():
        expected = curvature(loss, batch)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10 * float(theirs.detach().abs().max()))


def test_without_gradients_the_rollout_is_the_same():
    loss, batch = make_loss(), starts()
    noise = torch.randn(HORIZON, STATES, ACTIONS, dtype=torch.float64)
    with torch.no_grad():
        found = loss.imagine(batch, noise)
    expected = loss.imagine(batch, noise)
    assert not found["action"].requires_grad
    for key in ("latent", "action", ("next", "reward")):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", ["module.0", "module.0.module", "module.0.module.mu_net", "module.0.module.mu_net.1"])
def test_hooks_of_the_actor_are_called_at_every_step(part):
    loss, batch, calls = make_loss(), starts(), []
    loss.actor_network.get_submodule(part).register_forward_hook(lambda *_: calls.append(1))
    loss.imagine(batch)
    assert len(calls) == HORIZON


def test_hooks_of_the_dynamics_layers_are_called_at_every_step():
    loss, batch, calls = make_loss(), starts(), []
    loss.world_model.dynamics_network[1].register_forward_hook(lambda *_: calls.append(1))
    loss.imagine(batch)
    assert len(calls) == HORIZON


def test_a_model_with_steps_of_its_own_takes_them():
    class Still(PWMWorldModel):
        def next_latent(self, latent, action, task=None):
            return latent + 0 * super().next_latent(latent, action, task)

    rollout = make_loss(Still).imagine(starts())
    torch.testing.assert_close(rollout["latent"], rollout["next", "latent"])


def test_an_actor_with_another_network_is_called_as_it_is():
    loss, batch = make_loss(), starts()
    head = loss.actor_network.get_submodule("module.0")
    inner = head.module

    class Bold(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, latent):
            loc, scale = self.inner(latent)
            return loc + 100, scale

    actor = make_pwm_actor(16, ACTIONS, units=(64, 56)).to(torch.float64)
    actor.get_submodule("module.0").module = Bold()
    bold = PWMLoss(actor, make_value_ensemble(16, units=(64,)).double(), loss.world_model, horizon=HORIZON)
    torch.testing.assert_close(bold.imagine(batch)["action"], torch.ones(STATES, HORIZON, ACTIONS, dtype=torch.float64))


def test_the_floor_of_the_deviation_holds():
    loss = make_loss()
    head = loss.actor_network.get_submodule("module.0.module")
    log_std = next(value for value in loss.actor_network_params.parameters() if value.shape == (ACTIONS,))
    with torch.no_grad():
        log_std.fill_(-50.0)
    loss.imagine(starts())
    assert (log_std == head.min_log_std).all()


def test_an_actor_that_is_not_trained_leaves_no_graph():
    loss = make_loss()
    loss.actor_network_params.requires_grad_(False)
    assert not loss.imagine(starts())["action"].requires_grad
