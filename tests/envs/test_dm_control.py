"""DMControl tasks reproduce recorded data, by seed, by state and at static states."""

from __future__ import annotations

import numpy as np
import pytest

from torchrl_pwm.envs import MT30, make_task_env, raw_reward, restore_state

pytest.importorskip("dm_control")


@pytest.mark.parametrize("name", MT30.names)
def test_replay_by_seed_equals_recorded_data(golden, replay, name):
    record = golden("dmc", name)
    env = make_task_env(name, seed=int(record["seed"]))
    trace = replay(env, env.reset(), record["actions"])
    np.testing.assert_allclose(trace["obs"], record["obs"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(trace["rewards"], record["rewards"], atol=1e-5)
    np.testing.assert_allclose(env.reset()["observation"], record["obs_second_reset"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MT30.names)
def test_replay_by_state_and_static_states_equal_recorded_data(golden, replay, name):
    record = golden("dmc", name)
    env = make_task_env(name, seed=int(record["seed"]) + 1)
    trace = replay(env, restore_state(env, record), record["actions"])
    np.testing.assert_allclose(trace["obs"], record["obs"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(trace["rewards"], record["rewards"], atol=1e-5)
    for qpos, qvel, observation, reward in zip(
        record["probe_qpos"], record["probe_qvel"], record["probe_obs"], record["probe_rewards"]
    ):
        td = restore_state(env, {**record, "qpos0": qpos, "qvel0": qvel})
        np.testing.assert_allclose(td["observation"], observation, atol=1e-5, rtol=1e-5)
        assert raw_reward(env) == pytest.approx(float(reward), abs=1e-5)


def test_static_states_spread_over_the_rewards_of_every_task(golden):
    for name in MT30.names:
        rewards = golden("dmc", name)["probe_rewards"]
        assert np.ptp(rewards) > 0.2, name


def test_restored_state_does_not_advance_the_generator(golden):
    record = golden("dmc", "reacher-easy")
    plain, restored = (make_task_env("reacher-easy", seed=4) for _ in range(2))
    restore_state(restored, record)
    np.testing.assert_array_equal(plain.reset()["observation"], restored.reset()["observation"])


def test_partial_record_keeps_the_target_of_the_episode():
    env = make_task_env("reacher-hard", seed=4)
    first = env.reset()["observation"]
    again = restore_state(env, {"qpos0": [0.0, 0.0], "qvel0": [0.0, 0.0]})["observation"]
    straight_finger = np.array([0.24, 0.0])
    target = again[2:4].numpy() + straight_finger
    # The distance of the target from the root is drawn from [0.05, 0.2]; the joints moved, the target did not.
    assert 0.05 <= np.linalg.norm(target) <= 0.2 + 1e-6
    assert not np.allclose(first[2:4], again[2:4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qpos0": None}, "qpos0 is missing"),
        ({"qpos0": np.zeros(3)}, r"qpos0 .* must have shape \(2,\), found \(3,\)"),
        ({"qvel0": np.array([0.0, np.nan])}, "qvel0 .* must be finite"),
        ({"geom_pos_target": np.zeros(2)}, r"geom_pos_target .* must have shape \(3,\)"),
    ],
)
def test_faulty_record_is_refused_and_leaves_the_env_usable(golden, change, message):
    record = {**golden("dmc", "reacher-easy"), **change}
    record = {key: value for key, value in record.items() if value is not None}
    env = make_task_env("reacher-easy")
    with pytest.raises(ValueError, match=message):
        restore_state(env, record)
    assert env.reset()["observation"].isfinite().all()


def test_spinning_cup_begins_with_the_ball_in_the_cup_in_nine_of_ten_episodes():
    env = make_task_env("cup-spin", seed=0)
    inside = []
    for _ in range(100):
        ball_x, ball_z = env.reset()["observation"][2:4].tolist()
        # The cup hangs at height 0.6 with its centre 0.05 lower; the ball's own origin is at height 0.2.
        inside.append(abs(ball_x) < 0.025 and abs(0.55 - (ball_z + 0.2)) < 0.025)
    assert 80 <= sum(inside) < 100


@pytest.mark.parametrize("name", ["walker-walk", "cup-spin", "reacher-three-hard"])
def test_reward_of_a_step_is_at_most_two_and_never_negative(name):
    rewards = make_task_env(name, seed=2).rollout(50)["next", "reward"]
    assert (rewards >= 0).all() and (rewards <= 2).all()
