from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Bounded, Composite, LazyTensorStorage, ReplayBuffer
from torchrl.envs import Compose, GymEnv, RenameTransform, RewardSum, StepCounter, TransformedEnv, check_env_specs
from torchrl.envs.transforms import ActionScaling
from torchrl.testing.mocking_classes import CountingEnv, MockBatchedLockedEnv

from tests.envs.drift_env import DriftEnv
from torchrl_pwm import ImaginedEnv, PWMLoss, PWMWorldModel, WorldModelWrapper, make_pwm_actor, make_value_ensemble


def make_model(num_tasks=0, num_bins=None):
    tasks = {"num_tasks": num_tasks, "task_dim": 4} if num_tasks else {}
    model = PWMWorldModel(5, 2, latent_dim=16, units=(24, 24), encoder_units=(20,), num_bins=num_bins, **tasks)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


KINDS = {"scalar": {}, "bins": {"num_bins": 11}, "tasks": {"num_tasks": 3, "num_bins": 11}}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def model(request):
    return make_model(**request.param)


@pytest.fixture
def actor():
    return make_pwm_actor(16, 2, units=(20,))


def real_env(model, batch_size=(), **kwargs):
    base = DriftEnv(batch_size, num_tasks=model.num_tasks, **kwargs)
    return TransformedEnv(base, WorldModelWrapper(model))


def imagined_env(model, **kwargs):
    env = real_env(model)
    imagined = env.transform.imagined_env(**kwargs)
    imagined.real = [env]
    return imagined


def starts(model, batch=(4,)):
    td = TensorDict({"observation": torch.randn(*batch, 5)}, batch)
    return td.set("task", torch.randint(3, batch)) if model.num_tasks else td


def task_of(td):
    return td.get("task", None)


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


def test_the_task_of_each_row_stays(actor):
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
    found = torch.autograd.grad(
        rollout["next", "reward"].sum() + rollout["next", "latent"][:, -1].square().sum(), parameters
    )
    expected = torch.autograd.grad(total + latent.square().sum(), parameters)
    for a, b in zip(found, expected):
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
    found = torch.autograd.grad(rollout["next", "reward"].sum(), parameters, allow_unused=True)
    imagined_reward = loss.imagine(start.clone(), noise=noise)["next", "reward"].sum()
    loss_parameters = list(loss.actor_network_params.values(True, True))
    expected = torch.autograd.grad(imagined_reward, loss_parameters, allow_unused=True)
    by_shape = sorted(zip(map(str, (p.shape for p in parameters)), found), key=lambda pair: pair[0])
    other = sorted(zip(map(str, (p.shape for p in loss_parameters)), expected), key=lambda pair: pair[0])
    total = sum(grad.square().sum() for _, grad in by_shape)
    assert total > 0
    torch.testing.assert_close(total, sum(grad.square().sum() for _, grad in other), rtol=1e-3, atol=1e-8)


def test_no_gradient_reaches_the_model_and_its_switches_stay(model, actor):
    model._encoder.requires_grad_(False)
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
    nn.init.normal_(model._dynamics[0].weight)
    after = env.step(td.clone())["next", "latent"]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model.next_latent(td["latent"], td["action"]).detach())


# Start states.


def test_it_starts_from_given_observations_or_latents(model):
    start = starts(model)
    latent = model.encode_observation(start["observation"], task_of(start)).detach()
    env = imagined_env(model, batch_size=4)
    torch.testing.assert_close(env.reset(start.clone())["latent"], latent)
    given = start.clone().exclude("observation").set("latent", torch.rand(4, 16))
    torch.testing.assert_close(env.reset(given.clone())["latent"], given["latent"])


def test_an_observation_is_encoded_anew_even_beside_a_stored_latent(model):
    start = starts(model)
    latent = model.encode_observation(start["observation"], task_of(start)).detach()
    td = imagined_env(model, batch_size=4).reset(start.clone().set("latent", torch.rand(4, 16)))
    torch.testing.assert_close(td["latent"], latent)


