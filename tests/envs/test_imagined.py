from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import Compose, GymEnv, RenameTransform, RewardSum, StepCounter, TransformedEnv, check_env_specs
from torchrl.envs.transforms import ActionScaling

from tests.envs.drift_env import DriftEnv
from tests.envs.imagination import KINDS, imagined_env, make_model, real_env, starts, task_of
from torchrl_pwm import PWMLoss, PWMWorldModel, WorldModelWrapper, make_pwm_actor, make_value_ensemble


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def model(request):
    return make_model(**request.param)


@pytest.fixture
def actor():
    return make_pwm_actor(16, 2, units=(20,))


class FixedNoise(nn.Module):
    """The actor with given Gaussian noise [H, *, A] instead of fresh draws; ``detach`` cuts its input."""

    def __init__(self, actor, noise, detach):
        super().__init__()
        self.actor, self.noise, self.detach, self.step = actor, noise, detach, 0

    def forward(self, latent):
        latent = latent.detach() if self.detach else latent
        params = self.actor.get_dist_params(TensorDict({"latent": latent}, latent.shape[:-1]))
        noise = self.noise[self.step]
        self.step += 1
        return torch.tanh(params["loc"] + params["scale"] * noise)


def fixed_policy(actor, noise, detach=False):
    return TensorDictModule(FixedNoise(actor, noise, detach), in_keys=["latent"], out_keys=["action"])


# Specs.


@pytest.mark.parametrize("batch_size", [(), 4, (2, 3)])
@pytest.mark.parametrize("max_steps", [None, 2])
def test_specs_are_true(model, batch_size, max_steps):
    env = imagined_env(model, batch_size=batch_size, max_steps=max_steps)
    check_env_specs(env, break_when_any_done="both")


def test_specs_carry_batch_and_event_axes(model):
    env = imagined_env(model, batch_size=(2, 3))
    assert env.action_spec.shape == (2, 3, 2)
    assert env.observation_spec["latent"].shape == (2, 3, 16)
    assert env.reward_spec.shape == (2, 3, 1)
    assert {key: spec.shape for key, spec in env.full_done_spec.items()} == dict.fromkeys(
        ("done", "terminated", "truncated"), (2, 3, 1)
    )
    assert env.rand_action()["action"].shape == (2, 3, 2)


def test_the_action_spec_is_the_real_envs(model):
    env = real_env(model, (3,))
    imagined = env.transform.imagined_env()
    assert imagined.batch_size == (3,)
    assert imagined.action_spec == env.action_spec


def test_a_gym_env_with_scaled_actions_is_imagined():
    pytest.importorskip("gymnasium")
    model = PWMWorldModel(3, 1, latent_dim=16, units=(24,))
    env = TransformedEnv(GymEnv("Pendulum-v1"), Compose(ActionScaling(), WorldModelWrapper(model)))
    imagined = env.transform[1].imagined_env(batch_size=3)
    check_env_specs(imagined)
    assert imagined.action_spec == env.action_spec.expand(3, 1)


# Dynamics.


def test_the_latent_advances_as_the_model_says(model, actor):
    rollout = imagined_env(model, batch_size=4).rollout(6, actor, tensordict=starts(model)).detach()
    for step in range(6):
        td = rollout[:, step]
        expected = model.next_latent(td["latent"], td["action"], task_of(td))
        torch.testing.assert_close(td["next", "latent"], expected.detach())
        assert not torch.allclose(td["next", "latent"], td["latent"], atol=1e-4)
    torch.testing.assert_close(rollout["latent"][:, 1:], rollout["next", "latent"][:, :-1])


@pytest.mark.parametrize("space", ["raw", "symlog"])
def test_rewards_are_those_of_the_latent_before_the_step(model, actor, space):
    td = imagined_env(model, batch_size=4, reward_space=space).rollout(6, actor, tensordict=starts(model)).detach()
    expected = model.decode_reward(model.reward_logits(td["latent"], td["action"], task_of(td)), space)
    torch.testing.assert_close(td["next", "reward"], expected.detach())


