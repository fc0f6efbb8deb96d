from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.data import Composite, LazyTensorStorage, ReplayBuffer, SliceSampler
from torchrl.envs import (
    CatTensors,
    Compose,
    GymEnv,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
    check_env_specs,
)
from torchrl.envs.transforms import ActionScaling
from torchrl.testing.mocking_classes import ContinuousActionVecMockEnv

from tests.envs.drift_env import DriftEnv
from torchrl_pwm import PWMWorldModel, WorldModelWrapper, make_pwm_actor


def make_model(observation_dim=5, action_dim=2, num_tasks=0):
    tasks = {"num_tasks": num_tasks, "task_dim": 4} if num_tasks else {}
    return PWMWorldModel(observation_dim, action_dim, latent_dim=16, units=(24,), encoder_units=(20,), **tasks)


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def multi():
    return make_model(num_tasks=3)


def check_latents(model, rollout, **keys):
    """Every latent of a rollout is the encoding of the observation beside it."""
    for td in (rollout, rollout["next"]):
        expected = model.encode_observation(td["observation"], td["task"] if model.num_tasks else None)
        torch.testing.assert_close(td["latent"], expected.detach())
        assert not td["latent"].requires_grad


# In an env.


@pytest.mark.parametrize("batch_size", [(), (3,), (2, 3)])
def test_reset_and_step_write_the_latent_of_any_batch(model, batch_size):
    env = TransformedEnv(DriftEnv(batch_size), WorldModelWrapper(model))
    check_env_specs(env)
    rollout = env.rollout(4, break_when_any_done=False)
    assert rollout["latent"].shape == (*batch_size, 4, 16)
    check_latents(model, rollout)


def test_it_works_in_torchrl_gym_and_mock_envs():
    pytest.importorskip("gymnasium")
    for base in (GymEnv("Pendulum-v1"), ContinuousActionVecMockEnv()):
        model = make_model(base.observation_spec["observation"].shape[-1], base.action_spec.shape[-1])
        env = TransformedEnv(base, WorldModelWrapper(model))
        check_env_specs(env)
        check_latents(model, env.rollout(5))


def test_the_task_of_each_env_is_used(multi):
    env = TransformedEnv(DriftEnv((4,), num_tasks=3), WorldModelWrapper(multi))
    check_env_specs(env)
    rollout = env.rollout(3, break_when_any_done=False)
    assert rollout["task"][:, 0].tolist() == [0, 1, 2, 0]
    check_latents(multi, rollout)


def test_a_task_that_the_env_writes_only_at_the_reset_is_remembered(multi):
    env = TransformedEnv(DriftEnv((3,), num_tasks=3, task_in_next=False), WorldModelWrapper(multi))
    td = env.rand_step(env.reset())
    expected = multi.encode_observation(td["next", "observation"], torch.arange(3))
    torch.testing.assert_close(td["next", "latent"], expected.detach())


def test_it_works_in_a_published_task():
    pytest.importorskip("dm_control")
    from torchrl_pwm import make_task_env

    model = make_model(24, 6, num_tasks=30)
    env = TransformedEnv(make_task_env("pendulum-swingup", task_set="mt30"), WorldModelWrapper(model))
    check_env_specs(env)
    check_latents(model, env.rollout(3))
    imagined = env.transform.imagined_env(batch_size=4)
    assert imagined.rollout(3)["task"].unique().tolist() == env.reset()["task"].reshape(1).tolist()


def test_envs_that_are_reset_alone_get_their_new_latent(model):
    env = TransformedEnv(DriftEnv((3,)), WorldModelWrapper(model))
    rollout = env.rollout(6, break_when_any_done=False)
    assert rollout["next", "done"].sum((1, 2)).tolist() == [3, 2, 1]
    check_latents(model, rollout)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_serial_envs_give_the_same_latents_outside_and_inside(model, where):
    def make(inside):
        base = DriftEnv()
        return TransformedEnv(base, WorldModelWrapper(model)) if inside else base

    env = SerialEnv(2, [functools.partial(make, where == "inside")] * 2)
    if where == "outside":
        env = TransformedEnv(env, WorldModelWrapper(model))
    check_env_specs(env)
    rollout = env.rollout(5, break_when_any_done=False)
    assert rollout["latent"].shape == (2, 5, 16)
    check_latents(model, rollout)


