"""Gymnasium tasks as PWM reads them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("gymnasium")

import gymnasium
from torchrl.envs.utils import check_env_specs

from torchrl_pwm import make_gym_env
from torchrl_pwm.envs.gymnasium_env import is_gym_task, time_limit


def test_specs_hold_and_actions_are_in_the_unit_box():
    env = make_gym_env("Pendulum-v1", 3)
    check_env_specs(env)
    assert (
        env.batch_size == (3,) and (env.action_spec.space.low == -1).all() and (env.action_spec.space.high == 1).all()
    )
    rollout = env.rollout(5)
    assert rollout["observation"].dtype == torch.float32 and rollout["next", "reward"].shape == (3, 5, 1)


def test_the_unit_action_is_scaled_to_the_tasks_own():
    env = make_gym_env("Pendulum-v1", 1, seed=3)
    state = env.reset()
    angle = torch.atan2(state["observation"][0, 1], state["observation"][0, 0])
    rate = state["observation"][0, 2]
    torque = 2.0
    expected = -(angle.square() + 0.1 * rate.square() + 0.001 * torque**2)
    result = env.step(state.set("action", torch.ones(1, 1)))["next", "reward"]
    torch.testing.assert_close(result[0, 0], expected, rtol=1e-4, atol=1e-4)


def test_seeds_repeat_and_envs_differ():
    first, second, other = (make_gym_env("Pendulum-v1", 2, seed=seed).reset()["observation"] for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other) and not torch.equal(first[0], first[1])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="needs continuous actions; those of CartPole-v1 are discrete"):
        make_gym_env("CartPole-v1")
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        make_gym_env("Pendulum-v1", 0)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("MountainCarContinous-v0", {}, r"Did you mean: `MountainCarContinuous`.*a task that Gymnasium knows"),
        ("Pendulum-v9", {}, r"versioned environments: \[ `v1` \].*found 'Pendulum-v9'"),
        ("LunarLander-v2", {}, "use `LunarLander-v3` instead"),
        ("nowhere/Pong-v5", {}, "Namespace nowhere not found"),
        ("Pendulum-v1", {"weight": 3}, "Pendulum-v1 was given weight, which it may not take: .*'weight'"),
        ("Pendulum-v9", {"max_episode_steps": 5}, "found 'Pendulum-v9'"),
    ],
)
def test_what_gymnasium_cannot_make_is_said_of_the_task(task, options, message):
    with pytest.raises(ValueError, match=message):
        make_gym_env(task, **options)


def test_a_simulator_that_is_missing_is_said_of_the_task():
    def missing(**options):
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")

    gymnasium.register("Missing-v0", missing, max_episode_steps=5)
    try:
        with pytest.raises(ImportError, match="Missing-v0 needs a package: Box2D is not installed"):
            make_gym_env("Missing-v0")
    finally:
        del gymnasium.registry["Missing-v0"]


def test_a_task_of_ones_own_is_found_by_the_module_that_registers_it():
    task = "tests.envs.short_pendulum:ShortPendulum-v0"
    env = make_gym_env(task, 2)
    assert env.rollout(100)["next", "truncated"].sum(1).flatten().tolist() == [1, 1] and time_limit(env) == 40
    assert is_gym_task(task) and not is_gym_task("tests.envs.short_pendulum:Other-v0")
    assert not is_gym_task("no_such_module:ShortPendulum-v0")
    with pytest.raises(ModuleNotFoundError, match=r"'no_such_module'.*registers ShortPendulum-v0 before the colon"):
        make_gym_env("no_such_module:ShortPendulum-v0")