def test_the_task_of_each_env_stays(actor):
    model = make_model(**KINDS["tasks"])
    start = starts(model).set("task", torch.tensor([2, 0, 1, 2]))
    rollout = imagined_env(model, batch_size=4).rollout(5, actor, tensordict=start)
    assert (rollout["task"] == start["task"][:, None]).all()
    assert (rollout["next", "task"] == start["task"][:, None]).all()


def test_it_never_ends_unless_told_to(model):
    rollout = imagined_env(model, batch_size=4).rollout(40)
    assert rollout.shape == (4, 40)
    assert not rollout["next", "done"].any()
    assert "step_count" not in rollout


def test_it_truncates_at_max_steps(model):
    env = imagined_env(model, batch_size=4, max_steps=3)
    assert env.rollout(10).shape == (4, 3)
    rollout = env.rollout(7, break_when_any_done=False)
    ends = torch.tensor([False, False, True, False, False, True, False])
    for name in ("done", "truncated"):
        assert (rollout["next", name].squeeze(-1) == ends).all()
    assert not rollout["next", "terminated"].any()
    assert rollout["step_count"][0].flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert not torch.allclose(rollout["latent"][:, 3], rollout["next", "latent"][:, 2])


# Gradients.


def test_the_policy_gradient_equals_that_of_a_plain_loop(model, actor):
    start, noise = starts(model), torch.randn(5, 4, 2)
    rollout = imagined_env(model, batch_size=4).rollout(5, fixed_policy(actor, noise), tensordict=start.clone())
    latent, total = model.encode_observation(start["observation"], task_of(start)).detach(), 0
    policy = fixed_policy(actor, noise).module
    for _ in range(5):
        action = policy(latent)
        total = total + model.decode_reward(model.reward_logits(latent, action, task_of(start))).sum()
        latent = model.next_latent(latent, action, task_of(start))
    torch.testing.assert_close(rollout["next", "reward"].sum(), total)
    torch.testing.assert_close(rollout["next", "latent"][:, -1], latent)
    parameters = list(actor.parameters())
    result = torch.autograd.grad(
        rollout["next", "reward"].sum() + rollout["next", "latent"][:, -1].square().sum(), parameters
    )
    expected = torch.autograd.grad(total + latent.square().sum(), parameters)
    for a, b in zip(result, expected):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("space", ["raw", "symlog"])
def test_a_rollout_under_a_policy_equals_the_losss_imagination(model, actor, detach, space):
    start, noise = starts(model), torch.randn(6, 4, 2)
    critic = make_value_ensemble(16, units=(20,))
    loss = PWMLoss(actor, critic, model, horizon=6, detach_latent=detach, reward_space=space)
    imagined = loss.imagine(start.clone(), noise=noise)
    env = imagined_env(model, batch_size=4, reward_space=space)
    rollout = env.rollout(6, fixed_policy(actor, noise, detach), tensordict=start.clone())
    for key in ("latent", "action", ("next", "latent"), ("next", "reward")):
        torch.testing.assert_close(rollout[key], imagined[key], rtol=1e-4, atol=1e-6)
    parameters = list(actor.parameters())
    result = torch.autograd.grad(rollout["next", "reward"].sum(), parameters)
    expected = torch.autograd.grad(imagined["next", "reward"].sum(), parameters)
    for a, b in zip(result, expected):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_no_gradient_reaches_the_model_and_its_switches_stay(model, actor):
    model.encoder_network.requires_grad_(False)
    switches = [parameter.requires_grad for parameter in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    env = imagined_env(model, batch_size=4)
    env.rollout(4, actor, tensordict=starts(model))["next", "reward"].sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == switches
    assert all(parameter.grad is not None for parameter in actor.parameters())
    for key, value in model.state_dict().items():
        if key != "_task_emb.weight":
            torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_the_start_carries_no_gradient_to_the_encoder_but_a_given_latent_may(actor):
    model = make_model()
    latent = torch.rand(4, 16, requires_grad=True)
    rollout = imagined_env(model, batch_size=4).rollout(3, actor, tensordict=TensorDict({"latent": latent}, [4]))
    rollout["next", "reward"].sum().backward()
    assert latent.grad.any()


def test_it_follows_a_model_that_is_trained_meanwhile(actor):
    model = make_model()
    env, td = (
        imagined_env(model, batch_size=4),
        TensorDict({"latent": torch.rand(4, 16), "action": torch.rand(4, 2)}, [4]),
    )
    before = env.step(td.clone())["next", "latent"]
    nn.init.normal_(model.dynamics_network[0].weight)
    after = env.step(td.clone())["next", "latent"]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model.next_latent(td["latent"], td["action"]).detach())


