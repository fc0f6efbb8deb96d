"""Gradients reach the network that a loss trains, and nothing else."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from tests.objectives.test_loss_checklist import (
    BATCH,
    HORIZON,
    LATENT,
    TASKS,
    make_model,
    make_pwm,
    rollouts,
    sequences,
    starts,
)
from torchrl_pwm import FirstOrderLoss, PWMWorldModelLoss, make_pwm_actor, make_value_ensemble

TASK_COUNTS = pytest.mark.parametrize("num_tasks", [0, TASKS], ids=["single", "multitask"])


def gets_gradient(module: nn.Module) -> bool:
    return all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in module.parameters())


def gets_none(module: nn.Module) -> bool:
    return all(p.grad is None for p in module.parameters())


def leaves(output: Tensor) -> set[int]:
    """The parameters and inputs that a graph would write gradients to."""
    result, stack, seen = set(), [output.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            result.add(id(node.variable))
        stack.extend(parent for parent, _ in node.next_functions)
    return result


@TASK_COUNTS
def test_actor_loss_trains_the_actor_only(num_tasks: int) -> None:
    loss = make_pwm(num_tasks)
    loss(starts(num_tasks))["loss_actor"].backward()
    assert gets_gradient(loss.actor_network) and gets_none(loss.value_network) and gets_none(loss.world_model)


@TASK_COUNTS
def test_value_loss_trains_the_critics_only(num_tasks: int) -> None:
    loss = make_pwm(num_tasks)
    loss(starts(num_tasks))["loss_value"].backward()
    assert gets_gradient(loss.value_network) and gets_none(loss.actor_network) and gets_none(loss.world_model)


@TASK_COUNTS
def test_no_weight_gradient_is_computed_for_the_frozen_networks(num_tasks: int) -> None:
    loss = make_pwm(num_tasks)
    assert leaves(loss(starts(num_tasks))["loss_actor"]) == {id(p) for p in loss.actor_network.parameters()}


@TASK_COUNTS
def test_the_frozen_networks_can_be_trained_afterwards(num_tasks: int) -> None:
    loss, td = make_pwm(num_tasks), starts(num_tasks)
    loss(td)["loss_actor"].backward()
    loss.world_model.encode_observation(td["observation"], td.get("task", None)).square().sum().backward()
    assert gets_gradient(loss.world_model.encoder_network)
    assert all(p.requires_grad for p in loss.world_model.parameters())


def test_start_states_get_no_gradient() -> None:
    loss = make_pwm(normalize_returns=False)
    for key, size in (("observation", 5), ("latent", LATENT)):
        state = torch.randn(BATCH, size, requires_grad=True)
        losses = loss(TensorDict({key: state}, [BATCH]))
        (losses["loss_actor"] + losses["loss_value"]).backward()
        assert state.grad is None


def test_first_order_loss_sends_gradients_into_the_rollout_and_values_into_the_critics() -> None:
    loss = FirstOrderLoss(make_pwm_actor(LATENT, 2, units=(12,)), make_value_ensemble(LATENT, units=(12,)))
    rollout = rollouts()
    inputs = {key: rollout[key].requires_grad_() for key in ("latent", ("next", "latent"), ("next", "reward"))}
    losses = loss(rollout)
    losses["loss_value"].backward()
    assert gets_gradient(loss.value_network) and all(value.grad is None for value in inputs.values())
    loss.zero_grad()
    losses["loss_actor"].backward()
    assert gets_none(loss.value_network)
    assert inputs["next", "reward"].grad.any() and inputs["next", "latent"].grad.any()
    assert inputs["latent"].grad is None, "the return is that of the next states"


def test_values_of_next_states_reach_the_actor_only_where_an_env_ends() -> None:
    loss = FirstOrderLoss(make_pwm_actor(LATENT, 2, units=(12,)), make_value_ensemble(LATENT, units=(12,)))
    rollout = rollouts()
    done, terminated = torch.zeros(2, BATCH, HORIZON, 1, dtype=torch.bool)
    done[:3, 1], terminated[1, 1] = True, True
    rollout["next", "done"], rollout["next", "terminated"] = done, terminated
    latent = rollout["next", "latent"].requires_grad_()
    loss.actor_loss(rollout).backward()
    closes = done[..., 0] & ~terminated[..., 0]
    closes[:, -1] = True
    assert torch.equal(latent.grad.abs().sum(-1) > 0, closes)


@TASK_COUNTS
def test_world_model_loss_trains_every_part(num_tasks: int) -> None:
    loss = PWMWorldModelLoss(make_model(num_tasks))
    out = loss(sequences(num_tasks))
    (out["loss_consistency"] + out["loss_reward"]).backward()
    assert gets_gradient(loss.world_model)


def test_targets_of_the_consistency_loss_are_fixed() -> None:
    loss, td = PWMWorldModelLoss(make_model()), sequences()
    start, target = td["observation"].requires_grad_(), td["next", "observation"].requires_grad_()
    loss(td)["loss_consistency"].backward()
    assert target.grad is None
    assert start.grad[:, 0].any() and not start.grad[:, 1:].any(), "later latents are the model's own"
    assert all(not p.grad.any() for p in loss.world_model.reward_network.parameters() if p.grad is not None)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_loss_key_can_be_summed_as_torchrl_trainers_do(reduction: str) -> None:
    loss, td = make_pwm(reduction=reduction), starts()
    losses = loss(td)
    total = sum(value for key, value in losses.items() if key.startswith("loss_"))
    torch.testing.assert_close(total, losses["loss_actor"] + losses["loss_value"])
    total.backward()
    assert gets_gradient(loss.actor_network) and gets_gradient(loss.value_network)
