"""Planners, policies and envs on ``meta``; the simulators that are plain torch, and how often a GPU is waited for."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer

from tests.devices.parts import ACTION, LATENT, META, MODELS, make_model, make_tdmpc2, sequences
from torchrl_pwm import TDMPC2Planner, WorldModelPolicy, WorldModelWrapper, make_pwm_actor
from torchrl_pwm.envs.simulators import AnalyticEnv, SwingUpController
from torchrl_pwm.modules.trained_policy import TrainedPolicy
from torchrl_pwm.trainers.disagreement import train_disagreement

BINNED = [name for name in MODELS if name not in ("normalised rewards", "heads and decoder")]


def observed(name, envs=4, device=META):
    td = TensorDict({"observation": torch.randn(envs, 5), "is_init": torch.ones(envs, 1, dtype=torch.bool)}, [envs])
    if "num_tasks" in MODELS[name]:
        td["task"] = torch.zeros(envs, dtype=torch.int64)
    return td.to(device)


@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize("name", BINNED)
def test_tdmpc2_planner(name, plan):
    settings = {"num_samples": 16, "num_policy_rollouts": 4, "num_elites": 4, "iterations": 2}
    planner = TDMPC2Planner(make_tdmpc2(name), plan=plan, **settings)
    for _ in range(2):  # the second begins with the plan of the first
        assert planner(observed(name))["action"].device.type == META


@pytest.mark.parametrize("task", [None, 1])
@pytest.mark.parametrize("name", ["bins", "tasks"])
def test_a_trained_policy_takes_observations_to_its_networks_and_brings_actions_back(name, task):
    if task is not None and "num_tasks" not in MODELS[name]:
        task = None
    inner = TDMPC2Planner(make_tdmpc2(name), plan=False)
    policy = TrainedPolicy(inner, observation_dim=5, action_dim=ACTION, task=task)
    td = observed(name) if task is None else observed("bins")
    assert policy(td)["action"].device.type == META


def test_an_actor_reads_the_latent_where_the_world_model_writes_it():
    model, actor = make_model("tasks"), make_pwm_actor(LATENT, ACTION).to(META)
    policy = WorldModelPolicy(model, actor)
    td = observed("tasks").set("latent", model.encode_observation(torch.randn(4, 5, device=META), 0))
    assert policy.actor.get_dist_params(td)["loc"].device.type == META


@pytest.mark.parametrize("name", ["scalar head", "tasks", "termination"])
def test_imagined_env(name):
    env = WorldModelWrapper(make_model(name)).imagined_env(batch_size=[4])
    state = env.reset(observed(name).exclude("is_init"))
    for _ in range(2):
        step = env.step(state.set("action", torch.zeros(4, ACTION, device=META)))
        assert step["next", "reward"].device.type == META
        state = step["next"].exclude("reward")


@pytest.mark.parametrize("non_finite", ["raise", "terminate"])
@pytest.mark.parametrize("task", AnalyticEnv.available_envs)
def test_a_simulator_steps_with_its_gradient_and_reads_nothing(task, non_finite):
    # Each operation takes long on meta: only the small task goes on for more steps than are looked at together.
    steps, options = (34, {"observation_size": 3, "action_size": 2}) if task == "synthetic" else (2, {"substeps": 1})
    env = AnalyticEnv(task, 4, device=META, requires_grad=True, non_finite=non_finite, stagger=True, **options)
    state = env.reset()
    action = torch.zeros(4, env.action_spec.shape[-1], device=META, requires_grad=True)
    reward = torch.zeros(4, 1, device=META)
    for _ in range(steps):
        step = env.step(state.set("action", action.clone()))
        reward, state = reward + step["next", "reward"], step["next"].exclude("reward")
    reward.sum().backward()
    assert action.grad is not None
    env.truncate_graph(state)
    env.load_state_dict(env.state_dict())


@pytest.mark.parametrize("task", SwingUpController.tasks)
def test_hand_written_controllers(task):
    assert SwingUpController(task)(AnalyticEnv(task, 4, device=META).reset())["action"].device.type == META


def test_a_state_saved_on_the_cpu_goes_on_elsewhere():
    saved, env = AnalyticEnv("cartpole_swingup", 4), AnalyticEnv("cartpole_swingup", 4, device=META)
    saved.reset()
    env.load_state_dict(saved.state_dict())
    assert env.truncate_graph()["observation"].device.type == META


def test_an_ensemble_is_trained_where_its_model_is():
    replay = ReplayBuffer(storage=LazyTensorStorage(8), batch_size=4)
    replay.extend(sequences("tasks", "cpu", batch=8))
    ensemble = train_disagreement(make_model("tasks"), replay, iterations=2)
    assert {value.device.type for value in [*ensemble.parameters(), *ensemble.buffers()]} == {META}
