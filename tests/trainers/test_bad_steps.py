"""A number that is not finite in a step of an env stops an online run there, with its last checkpoint good."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

import gymnasium
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import InitTracker, TransformedEnv

from tests.envs.faulty_env import Faulty
from torchrl_pwm import (
    OnlinePWMTrainer,
    OnlineTDMPC2Trainer,
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    TDMPC2Loss,
    TDMPC2Model,
    TDMPC2Planner,
    WorldModelPolicy,
    evaluate_policy,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.data import make_online_replay, record_steps
from torchrl_pwm.data.collect.online import OnlineCollection
from torchrl_pwm.envs import make_gym_env
from torchrl_pwm.trainers import OnlinePWMOptimizationStepper, OnlineTDMPC2OptimizationStepper, load_checkpoint

NUM_ENVS, STEPS, WARM_UP, ITERATIONS = 3, 4, 24, 4


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Faulty-v0", Faulty, max_episode_steps=6)
    yield
    del gymnasium.registry["Faulty-v0"]


def live(env, number):
    """The Gymnasium env of that number among those side by side."""
    while hasattr(env, "base_env"):
        env = env.base_env
    return env._envs[number]._env.unwrapped


def make_pwm(folder):
    model = PWMWorldModel(2, 1, latent_dim=16, units=(16,), encoder_units=(16,))
    loss = PWMLoss(make_pwm_actor(16, 1, units=(8,)), make_value_ensemble(16, units=(8,)), model, horizon=3)
    model_loss = PWMWorldModelLoss.single_task(model)
    env = make_gym_env("Faulty-v0", NUM_ENVS)
    collector = Collector(env, WorldModelPolicy(model, loss.actor_network), frames_per_batch=NUM_ENVS * STEPS)
    replay = make_online_replay(300, slice_len=4, batch_size=4)
    options = {"model_updates": 1, "start_states": 6}
    stepper = OnlinePWMOptimizationStepper(loss, model_loss, replay, iterations=ITERATIONS, **options)
    return env, OnlinePWMTrainer(loss, model_loss, collector, replay, optimization_stepper=stepper, **common(folder))


def make_tdmpc2(folder):
    world_model = PWMWorldModel(2, 1, latent_dim=16, units=(16,), encoder_units=(16,), num_bins=11)
    model = TDMPC2Model(world_model, units=(16,), num_q=2)
    env = TransformedEnv(make_gym_env("Faulty-v0", NUM_ENVS), InitTracker())
    planner = TDMPC2Planner(model, num_samples=8, num_policy_rollouts=2, num_elites=4, iterations=1)
    collector = Collector(env, planner, frames_per_batch=NUM_ENVS * STEPS)
    replay, loss = make_online_replay(300, slice_len=3, batch_size=4), TDMPC2Loss(model)
    stepper = OnlineTDMPC2OptimizationStepper(loss, replay, iterations=ITERATIONS)
    return env, OnlineTDMPC2Trainer(loss, collector, replay, optimization_stepper=stepper, **common(folder))


def common(folder) -> dict[str, Any]:
    shown = {"progress_bar": False, "log_interval": 1}
    return {**shown, "iterations": ITERATIONS, "warmup_steps": WARM_UP, "save_folder": folder, "save_interval": 1}


def numbers_of(state):
    """All floating tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        return [state] if state.is_floating_point() else []
    parts = state.values() if hasattr(state, "values") else state if isinstance(state, (list, tuple)) else ()
    return [number for part in parts for number in numbers_of(part)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [make_pwm, make_tdmpc2])
@pytest.mark.parametrize(("entry", "value"), [("reward", np.nan), ("observation", -np.inf)])
def test_an_online_run_stops_at_the_step_and_goes_on_from_a_good_checkpoint(make, entry, value, tmp_path):
    torch.manual_seed(0)
    env, trainer = make(tmp_path)
    # 8 steps of each env in the warm-up, 4 in each iteration: step 14 is in the second.
    live(env, 1).life, live(env, 1).fault = 0, (entry, 14, value)
    message = rf"\('next', '{entry}'\) is {value:g} in env 1 at step 14, .* observations and actions: mend the env"
    if make is make_tdmpc2 and entry == "observation":  # which the planner reads before the batch is whole
        message = r"none for envs \[1\]: their observations are not finite.* in the batch after 36 steps"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    assert trainer.iteration == 2 and len(trainer.collection.replay_buffer) == NUM_ENVS * 12
    saved = load_checkpoint(tmp_path)
    assert saved["iteration"] == 1
    found = numbers_of(saved)
    assert len(found) > 20 and all(number.isfinite().all() for number in found)

    _, again = make(tmp_path)
    again.resume()
    assert again.iteration == 1
    again.train()
    assert again.iteration == ITERATIONS and len(again.collection.replay_buffer) == NUM_ENVS * (8 + 4 * STEPS)
    assert all(number.isfinite().all() for number in numbers_of(load_checkpoint(tmp_path)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_action_that_is_not_finite_is_laid_at_the_policy_s_door():
    policy = TensorDictModule(lambda observation: observation[..., :1] * torch.inf, ["observation"], ["action"])
    collector = Collector(make_gym_env("Faulty-v0", 2), policy, frames_per_batch=8)
    replay = make_online_replay(100, slice_len=2, batch_size=2)
    collection = OnlineCollection(collector, replay, ["observation", "action", ("next", "observation")])
    with pytest.raises(FloatingPointError, match=r"action is -?inf in env 0 at step 0, .*a NaN in its weights"):
        collection.collect()
    assert len(replay) == 0 and collection.env_steps == 0


def test_steps_are_not_recorded_with_a_number_that_is_not_finite():
    env = make_gym_env("Faulty-v0", 2)
    env.reset()
    live(env, 1).fault = ("reward", 3, np.inf)
    policy = TensorDictModule(lambda observation: 0 * observation[..., :1], ["observation"], ["action"])
    with pytest.raises(FloatingPointError, match=r"\('next', 'reward'\) is inf in env 1 at step 3"):
        record_steps(policy, env, 5)


@pytest.mark.parametrize("step", [2, 5])
def test_an_evaluation_stops_at_an_observation_also_at_the_last_of_an_episode(step):
    env = make_gym_env("Faulty-v0", 2)
    env.reset()
    live(env, 1).fault = ("observation", step, np.nan)
    policy = TensorDictModule(lambda observation: 0 * observation[..., :1], ["observation"], ["action"])
    with pytest.raises(ValueError, match=rf"observation.*is not finite in episode 1 at step {max(step, 3)}"):
        evaluate_policy(policy, env, episodes=2)