def test_a_batch_of_a_replay_buffer_serves_as_it_is_and_stays_so(model, actor):
    buffer = ReplayBuffer(storage=LazyTensorStorage(10), batch_size=4)
    data = starts(model, (10, 3))
    buffer.extend(data.set("next", data.clone()).set("action", torch.rand(10, 3, 2)))
    batch = buffer.sample()[:, 0]
    before = batch.clone()
    rollout = imagined_env(model, batch_size=4).rollout(3, actor, tensordict=batch)
    assert rollout.shape == (4, 3)
    assert "observation" not in rollout and "observation" not in rollout["next"]
    assert set(batch.keys(True)) == set(before.keys(True))
    assert (batch == before).all()


def test_other_entries_of_the_start_stay_for_the_policy(model, actor):
    goal = torch.randn(4, 3)
    rollout = imagined_env(model, batch_size=4).rollout(3, actor, tensordict=starts(model).set("goal", goal))
    torch.testing.assert_close(rollout["goal"], goal[:, None].expand(4, 3, 3))


def test_without_a_start_it_resets_the_real_env(model):
    env = real_env(model, (3,))
    imagined = env.transform.imagined_env(batch_size=7)
    reference = DriftEnv((3,), num_tasks=model.num_tasks)
    td = imagined.reset()
    assert env.base_env.resets == 3
    real = torch.cat([reference.reset() for _ in range(3)])[:7]
    torch.testing.assert_close(td["latent"], model.encode_observation(real["observation"], task_of(real)).detach())


def test_outside_an_env_it_asks_for_a_start(model):
    env = WorldModelWrapper(model).imagined_env(batch_size=4)
    assert env.action_spec == Bounded(-1.0, 1.0, (4, 2))
    for given in (None, TensorDict({"action": torch.zeros(4, 2)}, [4])):
        with pytest.raises(ValueError, match=r"needs start states: expected 'observation' or 'latent'.*TransformedEnv"):
            env.reset(given)
    assert env.rollout(3, tensordict=starts(model)).shape == (4, 3)


def test_starts_can_come_from_a_function(model):
    asked = []

    def draw(count):
        asked.append(count)
        return starts(model, (count,))

    env = ImaginedEnv(model, batch_size=(2, 3), starts=draw)
    check_env_specs(env)
    assert set(asked) == {6}
    wrong = ImaginedEnv(model, batch_size=4, starts=lambda count: starts(model, (count + 1,)))
    with pytest.raises(ValueError, match=r"starts\(4\) returned a batch of shape \(5,\)"):
        wrong.reset()


def test_set_state_decides_whether_a_given_start_counts(model):
    env, start = imagined_env(model, batch_size=4), starts(model)
    latent = env.reset(start.clone(), set_state=True)["latent"]
    torch.testing.assert_close(latent, model.encode_observation(start["observation"], task_of(start)).detach())
    assert not torch.allclose(env.reset(start.clone(), set_state=False)["latent"], latent)
    with pytest.raises(ValueError, match="needs start states"):
        env.reset(TensorDict({"action": torch.zeros(4, 2)}, [4]), set_state=True)