def test_parallel_envs_carry_the_model_into_their_workers():
    model = make_model(7, 7)

    def make():
        return TransformedEnv(ContinuousActionVecMockEnv(), WorldModelWrapper(model))

    env = ParallelEnv(2, make)
    try:
        check_env_specs(env)
        check_latents(model, env.rollout(4, break_when_any_done=False))
    finally:
        env.close(raise_if_closed=False)


def test_around_a_parallel_env_the_latents_follow_the_model_in_training():
    model = make_model(7, 7)
    env = TransformedEnv(ParallelEnv(2, ContinuousActionVecMockEnv, mp_start_method="fork"), WorldModelWrapper(model))
    try:
        check_env_specs(env)
        before = env.reset()
        torch.nn.init.normal_(model.encoder_network[0].weight)
        after = env.rollout(3, break_when_any_done=False)
        check_latents(model, after)
        assert not torch.allclose(model.encode_observation(before["observation"]), before["latent"])
    finally:
        env.close(raise_if_closed=False)


def test_it_composes_with_other_transforms(model):
    base = GymEnvLike()
    env = TransformedEnv(
        base,
        Compose(
            CatTensors(["position", "velocity"], "observation", del_keys=False),
            ActionScaling(),
            WorldModelWrapper(model),
            StepCounter(),
            RewardSum(),
        ),
    )
    check_env_specs(env)
    rollout = env.rollout(3, break_when_any_done=False)
    check_latents(model, rollout)
    torch.testing.assert_close(rollout["observation"], torch.cat([rollout["position"], rollout["velocity"]], -1))


class GymEnvLike(DriftEnv):
    """Two observation entries and actions in [-2, 2]."""

    def __init__(self):
        super().__init__(bound=2.0)
        spec = self.observation_spec["observation"]
        self.observation_spec = Composite(position=spec[..., :2].clone(), velocity=spec[..., 2:].clone())

    def _observe(self):
        return TensorDict({"position": self.position[..., :2].clone(), "velocity": self.position[..., 2:].clone()}, [])


def test_transforms_after_it_see_the_latent(model):
    env = TransformedEnv(DriftEnv(), Compose(WorldModelWrapper(model), CatTensors(["latent", "observation"], "both")))
    check_env_specs(env)
    assert env.rollout(2)["both"].shape == (2, 21)


def test_keys_can_be_named_and_nested(multi):
    from torchrl.envs import RenameTransform

    rename = RenameTransform(["observation", "task"], [("agent", "obs"), "goal"])
    wrapper = WorldModelWrapper(multi, in_keys=[("agent", "obs")], out_keys=[("agent", "z")], task_key="goal")
    env = TransformedEnv(DriftEnv((3,), num_tasks=3), Compose(rename, wrapper))
    check_env_specs(env)
    td = env.reset()
    torch.testing.assert_close(td["agent", "z"], multi.encode_observation(td["agent", "obs"], td["goal"]).detach())


def test_the_spec_has_the_latents_shape_dtype_and_device(model):
    env = TransformedEnv(DriftEnv((3,)), WorldModelWrapper(model))
    spec = env.observation_spec["latent"]
    assert spec.shape == (3, 16)
    assert spec.dtype == torch.float32
    assert spec.device == env.device
    assert env.observation_spec["observation"].shape == (3, 5)


def test_observations_of_another_dtype_are_read_in_the_models(model):
    env = TransformedEnv(DriftEnv(dtype=torch.float64), WorldModelWrapper(model))
    check_env_specs(env)
    td = env.reset()
    assert td["observation"].dtype == torch.float64
    torch.testing.assert_close(td["latent"], model.encode_observation(td["observation"].float()).detach())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
