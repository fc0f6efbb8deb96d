"""PWM from an env's own steps: what is collected, learned, saved and refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.data import ReplayBuffer, TensorStorage

from torchrl_pwm import (
    OnlinePWMTrainer,
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    WorldModelPolicy,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.data import ParallelSliceSampler, make_online_replay
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.trainers import OnlinePWMOptimizationStepper

NUM_ENVS, STEPS = 4, 5


def make_env(num_envs=NUM_ENVS, seed=0):
    return AnalyticEnv("cartpole_swingup", num_envs, seed=seed, episode_length=7)


def make_parts(seed=0, **model_options):
    torch.manual_seed(seed)
    model = PWMWorldModel(5, 1, latent_dim=16, units=(16, 16), encoder_units=(16,), **model_options)
    loss = PWMLoss(make_pwm_actor(16, 1, units=(8,)), make_value_ensemble(16, units=(8,)), model, horizon=3)
    return model, loss, PWMWorldModelLoss.single_task(model)


def make_trainer(collector=None, *, stepper=None, seed=0, iterations=4, num_tasks=0, task_dim=0, **options):
    model, loss, model_loss = make_parts(seed, normalize_rewards=True, num_tasks=num_tasks, task_dim=task_dim)
    if collector is None:
        policy = WorldModelPolicy(model, loss.actor_network, task=0 if num_tasks else None)
        collector = Collector(make_env(), policy, frames_per_batch=NUM_ENVS * STEPS)
    replay = make_online_replay(200, slice_len=4, batch_size=6)
    stepper = OnlinePWMOptimizationStepper(
        loss, model_loss, replay, iterations=iterations, **{"model_updates": 2, "start_states": 9, **(stepper or {})}
    )
    options = {"progress_bar": False, "log_interval": 1, **options}
    return OnlinePWMTrainer(
        loss, model_loss, collector, replay, iterations=iterations, optimization_stepper=stepper, **options
    )


def weights(trainer):
    found = {**trainer.loss_module.state_dict(), **trainer.world_model.state_dict()}
    return {key: value.clone() for key, value in found.items()}


def test_steps_are_counted_and_kept_and_both_networks_learn():
    trainer = make_trainer(warmup_steps=30, warmup_updates=3)
    before = weights(trainer)
    trainer.train()
    # 40 steps of warm-up: two batches of 20; then one batch an iteration.
    assert trainer.env_steps == 40 + 4 * 20
    replay = trainer.collection.replay_buffer
    assert len(replay) == 120
    kept = replay[:]
    assert set(kept.keys(True, True)) == {
        "observation",
        "action",
        *(("next", key) for key in ("observation", "reward", "done", "terminated")),
    }
    assert kept.shape == (NUM_ENVS, 30) and (kept["next", "done"][:, 6::7]).all()
    assert kept["next", "done"].sum() == NUM_ENVS * (30 // 7)
    after = weights(trainer)
    assert all((before[key] != after[key]).any() for key in before if "weight" in key and "embed" not in key)
    moments = trainer.world_model.reward_moments
    assert moments.count > 100 and (moments.mean < 0)
    assert trainer.optimization_stepper.policy_stepper.schedulers[0].last_epoch == 4
    assert trainer.optimization_stepper.model_stepper.scheduler.last_epoch == 3 + 4 * 2


def test_a_seed_repeats():
    first, second = (make_trainer(warmup_steps=20) for _ in range(2))
    for trainer in (first, second):
        torch.manual_seed(11)
        trainer.train()
    second_weights = weights(second)
    for key, value in weights(first).items():
        assert torch.equal(value, second_weights[key]), key


def test_observation_statistics_come_from_the_warm_up():
    trainer = make_trainer(warmup_steps=200, normalize_observations=True)
    trainer.warm_up()
    model = trainer.world_model
    seen = trainer.collection.replay_buffer[:]["observation"].reshape(-1, 5)
    # Of many draws of these steps.
    torch.testing.assert_close(model.observation_mean, seen.mean(0, keepdim=True), rtol=0.15, atol=0.15)
    torch.testing.assert_close(model.observation_std, seen.std(0, keepdim=True), rtol=0.15, atol=0.05)


def test_observation_statistics_are_those_of_each_task():
    trainer = make_trainer(normalize_observations=True, num_tasks=3, task_dim=4)
    task = torch.arange(40).remainder(2)[:, None].expand(40, 4)
    data = TensorDict({"observation": torch.randn(40, 4, 5) + task[..., None] * 100, "task": task}, [40, 4])
    trainer.set_statistics(ReplayBuffer(storage=TensorStorage(data), batch_size=24))
    mean = trainer.world_model.observation_mean
    torch.testing.assert_close(mean, torch.tensor([0.0, 100.0, 0.0])[:, None].expand(3, 5), rtol=0.01, atol=0.3)
    torch.testing.assert_close(trainer.world_model.observation_std, torch.ones(3, 5), rtol=0.3, atol=0.3)


def test_reward_and_ends_may_have_names_of_their_own():
    trainer = make_trainer()
    trainer.model_loss.set_keys(reward="gain", terminated="over")
    steps = TensorDict({"next": {"gain": torch.ones(4, 1)}}, [4])
    logged = {}
    trainer.log = logged.update
    trainer.log_steps(steps, {})
    assert logged["collected_reward"] == 1.0


def test_observation_statistics_come_from_the_data_set_where_there_is_one():
    trainer = make_trainer(normalize_observations=True)
    data = make_env().rollout(20, break_when_any_done=False).transpose(0, 1).contiguous()
    data["observation"] += 100
    replay = ReplayBuffer(storage=TensorStorage(data, ndim=2), sampler=ParallelSliceSampler(4), batch_size=24)
    trainer.pretrain(replay, 1)
    found = trainer.world_model.observation_mean.clone()
    trainer.warm_up()
    assert (found > 90).all() and torch.equal(found, trainer.world_model.observation_mean)


def test_start_states_are_partly_the_newest():
    trainer = make_trainer(stepper={"start_states": 8, "recent_share": 0.25})
    trainer.warm_up()
    recent = trainer.collection.collect()
    recent = recent.clone().set("observation", torch.full_like(recent["observation"], 99.0))
    starts = trainer.optimization_stepper.draw_starts(recent)
    assert starts.shape == (8,) and (starts["observation"] == 99.0).all(-1).tolist() == [True] * 2 + [False] * 6


def test_pretraining_reads_the_data_set_and_leaves_the_policy_alone():
    trainer = make_trainer()
    data = make_env().rollout(20, break_when_any_done=False).transpose(0, 1)
    replay = ReplayBuffer(
        storage=TensorStorage(data.contiguous(), ndim=2), sampler=ParallelSliceSampler(4), batch_size=24
    )
    before = weights(trainer)
    trainer.pretrain(replay, 3)
    after = weights(trainer)
    changed = {key for key in before if (before[key] != after[key]).any()}
    assert any(key.startswith("_dynamics") for key in changed) and not any("network" in key for key in changed)
    assert trainer.env_steps == 0 and trainer.optimization_stepper.replay_buffer is trainer.collection.replay_buffer


def test_a_checkpoint_brings_back_all_but_the_envs(tmp_path):
    options = {"save_folder": tmp_path, "save_interval": 1, "warmup_steps": 20, "iterations": 4}
    first = make_trainer(**options)
    first.iterations = 2
    first.train()
    resumed = make_trainer(seed=5, **options)
    resumed.resume()
    for key, value in weights(first).items():
        assert torch.equal(value, weights(resumed)[key]), key
    assert resumed.env_steps == first.env_steps == 60 and resumed.iteration == 2
    state = torch.get_rng_state()
    expected = first.optimization_stepper.update(first.collection.replay_buffer[:])
    torch.set_rng_state(state)
    found = resumed.optimization_stepper.update(resumed.collection.replay_buffer[:])
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    resumed.train()
    assert resumed.env_steps == 100


def test_processes_act_with_the_weights_of_the_trainer():
    model, loss, model_loss = make_parts()
    make = [partial(make_env, 2, seed) for seed in range(2)]
    policy = WorldModelPolicy(model, loss.actor_network)
    collector = MultiSyncCollector(make, policy, frames_per_batch=NUM_ENVS * STEPS, cat_results=0)
    replay = make_online_replay(200, slice_len=4, batch_size=6)
    trainer = OnlinePWMTrainer(loss, model_loss, collector, replay, iterations=2, progress_bar=False)
    try:
        first = trainer.collection.collect()
        assert first.shape == (NUM_ENVS, STEPS) and first["action"].abs().max() < 0.99
        head = loss.actor_network.get_submodule("module.0.module").mu_net[-1]
        with torch.no_grad():
            head.bias.fill_(20.0)
        # The workers may have begun the next batch already.
        found = [trainer.collection.collect() for _ in range(3)][-1]
        assert (found["action"] > 0.99).all()
        # Each env goes on where it was.
        kept = replay[:]
        going_on = ~kept["next", "done"][:, :-1, 0]
        assert kept.shape == (NUM_ENVS, 4 * STEPS) and going_on.any()
        assert torch.equal(kept["observation"][:, 1:][going_on], kept["next", "observation"][:, :-1][going_on])
    finally:
        collector.shutdown()


def test_collectors_that_do_not_fit_are_refused():
    model, loss, _ = make_parts()
    policy = WorldModelPolicy(model, loss.actor_network)
    with pytest.raises(ValueError, match="build it with total_frames=-1"):
        make_trainer(Collector(make_env(), policy, frames_per_batch=20, total_frames=40)).train()
    with pytest.raises(ValueError, match="split_trajs=False"):
        make_trainer(Collector(make_env(), policy, frames_per_batch=20, split_trajs=True)).train()
    collector = MultiAsyncCollector([make_env], policy, frames_per_batch=20)
    try:
        with pytest.raises(ValueError, match="found MultiAsyncCollector"):
            make_trainer(collector)
    finally:
        collector.shutdown()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy_updates": 0}, "policy_updates must be a whole number of at least 1"),
        ({"start_states": 0}, "start_states must be a whole number of at least 1"),
        ({"model_updates": -1}, "model_updates must be a whole number of at least 0"),
        ({"recent_share": 1.5}, "recent_share must be a number of at least 0 and at most 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(stepper=options)


def test_two_world_models_are_refused():
    _, loss, _ = make_parts()
    _, _, other = make_parts()
    with pytest.raises(ValueError, match="must share one world model"):
        OnlinePWMOptimizationStepper(loss, other, make_online_replay(100))


def test_critics_learn_from_the_newest_steps_too():
    trainer = make_trainer(stepper={"critic_sequences": 3})
    stepper, seen = trainer.optimization_stepper, []
    draw, update = stepper.draw_sequences, stepper.policy_stepper.update

    def kept(recent):
        seen.append([recent, draw(recent)])
        return seen[-1][1]

    def updated(batch, noise=None, recorded=None):
        seen[-1].append(recorded)
        return update(batch, noise, recorded)

    stepper.draw_sequences, stepper.policy_stepper.update = kept, updated
    trainer.train()
    assert len(seen) == 4
    for recent, drawn, used in seen:
        assert used is drawn and drawn.shape == (3, STEPS)
        assert all((row == recent["observation"]).flatten(1).all(1).any() for row in drawn["observation"])


def test_steps_without_their_order_are_refused_for_critics():
    trainer = make_trainer(stepper={"critic_sequences": 3})
    recent = trainer.collection.collect()
    with pytest.raises(ValueError, match=r"as sequences \[N, T\], found a batch \[20\].*leave it at 0"):
        trainer.optimization_stepper.update_policy(recent.reshape(-1))
