"""TD-MPC2's planner in envs: batched, parallel, collected from and evaluated."""

from __future__ import annotations

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import InitTracker, ParallelEnv, SerialEnv, TransformedEnv

from tests.envs.drift_env import DriftEnv
from tests.modules.tdmpc2 import ACTION
from tests.planners.test_tdmpc2 import SMALL, make_planner, seen_means
from torchrl_pwm import PWMWorldModel, TDMPC2Model, TDMPC2Planner, evaluate_policy


@pytest.mark.parametrize("num_tasks", [0, 3])
def test_a_batched_env_is_planned_in_one_call_across_resets(num_tasks: int, monkeypatch) -> None:
    planner = make_planner(num_tasks)
    means = seen_means(planner, monkeypatch)
    env = TransformedEnv(DriftEnv([3], num_tasks), InitTracker())
    rollout = env.rollout(7, planner, break_when_any_done=False, auto_cast_to_device=True)
    assert rollout["action"].shape == (3, 7, ACTION) and len(means) == 7
    for step, mean in enumerate(means):
        fresh = rollout["is_init"][:, step, 0]
        assert fresh.tolist() == [step % (env + 2) == 0 for env in range(3)]
        assert (mean.abs().sum((0, 2)) == 0).tolist() == fresh.tolist()


def make_env() -> TransformedEnv:
    return TransformedEnv(DriftEnv(), InitTracker())


def test_a_collector_takes_the_planner() -> None:
    env = SerialEnv(2, make_env)
    planner = make_planner()
    collector = Collector(env, planner, frames_per_batch=6, total_frames=12)
    batches = list(collector)
    assert [batch.numel() for batch in batches] == [6, 6] and batches[0]["action"].shape == (2, 3, ACTION)
    assert ("next", "reward") in batches[0].keys(True)


def test_parallel_envs_are_planned_together() -> None:
    env = ParallelEnv(2, make_env)
    try:
        assert env.rollout(3, make_planner(), break_when_any_done=False)["action"].shape == (2, 3, ACTION)
    finally:
        env.close()


def test_evaluation_adds_the_beginnings_of_episodes() -> None:
    planner = make_planner()
    result = evaluate_policy(planner, DriftEnv([2]), episodes=4, seed=1)
    assert result.episodes == 4 and sorted(result.lengths.tolist()) == [2, 2, 3, 3]
    again = TDMPC2Planner(planner.model, **SMALL)
    state = torch.get_rng_state()
    first = evaluate_policy(again, DriftEnv([2]), episodes=4, seed=1)
    torch.set_rng_state(state)
    again.reset()
    second = evaluate_policy(again, DriftEnv([2]), episodes=4, seed=1)
    assert first.returns.tolist() == second.returns.tolist()


def test_a_task_of_dm_control_is_planned() -> None:
    pytest.importorskip("dm_control")
    from torchrl_pwm import MT30, make_task_env

    world_model = PWMWorldModel(
        24, 6, latent_dim=16, encoder_units=(16,), units=(16, 16), num_bins=11, num_tasks=30, task_dim=4,
        action_dims=MT30.action_dims,
    )  # fmt: skip
    planner = TDMPC2Planner(TDMPC2Model(world_model), **SMALL)
    env = TransformedEnv(make_task_env("cup-catch", task_set="mt30"), InitTracker())
    rollout = env.rollout(4, planner)
    assert rollout["action"].shape == (4, 6)
    assert (rollout["action"][:, 2:] == 0).all() and rollout["action"][:, :2].all()
