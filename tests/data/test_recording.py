"""Recorded steps of a policy: what they hold, and the noise from env to env."""

import pytest
import torch
from tensordict.nn import TensorDictModule

from torchrl_pwm.data import NoisyPolicy, record_steps
from torchrl_pwm.envs.simulators import AnalyticEnv


def still(num_envs: int) -> TensorDictModule:
    return TensorDictModule(lambda observation: torch.zeros(num_envs, 1), ["observation"], ["action"])


def test_noise_grows_from_env_to_env_and_episodes_go_on():
    env = AnalyticEnv("cartpole_swingup", 5, seed=0, episode_length=40)
    steps = record_steps(still(5), env, 100, noise=0.8, seed=1)
    assert steps.batch_size == (5, 100) and not steps["next", "observation"].requires_grad
    largest = steps["action"].abs().amax((1, 2))
    expected = torch.linspace(0, 0.8, 5)
    assert largest[0] == 0 and (largest <= expected).all() and (largest[1:] > 0.9 * expected[1:]).all()
    done = steps["next", "done"].squeeze(-1)
    assert done[:, 39].all() and done.sum() == 10
    # A step begins where the last one ended, but for resets, and what led into a reset is kept.
    follows = (steps["observation"][:, 1:] == steps["next", "observation"][:, :-1]).all(-1)
    assert torch.equal(follows, ~done[:, :-1])


def test_the_same_seed_records_the_same_steps():
    first, second = (
        record_steps(still(3), AnalyticEnv("double_pendulum", 3, seed=4), 12, seed=2)["next", "reward"]
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_what_a_policy_remembers_stays():
    remembering = TensorDictModule(
        lambda observation, count: (torch.zeros(3, 1), count + 1), ["observation", "count"], ["action", "count"]
    )
    env, policy = AnalyticEnv("double_pendulum", 3, seed=0), NoisyPolicy(remembering, 3, 0.5)
    assert policy.in_keys == ["observation", "count"] and policy.out_keys == ["action"]
    state = env.reset().set("count", torch.zeros(3, 1))
    for _ in range(4):
        _, state = env.step_and_maybe_reset(policy(state))
    assert (state["count"] == 4).all()


@pytest.mark.parametrize(("steps", "noise"), [(0, 0.5), (4, 1.5), (4, -0.1)])
def test_what_is_out_of_range_is_refused(steps, noise):
    with pytest.raises(ValueError, match="steps must be at least 1 and noise between 0 and 1"):
        record_steps(still(2), AnalyticEnv("double_pendulum", 2), steps, noise=noise)