# Company.


def test_torchrl_transforms_go_around_it(actor):
    model = make_model()
    env = TransformedEnv(imagined_env(model, batch_size=4), Compose(RewardSum(), StepCounter(5)))
    check_env_specs(env)
    start = TensorDict({"latent": torch.rand(4, 16)}, [4])
    rollout = env.rollout(10, actor, tensordict=start.clone(), set_state=True)
    assert rollout.shape == (4, 5)
    torch.testing.assert_close(rollout["latent"][:, 0], start["latent"])
    torch.testing.assert_close(rollout["next", "episode_reward"][:, -1], rollout["next", "reward"].sum(1))


def test_a_collector_runs_it(actor):
    env = imagined_env(make_model(), batch_size=4, max_steps=5)
    collector = Collector(env, actor, frames_per_batch=32, total_frames=64, auto_register_policy_transforms=False)
    batches = list(collector)
    collector.shutdown()
    assert [batch.shape for batch in batches] == [(4, 8), (4, 8)]
    assert batches[0]["next", "truncated"][:, 4].all()


def test_keys_are_those_of_the_wrapper_and_the_real_env(actor):
    model = make_model(**KINDS["tasks"])
    rename = RenameTransform(["observation", "task"], [("agent", "obs"), "goal"], ["action"], [("agent", "act")])
    wrapper = WorldModelWrapper(model, in_keys=[("agent", "obs")], out_keys=[("agent", "z")], task_key="goal")
    env = TransformedEnv(DriftEnv(num_tasks=3), Compose(rename, wrapper))
    imagined = wrapper.imagined_env(batch_size=4)
    check_env_specs(imagined)
    assert imagined.action_keys == env.action_keys == [("agent", "act")]
    assert imagined.rollout(3)["agent", "z"].shape == (4, 3, 16)


def test_any_module_with_the_tensor_forms_serves():
    class Quadratic(nn.Module):
        """z' = z + a / 10, r = -|z|^2, latents are the observations."""

        latent_dim = action_dim = 2

        def encode_observation(self, observation, task=None):
            return observation

        def next_latent(self, latent, action, task=None):
            return latent + action / 10

        def reward_logits(self, latent, action, task=None):
            return -latent.square().sum(-1, keepdim=True)

        def decode_reward(self, logits, space="raw"):
            return logits

    env = WorldModelWrapper(Quadratic()).imagined_env(batch_size=3)
    action = torch.full((3, 2), 0.5, requires_grad=True)
    policy = TensorDictModule(lambda latent: action, in_keys=["latent"], out_keys=["action"])
    rollout = env.rollout(3, policy, tensordict=TensorDict({"observation": torch.ones(3, 2)}, [3]))
    rollout["next", "reward"].sum().backward()
    # r = -sum_k |1 + k a / 10|^2 over k = 0, 1, 2, for which d/da = -2 (1 + 0.05) / 10 - 2 (1 + 0.1) 2 / 10.
    torch.testing.assert_close(action.grad, torch.full((3, 2), -0.65))


def test_a_float64_model_is_imagined_in_float64():
    model = make_model().double()
    env = imagined_env(model, batch_size=4)
    check_env_specs(env)
    assert env.reward_spec.dtype == env.reset()["latent"].dtype == torch.float64
