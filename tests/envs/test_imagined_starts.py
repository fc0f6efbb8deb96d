from __future__ import annotations

import gc
import warnings

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Composite, LazyTensorStorage, ReplayBuffer
from torchrl.envs import Compose, TransformedEnv, check_env_specs
from torchrl.testing.mocking_classes import CountingEnv, MockBatchedLockedEnv

from tests.envs.drift_env import DriftEnv
from tests.envs.imagination import KINDS, imagined_env, make_model, real_env, starts, task_of
from torchrl_pwm import ImaginedEnv, PWMWorldModel, WorldModelWrapper, make_pwm_actor


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def model(request):
    return make_model(**request.param)


@pytest.fixture
def actor():
    return make_pwm_actor(16, 2, units=(20,))


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


def test_its_seed_is_that_of_the_real_env_that_it_starts_from(model):
    env = real_env(model, (3,))
    imagined = env.transform.imagined_env(batch_size=7)
    drawn = []
    for seed in (3, 3, 4):
        imagined.set_seed(seed)
        drawn.append(imagined.reset()["latent"])
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert not torch.allclose(drawn[0], drawn[2])


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


def test_only_the_envs_that_ask_for_it_are_reset(model):
    env = imagined_env(model, batch_size=4)
    td = env.rollout(3)[:, -1]["next"].exclude("reward")
    mask = torch.tensor([True, False, False, True])[:, None]
    after = env.reset(td.clone().set("_reset", mask))
    assert (after["latent"] == td["latent"]).all(-1).tolist() == [False, True, True, False]


def test_chosen_envs_can_be_set_to_a_given_state(model):
    env = imagined_env(model, batch_size=4)
    td = env.rollout(3)[:, -1]["next"].exclude("reward")
    given = td.clone().set("latent", torch.rand(4, 16)).set("_reset", torch.tensor([[True], [False], [False], [True]]))
    after = env.reset(given.clone(), set_state=True)
    torch.testing.assert_close(after["latent"], given["latent"])


def test_a_state_can_be_stepped_without_a_reset(actor):
    start = TensorDict({"latent": torch.rand(4, 16)}, [4])
    for max_steps, length in ((None, 5), (3, 3)):
        env = imagined_env(make_model(), batch_size=4, max_steps=max_steps)
        rollout = env.rollout(5, actor, tensordict=start.clone(), auto_reset=False)
        assert rollout.shape == (4, length)
        torch.testing.assert_close(rollout["latent"][:, 0], start["latent"])


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
    with pytest.raises(ValueError, match=r"actions of size 3, found action of shape \(2,\)"):
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