@pytest.mark.parametrize(("device", "model_device"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_latents_come_back_to_the_observations_device(device, model_device):
    model = make_model().to(model_device)
    td = WorldModelWrapper(model)(TensorDict({"observation": torch.randn(3, 5, device=device)}, [3]))
    assert td["latent"].device.type == device
    env = TransformedEnv(DriftEnv(), WorldModelWrapper(model))
    check_env_specs(env)
    assert next(model.parameters()).device.type == model_device
    imagined = env.transform.imagined_env(batch_size=3)
    check_env_specs(imagined)
    assert imagined.device.type == model_device


def test_the_wrapper_leaves_the_model_where_and_as_it_is(model):
    model.train()
    before = copy.deepcopy(model.state_dict())
    env = TransformedEnv(DriftEnv(), WorldModelWrapper(model))
    env.rollout(3)
    assert not list(env.parameters())
    assert not env.state_dict()
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    env.transform.to(torch.float64)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_one_policy_runs_in_the_env(model):
    env = TransformedEnv(DriftEnv((3,)), WorldModelWrapper(model))
    rollout = env.rollout(3, make_pwm_actor(16, 2), break_when_any_done=False)
    assert rollout["action"].shape == (3, 3, 2)


# As a module and in replay buffers.


def test_a_clone_shares_the_model_and_can_join_another_env(model):
    wrapper = WorldModelWrapper(model)
    first = TransformedEnv(DriftEnv(), wrapper)
    second = TransformedEnv(DriftEnv(), wrapper.clone())
    assert second.transform.world_model is model
    assert wrapper.container is first
    torch.testing.assert_close(first.reset()["latent"], second.reset()["latent"])
    with pytest.raises(AttributeError, match=r"transform.clone\(\)"):
        TransformedEnv(DriftEnv(), wrapper)


def test_a_pickled_wrapper_brings_its_model(model):
    wrapper = pickle.loads(pickle.dumps(WorldModelWrapper(model)))
    observation = torch.randn(4, 5)
    torch.testing.assert_close(
        wrapper.world_model.encode_observation(observation), model.encode_observation(observation)
    )


def test_it_is_a_module_of_a_tensordict_model(multi):
    policy = TensorDictSequential(WorldModelWrapper(multi), make_pwm_actor(16, 2))
    assert policy.in_keys == ["observation", "task"]
    td = policy(TensorDict({"observation": torch.randn(4, 5), "task": torch.tensor([0, 1, 2, 0])}, [4]))
    assert td["action"].shape == (4, 2)
    assert not td["latent"].requires_grad and td["action"].requires_grad


def test_it_can_be_called_without_a_tensordict(multi):
    observation, task = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    latent = WorldModelWrapper(multi)(observation=observation, task=task)
    torch.testing.assert_close(latent, multi.encode_observation(observation, task).detach())


def sequences(tasks=None, batch=(6, 4)):
    observation = torch.randn(batch[0], batch[1] + 1, 5)
    td = {"observation": observation[:, :-1], "next": {"observation": observation[:, 1:]}}
    if tasks:
        td["task"] = torch.randint(tasks, (batch[0], 1)).expand(batch).clone()
    return TensorDict(td, batch)


@pytest.mark.parametrize("num_tasks", [0, 3])
def test_a_replay_buffer_writes_both_latents(num_tasks):
    model = make_model(num_tasks=num_tasks)
    buffer = ReplayBuffer(storage=LazyTensorStorage(6), batch_size=5, transform=WorldModelWrapper(model))
    buffer.extend(sequences(num_tasks))
    batch = buffer.sample()
    assert batch["latent"].shape == batch["next", "latent"].shape == (5, 4, 16)
    task = batch["task"] if num_tasks else None
    for td in (batch, batch["next"]):
        torch.testing.assert_close(td["latent"], model.encode_observation(td["observation"], task).detach())
    torch.testing.assert_close(batch["latent"][:, 1:], batch["next", "latent"][:, :-1])
    assert not batch["latent"].requires_grad


def test_a_replay_buffer_does_not_store_latents(model):
    buffer = ReplayBuffer(storage=LazyTensorStorage(6), batch_size=5)
    buffer.append_transform(WorldModelWrapper(model))
    buffer.extend(sequences())
    assert "latent" in buffer.sample()
    assert "latent" not in buffer.storage[:]


def test_slices_of_a_real_rollout_are_encoded(model):
    env = TransformedEnv(DriftEnv((3,)), StepCounter())
    sampler = SliceSampler(slice_len=2, end_key=("next", "done"), strict_length=False)
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(100), sampler=sampler, batch_size=8, transform=WorldModelWrapper(model)
    )
    buffer.extend(env.rollout(8, break_when_any_done=False).reshape(-1))
    check_latents(model, buffer.sample())


def test_the_task_of_an_env_counts_for_all_its_steps_even_if_the_batch_is_square(multi):
    observation, task = torch.randn(3, 3, 5), torch.tensor([0, 1, 2])
    td = WorldModelWrapper(multi)(TensorDict({"observation": observation, "task": task}, [3]))
    expected = multi.encode_observation(observation, task[:, None].expand(3, 3))
    torch.testing.assert_close(td["latent"], expected.detach())


def test_only_next_observations_are_encoded_if_there_are_no_others(model):
    td = WorldModelWrapper(model)(TensorDict({"next": {"observation": torch.randn(4, 5)}}, [4]))
    assert td["next", "latent"].shape == (4, 16)
    assert "latent" not in td


# Errors.


def test_an_observation_of_another_size_is_refused(model):
    env = TransformedEnv(ContinuousActionVecMockEnv(), WorldModelWrapper(model))
    with pytest.raises(ValueError, match=r"observations of size 5, found observation of shape \(7,\)"):
        env.reset()
    with pytest.raises(ValueError, match="observations of size 5"):
        _ = env.observation_spec


def test_a_missing_observation_is_named_with_what_there_is(model):
    env = TransformedEnv(DriftEnv(), WorldModelWrapper(model, in_keys=["pixels"]))
    for use in (env.reset, lambda: env.observation_spec):
        with pytest.raises(ValueError, match=r"needs the observation under 'pixels', found \[.*'observation'.*in_keys"):
            use()
    with pytest.raises(ValueError, match=r"found \['action'\]"):
        WorldModelWrapper(model)(TensorDict({"action": torch.zeros(2, 2)}, [2]))


def test_a_missing_task_is_named_with_what_to_do(multi):
    env = TransformedEnv(DriftEnv(), WorldModelWrapper(multi))
    with pytest.raises(ValueError, match=r"needs the task index under 'task'.*has 3 tasks.*task_key"):
        env.reset()


def test_a_task_of_the_wrong_shape_is_refused(multi):
    td = TensorDict({"observation": torch.randn(4, 5), "task": torch.zeros(4, 7, dtype=torch.int64)}, [4])
    with pytest.raises(ValueError, match=r"one index per state: expected shape \(4,\).*found \(4, 7\)"):
        WorldModelWrapper(multi)(td)


@pytest.mark.parametrize("keys", [{"in_keys": ["position", "velocity"]}, {"out_keys": ["a", "b"]}, {"in_keys": []}])
def test_several_keys_are_refused_with_the_transform_to_add(model, keys):
    with pytest.raises(ValueError, match="CatTensors"):
        WorldModelWrapper(model, **keys)


@pytest.mark.parametrize("thing", [torch.nn.Linear(5, 16), "5M", None])
def test_something_else_than_a_world_model_is_refused(thing):
    with pytest.raises(
        TypeError, match="Expected a PWMWorldModel or a module with its tensor forms encode_observation"
    ):
        WorldModelWrapper(thing)
