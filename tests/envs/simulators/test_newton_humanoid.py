"""The humanoid: what is rewarded and observed, both sides alike, starts above the ground, gradients when it lies."""

from __future__ import annotations

import pytest
import torch

newton = pytest.importorskip("newton")

from tests.envs.simulators.playing import draw_actions, play  # noqa: E402
from torchrl_pwm.envs.simulators import NewtonEnv  # noqa: E402

WAIST, LEG, ARM = 3, 6, 3  # hinges


@pytest.mark.parametrize("height, bonus", [(1.26, 1.0), (0.9, 0.6), (0.8, -0.32)])
def test_speed_posture_height_and_small_actions_are_rewarded(height, bonus):
    task = NewtonEnv("humanoid", 1).simulator
    half = 0.5**0.5
    for turn, posture in (
        ([0, 0, 0, 1], 1.1),
        ([0, 0, half, half], 0.1),
        ([1, 0, 0, 0], 0.9),
        ([0, half, 0, half], 0.0),
    ):
        state = torch.zeros(1, 76)
        state[0, 2], state[0, 3:7], state[0, 28] = height, torch.tensor(turn), 1.5
        reward = task.reward(state, torch.full((1, 21), 0.5))
        assert reward.item() == pytest.approx(1.5 + posture + bonus - 0.002 * 21 / 4, rel=1e-4)


def test_an_observation_is_height_turn_velocities_joints_rates_posture_and_last_action():
    env = NewtonEnv("humanoid", 2, seed=1)
    actions = draw_actions(env, 3)
    _, td = play(env, env.reset(), actions)
    q, v, _ = env.simulator.split(env.simulator.state)
    parts = [q[:, 2:7], v[:, :6], q[:, 7:], 0.1 * v[:, 6:], env.simulator.attitude(q), actions[-1]]
    torch.testing.assert_close(td["observation"], torch.cat(parts, -1))


def mirror(values, base):
    """Left for right: values [.., B + 21] of the base, whose signs [B] are ``base``, and of the hinges."""
    place, waist, *limbs = values.split([len(base), WAIST, LEG, LEG, ARM, ARM], -1)
    right_leg, left_leg, right_arm, left_arm = limbs
    waist = waist * torch.tensor([-1.0, 1.0, -1.0])
    return torch.cat([place * torch.tensor(base), waist, left_leg, right_leg, left_arm, right_arm], -1)


def test_a_humanoid_and_its_mirror_image_move_alike():
    env = NewtonEnv("humanoid", 2, seed=0, early_termination=False)
    env.reset()
    signs = ([1.0, -1, 1, -1, 1, -1, 1], [1.0, -1, 1, -1, 1, -1], [])

    def pair(state):
        parts = env.simulator.split(state)
        return torch.cat([torch.cat([part, mirror(part, sign)]) for part, sign in zip(parts, signs)], -1)

    start = env.simulator.state[:1]
    env.simulator.state = pair(start)
    actions = draw_actions(env, 20)[:, :1]
    play(env, env.truncate_graph(), torch.cat([actions, mirror(actions, [])], 1))
    end = env.simulator.state
    assert (end - pair(start))[0, 7:28].abs().max() > 0.3 and end[0, 2] < start[0, 2] - 0.1
    torch.testing.assert_close(end, pair(end[:1]), atol=2e-3, rtol=1e-3)


def test_no_start_touches_the_ground():
    """Let go at rest, a humanoid accelerates as it would a metre higher."""
    env = NewtonEnv("humanoid", 256, seed=0, substeps=64)
    env.reset()
    q, v, _ = env.simulator.split(env.simulator.state)
    rest, up = torch.zeros_like(v), torch.eye(28)[2]

    def first_velocity(q):
        return env.simulator.physics.forward(q, rest, rest)[1][1].clone()

    high = first_velocity(q + up)
    torch.testing.assert_close(first_velocity(q), high)
    assert not torch.allclose(first_velocity(q - 0.2 * up), high, atol=0.01)


@pytest.mark.parametrize("effort", [0.0, 1.0])
def test_a_humanoid_without_a_policy_falls_within_a_second(effort):
    env = NewtonEnv("humanoid", 16, seed=2)
    td, steps = env.reset(), torch.zeros(16)
    for step, action in enumerate(effort * draw_actions(env, 60)):
        transition, td = env.step_and_maybe_reset(td.set("action", action))
        ended = transition["next", "terminated"].flatten() & (steps == 0)
        steps = torch.where(ended, step + 1, steps)
    assert steps.min() > 12 and steps.max() < 60


@pytest.mark.parametrize("early_termination", [True, False])
def test_gradients_stay_finite_over_320_random_steps_up_and_lying(early_termination):
    env = NewtonEnv("humanoid", 4, requires_grad=True, seed=0, early_termination=early_termination)
    td = env.reset()
    for window in range(10):
        actions = draw_actions(env, 32, seed=window).requires_grad_()
        rewards, td = play(env, env.truncate_graph(td), actions)
        (gradient,) = torch.autograd.grad(rewards.sum(), actions)
        assert gradient.isfinite().all() and gradient.any() and env.simulator.state.isfinite().all()


def test_an_exploding_env_is_named_with_its_step_or_ended_if_asked():
    for non_finite in ("raise", "terminate"):
        env = NewtonEnv("humanoid", 3, requires_grad=True, non_finite=non_finite)
        _, td = play(env, env.reset(), draw_actions(env, 2, 0.0))
        state = env.simulator.state.clone()
        state[1, 28:55] = 1e30
        env.simulator.state = state
        if non_finite == "raise":
            with pytest.raises(FloatingPointError, match=r"envs \[1\] became non-finite at step \[3\]"):
                play(env, td, draw_actions(env, 1, 0.0))
        else:
            _, td = play(env, td, draw_actions(env, 1, 0.0))
            assert env.non_finite_count == 1 and env.simulator.state.isfinite().all()
