"""Meta-World tasks reproduce recorded data with clean resets; the scripted experts drive them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_pwm.envs import MT80, ScriptedPolicy, make_task_env, raw_reward, restore_state

pytest.importorskip("metaworld")

_NAMES = MT80.names[30:]


@pytest.mark.parametrize("name", _NAMES)
def test_seeded_reset_and_replay_equal_recorded_data(golden, replay, name):
    record = golden("mw", name)
    env = make_task_env(name, seed=int(record["seed"]))
    np.testing.assert_allclose(env.reset()["observation"], record["obs"][0], atol=1e-5)
    # A second episode first: a clean reset must not keep any of it.
    trace = replay(env, restore_state(env, record), record["actions"])
    np.testing.assert_allclose(trace["obs"], record["obs"], atol=1e-5)
    np.testing.assert_allclose(trace["rewards"], record["rewards"], atol=1e-4)
    np.testing.assert_array_equal(trace["success"], record["success"])
    env.close()


def test_clean_reset_depends_on_the_vector_only(golden, replay):
    # dial-turn keeps its target from the draw before, unless the reset is clean: return 0.19 instead of 80.5.
    record = golden("mw", "mw-dial-turn")
    env = make_task_env("mw-dial-turn", seed=int(record["seed"]))
    trace = replay(env, env.reset(), record["actions"])
    assert trace["rewards"].sum() == pytest.approx(80.5, abs=0.1)
    assert record["seed_rewards"].sum() == pytest.approx(0.19, abs=0.01)


def test_each_episode_draws_its_own_vector_also_after_a_restored_one(golden):
    record = golden("mw", "mw-reach")
    first, second = (make_task_env("mw-reach", seed=5) for _ in range(2))
    starts = [first.reset()["observation"] for _ in range(3)]
    assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])
    assert torch.equal(second.reset()["observation"], starts[0])
    restore_state(second, record)
    assert torch.equal(second.reset()["observation"], starts[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rand_vec": None}, "needs rand_vec"),
        ({"rand_vec": np.zeros(3)}, r"must have shape \(6,\), found \(3,\)"),
        ({"rand_vec": np.full(6, 9.0)}, "must lie in"),
        ({"rand_vec": np.full(6, np.nan)}, "must lie in"),
        ({"qpos0": np.zeros(16)}, "does not reach the recorded qpos0"),
    ],
)
def test_faulty_record_is_refused_and_leaves_the_env_usable(golden, change, message):
    record = {**golden("mw", "mw-push"), **change}
    record = {key: value for key, value in record.items() if value is not None}
    env = make_task_env("mw-push")
    with pytest.raises(ValueError, match=message):
        restore_state(env, record)
    assert env.rollout(2)["next", "observation"].isfinite().all()


def test_vector_that_the_task_rejects_raises_instead_of_hanging():
    vector = np.array([0.0, 0.7, 0.02, 0.0, 0.8, 0.02])  # start and goal 0.1 m apart; the task wants more
    env = make_task_env("mw-push")
    with pytest.raises(ValueError, match="rejects rand_vec"):
        restore_state(env, {"rand_vec": vector})
    assert env.rollout(2)["next", "observation"].isfinite().all()


def test_raw_reward_is_for_dm_control():
    env = make_task_env("mw-reach")
    env.reset()
    with pytest.raises(NotImplementedError, match="mw-reach depends on the action"):
        raw_reward(env)


def test_success_is_false_after_a_reset_and_comes_from_the_last_raw_step():
    env = make_task_env("mw-reach", seed=100)
    rollout = env.rollout(100, ScriptedPolicy("mw-reach"))
    assert not rollout["success"][0]
    assert rollout["next", "success"][-1]
    assert torch.equal(rollout["success"][1:], rollout["next", "success"][:-1])


def _last_success_and_return(name: str, **kwargs) -> tuple[bool, float]:
    rollout = make_task_env(name, seed=100).rollout(100, ScriptedPolicy(name, **kwargs))
    return bool(rollout["next", "success"][-1]), rollout["next", "reward"].sum().item()


def test_hold_rule_keeps_the_success_that_the_plain_expert_loses():
    held, held_return = _last_success_and_return("mw-faucet-open")
    plain, plain_return = _last_success_and_return("mw-faucet-open", hold=False)
    assert held and not plain
    assert held_return > 1500 and plain_return > 1400


def test_held_action_is_zero_displacement_with_the_last_gripper_value():
    env, policy = make_task_env("mw-faucet-open", seed=100), ScriptedPolicy("mw-faucet-open", task_set="mt80")
    td = env.reset()
    followed = policy(td)["action"]
    held = policy(td.clone().fill_("success", True))["action"]
    assert torch.equal(held[:3], torch.zeros(3)) and held[3] == followed[3] != 0
    policy.reset()
    assert torch.equal(policy(td.clone().fill_("success", True))["action"], torch.zeros(6))
    assert torch.equal(ScriptedPolicy("mw-faucet-open", task_set="mt80", hold=False)(td)["action"], followed)


def test_scripted_action_is_clipped_padded_and_reads_the_padded_observation():
    observation = make_task_env("mw-push", seed=0).reset()["observation"]
    padded = ScriptedPolicy("mw-push", noise=5.0, seed=1, task_set="mt80")
    plain = ScriptedPolicy("mw-push", noise=5.0, seed=1)
    for _ in range(5):
        wide = padded(TensorDict({"observation": observation}))["action"]
        narrow = plain(TensorDict({"observation": observation}))["action"]
        assert wide.shape == (6,) and wide.dtype == torch.float32
        assert wide.abs().max() <= 1 and not wide[4:].any()
        assert torch.equal(wide[:4], narrow)


def _global_generators() -> tuple[list, list]:
    return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_noise_comes_from_the_policys_own_generator():
    observation = TensorDict({"observation": torch.rand(39, generator=torch.Generator().manual_seed(0))})
    by_seed = ScriptedPolicy("mw-reach", noise=0.2, seed=3)
    by_generator = ScriptedPolicy("mw-reach", noise=0.2, generator=np.random.default_rng(3))
    other = ScriptedPolicy("mw-reach", noise=0.2, seed=4)
    before = _global_generators()
    actions = [policy(observation.clone())["action"] for policy in (by_seed, by_generator, other)]
    assert torch.equal(actions[0], actions[1]) and not torch.equal(actions[0], actions[2])
    assert _global_generators() == before


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("walker-run", {}, "no scripted expert"),
        ("mw-reech", {}, "did you mean 'mw-reach'"),
        ("mw-reach", {"noise": -1.0}, "must not be negative"),
        ("mw-reach", {"task_set": "mt30"}, "in task set 'mt30'"),
    ],
)
def test_faulty_scripted_policy_is_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ScriptedPolicy(name, **kwargs)


def test_scripted_policy_refuses_a_batch():
    with pytest.raises(ValueError, match="drives one env"):
        ScriptedPolicy("mw-reach")(TensorDict({"observation": torch.zeros(2, 39)}, batch_size=[2]))
