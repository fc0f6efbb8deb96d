"""Rollouts of whole episodes: what counts, with which policy, env and seed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import RewardScaling, SerialEnv, TransformedEnv

from torchrl_pwm import MT80, PWMWorldModel, WorldModelWrapper, evaluate_policy, make_pwm_actor, make_task_env
from torchrl_pwm.envs.simulators import AnalyticEnv

from .counting_env import CountingEnv


def constant(value: float = 0.0):
    def act(td):
        return td.set("action", torch.full((*td.batch_size, 1), value))

    return act


def test_return_is_the_undiscounted_sum_of_rewards():
    result = evaluate_policy(constant(0.5), CountingEnv(7), episodes=3)
    assert result.returns.tolist() == [7 * 1.5] * 3
    assert result.lengths.tolist() == [7] * 3
    assert (result.return_mean, result.return_std, result.episodes) == (10.5, 0.0, 3)


def test_episodes_of_a_training_env_that_begins_them_apart_are_whole():
    env = AnalyticEnv("synthetic", 3, observation_size=3, action_size=1, episode_length=30, stagger=True)
    assert evaluate_policy(constant(), env, episodes=3).lengths.tolist() == [env.episode_length] * 3
    assert env.stagger


def test_std_is_over_episodes():
    def act(td):  # the reward of an episode is 1 + its number
        return td.set("action", td["observation"][..., 1:2] * 1.0)

    result = evaluate_policy(act, CountingEnv(1), episodes=2)
    assert result.returns.tolist() == [1.0, 2.0]
    assert result.return_mean == 1.5 and result.return_std == 0.5


def test_envs_of_a_batch_contribute_equally_whatever_the_length_of_their_episodes():
    result = evaluate_policy(constant(), CountingEnv([2, 10]), episodes=4)
    assert result.lengths.tolist() == [2, 10, 2, 10]
    assert result.returns.tolist() == [2.0, 10.0, 2.0, 10.0]


@pytest.mark.parametrize("episodes, expected", [(1, [3]), (2, [3, 4]), (5, [3, 4, 5, 3, 4])])
def test_episodes_that_envs_do_not_divide_are_shared_out_in_order(episodes, expected):
    result = evaluate_policy(constant(), CountingEnv([3, 4, 5]), episodes=episodes)
    assert result.lengths.tolist() == expected


def test_batch_of_two_dimensions_counts_all_its_envs():
    env = SerialEnv(2, [lambda: CountingEnv([2, 3]), lambda: CountingEnv([4, 5])])
    result = evaluate_policy(constant(), env, episodes=4)
    assert result.lengths.tolist() == [2, 3, 4, 5]
    env.close()


def test_policy_acts_deterministically_without_gradient_and_in_eval_mode():
    actor = make_pwm_actor(3, 1, in_key="observation")
    seen = []

    actor.register_forward_hook(
        lambda module, args, out: seen.append(
            (out["action"].clone(), torch.tanh(out["loc"]), torch.is_grad_enabled(), module.training)
        )
    )
    actor.train()
    evaluate_policy(actor, CountingEnv(4), episodes=2)
    assert len(seen) == 8
    for action, mean, grad, training in seen:
        torch.testing.assert_close(action, mean)
        assert not grad and not training


@pytest.mark.parametrize("fail", [False, True])
def test_training_flag_of_each_submodule_is_put_back_even_after_an_error(fail):
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 1))
    policy = TensorDictModule(net, ["observation"], ["action"])
    policy.train()
    net[1].eval()
    faults = {"reward": (0, 0, 1)} if fail else None
    env = CountingEnv(4, faults=faults)
    if fail:
        with pytest.raises(ValueError, match="not finite"):
            evaluate_policy(policy, env, episodes=1)
    else:
        evaluate_policy(policy, env, episodes=1)
    assert policy.training and net.training and net[0].training and not net[1].training


def test_global_generator_is_left_alone_by_an_env_that_seeds_and_draws_from_it():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    first = evaluate_policy(constant(), CountingEnv(4, draw=True), episodes=2, seed=11)
    assert torch.equal(torch.rand(4), expected)
    again = evaluate_policy(constant(), CountingEnv(4, draw=True), episodes=2, seed=11)
    assert np.array_equal(first.returns, again.returns)


def test_env_is_started_with_the_seed():
    env = CountingEnv(2)
    evaluate_policy(constant(), env, episodes=1, seed=17)
    assert env.seed_used == 17


@pytest.mark.parametrize("key", ["reward", "observation"])
def test_value_that_is_not_finite_is_named_with_task_episode_and_step(key):
    env = CountingEnv([5, 5], faults={key: (1, 1, 3)})
    with pytest.raises(ValueError, match=rf"{key}.*of toy .*episode 3 at step 3"):
        evaluate_policy(constant(), env, episodes=4, task="toy")


def test_action_that_is_not_finite_is_named_with_task_episode_and_step():
    def act(td):
        bad = td["observation"][..., :1] == 2
        return td.set("action", torch.where(bad, float("nan"), 0.0))

    with pytest.raises(ValueError, match=r"action.*of CountingEnv .*episode 0 at step 2"):
        evaluate_policy(act, CountingEnv(5), episodes=1)


def test_what_an_env_does_after_its_last_episode_is_not_looked_at():
    env = CountingEnv([1, 6], faults={"reward": (0, 1, 0)})
    assert evaluate_policy(constant(), env, episodes=2).lengths.tolist() == [1, 6]


def test_success_is_that_of_the_last_step():
    assert evaluate_policy(constant(), CountingEnv(4, success=True), episodes=2).success == 1.0
    assert evaluate_policy(constant(), CountingEnv(5, success=True), episodes=2).success == 0.0
    assert evaluate_policy(constant(), CountingEnv([4, 5], success=True), episodes=2).success == 0.5
    assert evaluate_policy(constant(), CountingEnv(5), episodes=2).success is None


def test_task_name_brings_the_score_of_its_table():
    dm = evaluate_policy(constant(), CountingEnv(4), episodes=2, task="walker-run")
    assert dm.task == "walker-run" and dm.score == pytest.approx(0.004)
    mw = evaluate_policy(constant(), CountingEnv([4, 5], success=True), episodes=2, task="mw-reach")
    assert mw.score == mw.success == 0.5
    unknown = evaluate_policy(constant(), CountingEnv(4), episodes=2)
    assert unknown.task == "CountingEnv" and unknown.score is None


def test_result_reads_as_a_mapping_and_makes_a_summary_row():
    result = evaluate_policy(constant(), CountingEnv(4), episodes=2, seed=3, task="walker-run")
    assert dict(result) == {
        "task": "walker-run", "return_mean": 4.0, "return_std": 0.0, "success": None, "score": 0.004,
        "episodes": 2, "seed": 3,
    }  # fmt: skip
    row = result.summary_row(behavior_return_mean=2.0, seconds_extraction=1.5)
    assert row["behavior_return_mean"] == 2.0 and row["seconds_extraction"] == 1.5 and row["episodes"] == 2
    with pytest.raises(KeyError):
        result["returns_mean"]


def test_recorded_frames_run_from_the_reset_to_the_last_state():
    result = evaluate_policy(constant(), CountingEnv([3, 5], pixels=True), episodes=4, record=3)
    assert [frames.shape for frames in result.frames] == [(4, 4, 6, 3), (6, 4, 6, 3), (4, 4, 6, 3)]
    assert [frames[:, 0, 0, 0].tolist() for frames in result.frames] == [[*range(4)], [*range(6)], [*range(4)]]


def test_only_the_frames_of_chosen_steps_are_kept():
    result = evaluate_policy(constant(), CountingEnv([3, 5], pixels=True), episodes=4, record=3, record_steps=[0, 2, 5])
    assert [frames[:, 0, 0, 0].tolist() for frames in result.frames] == [[0, 2], [0, 2, 5], [0, 2]]


def test_recording_an_env_without_pixels_says_what_to_do():
    with pytest.raises(ValueError, match="from_pixels=True"):
        evaluate_policy(constant(), CountingEnv(3), episodes=1, record=1)


def test_episode_without_end_is_an_error():
    with pytest.raises(RuntimeError, match=r"has not ended after 20 steps.*StepCounter"):
        evaluate_policy(constant(), CountingEnv(10**9), episodes=1, max_steps=20)


def test_policy_that_reads_a_latent_needs_a_world_model():
    with pytest.raises(ValueError, match=r"reads \['latent'\].*pass world_model="):
        evaluate_policy(make_pwm_actor(16, 1), CountingEnv(3), episodes=1)


def test_world_model_is_wrapped_around_the_env_without_changing_it():
    model = PWMWorldModel(3, 1, latent_dim=16, units=(16,), encoder_units=(16,))
    actor = make_pwm_actor(16, 1)
    base = CountingEnv(3)
    env = TransformedEnv(base, RewardScaling(0.0, 2.0))
    result = evaluate_policy(actor, env, episodes=2, world_model=model)
    wrapped = TransformedEnv(CountingEnv(3), WorldModelWrapper(model))
    assert result.returns == pytest.approx(2 * evaluate_policy(actor, wrapped, episodes=2).returns)
    assert env.reset().get("latent", None) is None
    assert env.rollout(2)["next", "reward"].shape == (2, 1)
    assert not base.closed


@pytest.mark.parametrize("name", ["episodes", "num_envs", "max_steps"])
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        evaluate_policy(constant(), CountingEnv(3), **{name: 0})


def test_unknown_task_is_refused_with_near_names():
    with pytest.raises(ValueError, match="walker-run"):
        evaluate_policy(constant(), "walker-runn")


def make_policy(task_set: str = "mt80"):
    torch.manual_seed(3)
    model = PWMWorldModel(39, 6, latent_dim=16, units=(16,), encoder_units=(16,), num_tasks=80, task_dim=8)
    return model, make_pwm_actor(16, 6, units=(16,))


def test_real_tasks_are_evaluated_by_name_with_one_policy():
    model, actor = make_policy()
    tasks = ["pendulum-swingup", "mw-reach"]
    results = evaluate_policy(actor, tasks, episodes=1, seed=4, task_set="mt80", world_model=model)
    assert list(results) == tasks
    dm, mw = results.values()
    assert dm.lengths.tolist() == [500] and dm.success is None and dm.score == dm.return_mean / 1000
    assert mw.lengths.tolist() == [100] and mw.score == mw.success
    assert mw.return_mean > 0


def test_task_name_and_env_of_the_task_give_the_same_episodes(device):
    model, actor = (network.to(device) for network in make_policy())
    by_name = evaluate_policy(actor, "mw-reach", episodes=2, seed=4, task_set="mt80", world_model=model)
    env = make_task_env("mw-reach", task_set="mt80", seed=99, device=device)
    by_env = evaluate_policy(actor, env, episodes=2, seed=4, world_model=model)
    other = evaluate_policy(actor, env, episodes=2, seed=5, world_model=model)
    env.close()
    assert by_env.task == "mw-reach" and np.array_equal(by_name.returns, by_env.returns)
    assert by_env.score == by_env.success is not None
    assert not np.array_equal(by_name.returns, other.returns)
    assert by_name.returns[0] != by_name.returns[1]


def test_copies_side_by_side_are_seeded_apart_and_repeat():
    model, actor = make_policy()
    options = {"episodes": 3, "seed": 4, "task_set": "mt80", "world_model": model, "num_envs": 2}
    first, again = (evaluate_policy(actor, "mw-reach", **options) for _ in range(2))
    assert np.array_equal(first.returns, again.returns)
    assert len(set(first.returns)) == 3
    assert first.lengths.tolist() == [100] * 3


def test_mapping_of_policies_gives_each_task_its_own():
    policies = {
        name: lambda td, n=MT80[name].action_dim: td.set("action", torch.zeros(n)) for name in ("mw-reach", "mw-push")
    }
    results = evaluate_policy(policies, list(policies), episodes=1)
    assert set(results) == set(policies)
    with pytest.raises(ValueError, match=r"no policy for task 'mw-sweep': the mapping has \['mw-push', 'mw-reach'\]"):
        evaluate_policy(policies, ["mw-sweep"], episodes=1)


def test_copies_in_processes_of_their_own_give_the_same_episodes_as_copies_in_this_one():
    policy = TensorDictModule(nn.Linear(5, 1), ["observation"], ["action"])
    options = {"episodes": 2, "seed": 1, "num_envs": 2}
    here, apart = (
        evaluate_policy(policy, "cartpole-balance", parallel=parallel, **options) for parallel in (False, True)
    )
    assert np.array_equal(here.returns, apart.returns)
    assert here.returns[0] != here.returns[1]


@pytest.mark.parametrize("episodes", [1.5, 2.0])
def test_a_part_of_an_episode_is_refused(episodes):
    policy = TensorDictModule(lambda observation: 0 * observation[..., :1], ["observation"], ["action"])
    with pytest.raises(ValueError, match=f"episodes must be a whole number, found {episodes}"):
        evaluate_policy(policy, "Pendulum-v1", episodes=episodes)
