"""Rollouts that go on where those of the update before ended."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from tests.trainers import tiny
from torchrl_pwm import PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble
from torchrl_pwm.trainers import PWMOptimizationStepper
from torchrl_pwm.trainers.stacked import StackedPWMUpdate

ALWAYS = 1.0 - 1e-9  # torch.rand never reaches it


def make_stepper(loss=None, *, continued):
    """A stepper, and the rollouts of its updates."""
    torch.manual_seed(3)
    loss = loss or tiny.make_policy_loss()
    stepper, rollouts = PWMOptimizationStepper(loss, iterations=9, continued=continued), []
    imagine = loss.imagine

    def kept(*args, **kwargs):
        rollouts.append(imagine(*args, **kwargs))
        return rollouts[-1]

    loss.imagine = kept
    return stepper, rollouts


def test_rollouts_go_on_with_their_task_where_they_ended():
    stepper, rollouts = make_stepper(continued=ALWAYS)
    batch = tiny.sequences()
    stepper.update(batch)
    stepper.update(batch[torch.randperm(len(batch))])
    first, second = rollouts
    torch.testing.assert_close(second["latent"][:, 0], first["next", "latent"][:, -1])
    assert torch.equal(second["task"], first["task"])
    assert (first["task"][:, 0] != first["task"][0, 0]).any()


def test_entries_may_have_names_of_their_own():
    actor = make_pwm_actor(16, 6, units=(16,), in_key=("agent", "z"))
    critics = make_value_ensemble(16, units=(16,), num_nets=2, in_key=("agent", "z"))
    loss = PWMLoss(actor, critics, tiny.make_model(), horizon=3)
    loss.set_keys(latent=("agent", "z"), task="which")
    stepper, rollouts = make_stepper(loss, continued=ALWAYS)
    batch = tiny.sequences().rename_key_("task", "which")
    for _ in range(2):
        stepper.update(batch)
    torch.testing.assert_close(rollouts[1]["agent", "z"][:, 0], rollouts[0]["next", "agent", "z"][:, -1])


def test_a_share_of_the_start_states_is_new():
    stepper, rollouts = make_stepper(continued=0.75)
    states = TensorDict({"observation": torch.randn(4000, 39), "task": torch.zeros(4000, dtype=torch.int64)}, [4000])
    for _ in range(3):
        stepper.update(states)
    starts = rollouts[0]["latent"][:, 0]
    new = [(rollout["latent"][:, 0] == starts).all(-1).float().mean().item() for rollout in rollouts]
    assert new == pytest.approx([1.0, 0.25, 0.25], abs=0.03)


def test_none_goes_on_by_default():
    stepper, rollouts = make_stepper(continued=0.0)
    for _ in range(2):
        stepper.update(tiny.sequences())
    assert torch.equal(rollouts[0]["latent"][:, 0], rollouts[1]["latent"][:, 0])


def test_an_episode_that_ended_begins_anew():
    model = PWMWorldModel(5, 2, latent_dim=16, encoder_units=(16,), units=(16,), termination=True)
    loss = PWMLoss(make_pwm_actor(16, 2, units=(16,)), make_value_ensemble(16, units=(16,)), model, horizon=3)
    logits = torch.where(torch.arange(8) < 4, 50.0, -50.0)  # the first four end at once
    model.termination_logits = lambda latent, task=None: logits.view(-1, 1).expand(*latent.shape[:-1], 1)
    stepper, rollouts = make_stepper(loss, continued=ALWAYS)
    batch = TensorDict({"observation": torch.randn(8, 5)}, [8])
    for _ in range(2):
        stepper.update(batch)
    anew = (rollouts[1]["latent"][:, 0] == rollouts[0]["latent"][:, 0]).all(-1)
    assert torch.equal(anew, torch.arange(8) < 4)


def test_an_update_after_a_checkpoint_is_that_without():
    stepper, _ = make_stepper(continued=0.5)
    stepper.update(tiny.sequences())
    again, _ = make_stepper(continued=0.5)
    again.loss_module.load_state_dict(stepper.loss_module.state_dict())
    again.load_state_dict(copy.deepcopy(stepper.state_dict()))
    found = []
    for each in (stepper, again):
        torch.manual_seed(0)
        each.update(tiny.sequences())
        found.append({key: value.clone() for key, value in each.loss_module.state_dict().items()})
    tiny.assert_same(*found)


def test_a_rehearsal_leaves_no_ends():
    stepper, _ = make_stepper(continued=ALWAYS)
    stepper.warmup(tiny.sequences())
    assert not stepper.state_dict()["ends"]["going"].any()


def test_no_number_is_read_and_nothing_is_on_another_device():
    actor, critics = make_pwm_actor(16, 6, units=(16,)), make_value_ensemble(16, units=(16,), num_nets=2)
    loss = PWMLoss(*(module.to("meta") for module in (actor, critics, tiny.make_model())), horizon=3)
    stepper = PWMOptimizationStepper(loss, iterations=9, continued=0.75, check_interval=99)
    for _ in range(3):
        metrics = stepper.update(tiny.sequences().to("meta"))
    assert metrics["loss_actor"].device.type == "meta"


def test_ends_of_a_checkpoint_go_to_where_the_networks_are():
    stepper, _ = make_stepper(continued=0.5)
    stepper.update(tiny.sequences())
    saved = copy.deepcopy(stepper.state_dict())
    stepper.loss_module.to("meta")
    stepper.load_state_dict(saved)
    assert stepper.ends.kept.device.type == "meta"
    assert {entry.device.type for entry in stepper.ends.kept.values()} == {"meta"}


@pytest.mark.parametrize("continued", [-0.1, 1.0])
def test_a_chance_out_of_its_range_is_refused(continued):
    with pytest.raises(ValueError, match="continued must be a number of at least 0 and below 1"):
        make_stepper(continued=continued)


def test_what_has_no_way_to_go_on_is_refused():
    steppers = [make_stepper(continued=0.5)[0] for _ in range(2)]
    with pytest.raises(ValueError, match="trained together with continued=0"):
        StackedPWMUpdate(steppers)


class Drifting(nn.Module):
    """z' = z + 1 whatever is done, and a reward of 1."""

    num_tasks = 0

    def encode_observation(self, observation, task=None):
        return observation

    def next_latent(self, latent, action, task=None):
        return latent + 0.02

    def reward_logits(self, latent, action, task=None):
        return 1.0 + 0.0 * action

    def decode_reward(self, logits, space):
        return logits


def test_the_critics_of_rollouts_that_go_on_find_the_value():
    # All episodes begin at 0 and drift away. A reward of 1 for ever is worth 20; where no rollout begins beyond the
    # horizon, values there are what the critics make of it.
    errors = {}
    for continued in (0.0, 0.9):
        torch.manual_seed(0)
        critics = make_value_ensemble(4, units=(32,), num_nets=1)
        loss = PWMLoss(make_pwm_actor(4, 1, units=(8,)), critics, Drifting(), horizon=4)
        loss.make_value_estimator(gamma=0.95, lmbda=0.95)
        stepper = PWMOptimizationStepper(loss, iterations=150, critic_lr=1e-2, critic_iterations=4, continued=continued)
        states = TensorDict({"observation": torch.rand(32, 4) * 0.05}, [32])
        for _ in range(150):
            stepper.update(states)
        with loss.value_network_params.to_module(loss.value_network):
            value = loss.value_network(TensorDict({"latent": states["observation"]}, [32]))["state_value"]
        errors[continued] = (value - 20.0).abs().mean().item()
    assert errors[0.9] < 1.0 < errors[0.0]