def test_starting_from_a_given_state_warns_of_nothing(model):
    env, start = imagined_env(model, batch_size=4), starts(model).set("latent", torch.rand(4, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.rollout(2, tensordict=start)


def test_without_a_batch_size_it_takes_any(model, actor):
    env = WorldModelWrapper(model).imagined_env()
    for batch in ((), (5,), (2, 3)):
        rollout = env.rollout(3, actor, tensordict=starts(model, batch))
        assert rollout["next", "reward"].shape == (*batch, 3, 1)


def test_only_the_rows_that_ask_for_it_are_reset(model):
    env = imagined_env(model, batch_size=4)
    td = env.rollout(3)[:, -1]["next"].exclude("reward")
    mask = torch.tensor([True, False, False, True])[:, None]
    after = env.reset(td.clone().set("_reset", mask))
    assert (after["latent"] == td["latent"]).all(-1).tolist() == [False, True, True, False]


def test_chosen_rows_can_be_set_to_a_given_state(model):
    env = imagined_env(model, batch_size=4)
    td = env.rollout(3)[:, -1]["next"].exclude("reward")
    given = td.clone().set("latent", torch.rand(4, 16)).set("_reset", torch.tensor([[True], [False], [False], [True]]))
    after = env.reset(given.clone(), set_state=True)
    torch.testing.assert_close(after["latent"], given["latent"])


# Tasks.


def test_a_default_task_is_used_where_the_start_has_none(actor):
    model = make_model(**KINDS["tasks"])
    env = WorldModelWrapper(model).imagined_env(batch_size=4, task=2)
    start = starts(model)
    assert env.reset(start.clone())["task"].tolist() == start["task"].tolist()
    assert env.reset(start.exclude("task"))["task"].tolist() == [2, 2, 2, 2]
    check_env_specs(
        ImaginedEnv(model, batch_size=2, task=torch.tensor([0, 2]), starts=lambda n: starts(make_model(), (n,)))
    )


def test_a_missing_task_is_asked_for():
    model = make_model(**KINDS["tasks"])
    with pytest.raises(ValueError, match=r"has 3 tasks: put each start state's task index under 'task'"):
        WorldModelWrapper(model).imagined_env(batch_size=4).reset(starts(make_model()))


def test_a_task_for_a_model_without_tasks_is_refused():
    with pytest.raises(ValueError, match="no tasks"):
        WorldModelWrapper(make_model()).imagined_env(batch_size=4, task=1)


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


# Errors.


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: DriftEnv(bound=2.0), r"Expected actions in \[-1, 1\], found bounds from -2 to 2.*ActionScaling\(\)"),
        (lambda: DriftEnv(bound=0.5), r"found bounds from -0.5 to 0.5.*ActionScaling\(\)"),
        (MockBatchedLockedEnv, "unbounded action spec.*ActionScaling"),
        (CountingEnv, "continuous actions"),
    ],
)
def test_actions_outside_the_unit_box_are_refused_with_the_transform_to_add(base, message):
    env = TransformedEnv(base(), WorldModelWrapper(make_model()))
    with pytest.raises(ValueError, match=message):
        env.transform.imagined_env(batch_size=4)


def test_an_action_of_another_size_is_refused():
    model = PWMWorldModel(5, 3, latent_dim=16)
    env = real_env(model)
    with pytest.raises(ValueError, match=r"actions of size 3, the env's have shape \(2,\)"):
        env.transform.imagined_env(batch_size=4)


def test_several_actions_are_refused():
    base = DriftEnv()
    base.action_spec = Composite(arm=base.action_spec.clone(), leg=base.action_spec.clone())
    env = TransformedEnv(base, WorldModelWrapper(make_model()))
    with pytest.raises(ValueError, match=r"one action entry, the env has \['arm', 'leg'\]"):
        env.transform.imagined_env(batch_size=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"reward_space": "log"}, '"raw" or "symlog"'), ({"max_steps": 0}, "max_steps must be at least 1")],
)
def test_options_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        imagined_env(make_model(), batch_size=4, **arguments)


def test_a_start_of_another_batch_size_is_refused(model):
    with pytest.raises(RuntimeError, match=r"got torch.Size\(\[3\]\) and torch.Size\(\[4\]\)"):
        imagined_env(model, batch_size=4).reset(starts(model, (3,)))


def test_a_model_that_cannot_step_is_refused():
    class Encoder(nn.Module):
        def encode_observation(self, observation, task=None):
            return observation

    with pytest.raises(TypeError, match="Encoder without next_latent, reward_logits, decode_reward"):
        WorldModelWrapper(Encoder()).imagined_env(batch_size=4)


@pytest.mark.parametrize("compose", [False, True])
def test_a_real_env_that_is_gone_is_missed(compose):
    wrapper = WorldModelWrapper(make_model())
    env = TransformedEnv(DriftEnv(), Compose(wrapper) if compose else wrapper)
    imagined = wrapper.imagined_env(batch_size=4)
    imagined.reset()
    wrapper.empty_cache()
    del env
    gc.collect()
    for use in (imagined.reset, wrapper.imagined_env):
        with pytest.raises(ValueError, match=r"gone.*Keep the TransformedEnv in a variable"):
            use()
