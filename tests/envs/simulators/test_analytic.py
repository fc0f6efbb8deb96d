"""The analytic tasks: physics, gradients, and the numbers of their tables."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl.envs import check_env_specs

from torchrl_pwm.envs.simulators import AnalyticEnv, SwingUpController
from torchrl_pwm.envs.simulators.pendulums import CartPoleSwingUp, DoublePendulum
from torchrl_pwm.envs.simulators.synthetic import Synthetic

MECHANISMS = [CartPoleSwingUp, DoublePendulum]
SIZES = {"double_pendulum": (6, 1), "cartpole_swingup": (5, 1), "synthetic": (53, 152)}
SMALL = {"double_pendulum": {}, "cartpole_swingup": {}, "synthetic": {"observation_size": 3, "action_size": 2}}


def everyone(simulator):
    return torch.ones(simulator.num_envs, dtype=torch.bool)


@pytest.mark.parametrize("task", AnalyticEnv.available_envs)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_specs_hold(task, dtype, device):
    env = AnalyticEnv(task, 3, dtype=dtype, requires_grad=True, device=device)
    check_env_specs(env)
    assert (env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]) == SIZES[task]
    assert env.episode_length == 240 and env.task == task


def test_an_env_says_what_it_is():
    assert repr(AnalyticEnv("double_pendulum", 3)) == "AnalyticEnv('double_pendulum', num_envs=3, device=cpu)"


@pytest.mark.parametrize("task", AnalyticEnv.available_envs)
def test_gradients_of_16_steps_agree_with_finite_differences(task):
    options = SMALL[task]

    def rollout(actions):
        env = AnalyticEnv(task, 2, dtype=torch.float64, requires_grad=True, seed=4, **options)
        td, rewards = env.reset(), []
        for action in actions.unbind(0):
            transition, td = env.step_and_maybe_reset(td.set("action", action))
            rewards.append(transition["next", "reward"])
        return torch.stack(rewards).sum(0), transition["next", "observation"]

    generator = torch.Generator().manual_seed(0)
    size = options.get("action_size", 1)
    actions = 1.6 * torch.rand(16, 2, size, generator=generator, dtype=torch.float64) - 0.8
    assert torch.autograd.gradcheck(rollout, actions.requires_grad_(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", MECHANISMS)
def test_energy_is_conserved_without_force(kind):
    simulator = kind(32, dtype=torch.float64, seed=2)
    simulator.reset(everyone(simulator))
    start = simulator.energy(simulator.state)
    scale = simulator.energy(simulator.state.new_zeros(1, 4)).abs()
    for _ in range(240):
        simulator.step(torch.zeros(32, 1, dtype=torch.float64))
    assert simulator.state[:, 2:].abs().max() > 2
    assert (simulator.energy(simulator.state) - start).abs().max() < 1e-3 * scale


@pytest.mark.parametrize("kind", MECHANISMS)
def test_work_of_the_motor_is_the_change_of_energy(kind):
    """d energy = force * d position of the driven joint: the motor acts on the right joint, with the right sign."""
    simulator = kind(32, dtype=torch.float64, seed=2, substeps=20)
    simulator.reset(everyone(simulator))
    before = simulator.state
    driven, force = (0, simulator.max_force) if kind is CartPoleSwingUp else (1, simulator.max_torque)
    simulator.step(torch.full((32, 1), 0.5, dtype=torch.float64))
    work = 0.5 * force * (simulator.state - before)[:, driven]
    change = simulator.energy(simulator.state) - simulator.energy(before)
    torch.testing.assert_close(change, work, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", MECHANISMS)
def test_small_steps_converge(kind):
    """The default two substeps are within 1e-3 of forty after a quarter of a second."""

    def final(substeps):
        simulator = kind(16, dtype=torch.float64, seed=1, substeps=substeps)
        simulator.reset(everyone(simulator))
        for _ in range(15):
            simulator.step(torch.full((16, 1), 0.3, dtype=torch.float64))
        return simulator.state

    torch.testing.assert_close(final(2), final(40), rtol=0, atol=1e-3)


@pytest.mark.parametrize("task", ["cartpole_swingup", "double_pendulum"])
def test_hanging_and_standing_are_at_rest(task):
    env = AnalyticEnv(task, 2, dtype=torch.float64, stochastic_init=False)
    td = env.reset()
    hanging = env.simulator.state.clone()
    assert torch.equal(hanging[0], torch.tensor([*env.simulator.hanging, 0.0, 0.0], dtype=torch.float64))
    env.simulator.state = torch.stack([hanging[0], torch.zeros(4, dtype=torch.float64)])
    before = env.simulator.state
    transition = env.step(td.set("action", torch.zeros(2, 1, dtype=torch.float64)))
    torch.testing.assert_close(env.simulator.state, before)
    torch.testing.assert_close(
        transition["next", "reward"].flatten(), torch.tensor([-(math.pi**2), 0.0], dtype=torch.float64)
    )


@pytest.mark.parametrize("kind", MECHANISMS)
def test_starts_are_spread_around_hanging(kind):
    simulator = kind(4000, seed=3)
    simulator.reset(everyone(simulator))
    offset = simulator.state - torch.tensor([*simulator.hanging, 0.0, 0.0])
    reach = torch.tensor([math.pi / 2, math.pi / 2, 0.25, 0.25])
    assert (offset.abs() <= reach + 1e-6).all()
    assert (offset.abs().amax(0) > 0.99 * reach).all() and (offset.mean(0).abs() < 0.05 * reach).all()


def test_cart_pole_reward_and_observation():
    simulator = CartPoleSwingUp(1, dtype=torch.float64)
    state = torch.tensor([[0.5, 2 * math.pi + 0.3, -1.0, 2.0]], dtype=torch.float64)
    expected = -(0.3**2) - 0.1 * 4 - 0.05 * 0.25 - 0.1
    assert simulator.reward(state, None).item() == pytest.approx(expected)
    assert simulator.observe(state)[0].tolist() == pytest.approx([0.5, -1.0, math.sin(0.3), math.cos(0.3), 2.0])


def test_double_pendulum_reward_and_observation():
    simulator = DoublePendulum(1, dtype=torch.float64)
    state = torch.tensor([[0.3, 4 * math.pi - 0.2, -1.0, 2.0]], dtype=torch.float64)
    assert simulator.reward(state, None).item() == pytest.approx(-(0.3**2) - 0.2**2 - 0.1 * 5)
    expected = [math.cos(0.3), math.sin(0.3), math.cos(0.2), -math.sin(0.2), -1.0, 2.0]
    assert simulator.observe(state)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("turns", [-2, 0, 3])
def test_rewards_do_not_count_turns(turns):
    state = torch.tensor([[0.4, 1.3, 0.5, -0.2]], dtype=torch.float64)
    for kind in MECHANISMS:
        simulator = kind(1, dtype=torch.float64)
        turned = state.clone()
        turned[:, 1] += 2 * math.pi * turns
        torch.testing.assert_close(simulator.reward(turned, None), simulator.reward(state, None))


@pytest.mark.parametrize("task", AnalyticEnv.available_envs)
def test_the_last_action_has_a_gradient_only_if_the_reached_state_is_rewarded(task):
    for timing, expected in (("after", True), ("before", task == "synthetic")):  # which has a penalty on actions
        env = AnalyticEnv(task, 2, requires_grad=True, reward_timing=timing)
        action = torch.full(env.action_spec.shape, 0.3, requires_grad=True)
        reward = env.step(env.reset().set("action", action))["next", "reward"]
        assert reward.requires_grad == expected


def test_reward_before_is_the_reward_of_the_state_that_is_left():
    def rewards(timing):
        env = AnalyticEnv("cartpole_swingup", 3, seed=1, reward_timing=timing)
        return env.rollout(10, lambda td: td.set("action", td["observation"][:, 2:3]))["next", "reward"]

    assert torch.equal(rewards("before")[:, 1:], rewards("after")[:, :-1])


def test_actions_beyond_the_bounds_act_as_the_bound_without_gradient():
    env = AnalyticEnv("cartpole_swingup", 2, requires_grad=True)
    action = torch.tensor([[1.5], [1.0]], requires_grad=True)
    env.reset()
    env.simulator.state = torch.zeros(2, 4)
    transition = env.step(env.truncate_graph().set("action", action))
    assert torch.equal(*transition["next", "observation"])
    transition["next", "observation"].sum().backward()
    assert action.grad[0] == 0 and action.grad[1] != 0


def test_episodes_are_truncated_at_their_length():
    rollout = AnalyticEnv("double_pendulum", 2, episode_length=7).rollout(20, break_when_any_done=False)
    ends = rollout["next", "truncated"][0, :, 0].nonzero().flatten().tolist()
    assert ends == [6, 13] and not rollout["next", "terminated"].any()


def linear_maps(task):
    """Q and B of s' = Q s + B a."""
    states, actions = (torch.eye(size, dtype=task.dtype) for size in (task.observation_size, task.action_size))
    turn = task.advance(states, actions.new_zeros(len(states), len(actions))).mT
    return turn, task.advance(states.new_zeros(len(actions), len(states)), actions).mT


def test_the_synthetic_task_ends_without_action_and_lasts_under_control():
    env = AnalyticEnv("synthetic", 32)
    turn, push = linear_maps(env.simulator)
    gain = torch.linalg.pinv(push) @ turn
    idle = env.rollout(240, lambda td: td.set("action", torch.zeros(32, 152)), break_when_any_done=False)
    held = env.rollout(240, lambda td: td.set("action", (-td["observation"] @ gain.mT).clamp(-1, 1)))
    first = idle["next", "terminated"].float().argmax(1)
    assert idle["next", "terminated"].any(1).all() and 40 < first.float().mean() < 90
    assert held.shape == (32, 240) and not held["next", "terminated"].any()
    assert held["next", "reward"].mean() > 0.99


def test_the_synthetic_task_is_the_same_for_every_seed_and_dtype():
    one, other = Synthetic(2, seed=0), Synthetic(2, seed=9, dtype=torch.float64)
    (one_turn, one_push), (turn, push) = linear_maps(one), linear_maps(other)
    torch.testing.assert_close(one_push.double(), push)
    torch.testing.assert_close(one_turn.double(), turn)
    product = turn @ turn.mT / Synthetic.growth**2
    torch.testing.assert_close(product, torch.eye(53, dtype=torch.float64))


@pytest.mark.parametrize("task, least", [("cartpole_swingup", -600.0), ("double_pendulum", -950.0)])
def test_the_controller_solves_the_task(task, least):
    env = AnalyticEnv(task, 128, seed=0)
    reward = env.rollout(240, SwingUpController(task))["next", "reward"].squeeze(-1)
    upright = (reward[:, -30:] > -0.1).all(1)
    assert reward.sum(1).mean() > least
    assert upright.float().mean() > 0.8


def test_controllers_work_on_any_batch_and_dtype():
    controller = SwingUpController("double_pendulum")
    env = AnalyticEnv("double_pendulum", 3, dtype=torch.float64)
    rollout = env.rollout(5, controller)
    assert rollout["action"].dtype == torch.float64 and rollout["action"].abs().max() <= 1
    again = controller(rollout.select("observation"))
    torch.testing.assert_close(again["action"], rollout["action"])


def test_no_controller_for_other_tasks():
    with pytest.raises(ValueError, match="no controller for task 'synthetic'"):
        SwingUpController("synthetic")


def test_controllers_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    SwingUpController("cartpole_swingup")
    assert torch.equal(torch.get_rng_state(), state)


def test_without_early_termination_envs_go_on_to_their_full_length():
    lengths = []
    for early in (True, False):
        env = AnalyticEnv("synthetic", 32, episode_length=60, early_termination=early, seed=1)
        rollout = env.rollout(60, break_when_any_done=False)
        lengths.append(int(rollout["next", "terminated"].sum()))
        assert early or rollout["next", "truncated"][:, -1].all()
    assert lengths[0] > 0 and lengths[1] == 0


@pytest.mark.parametrize("task", ["cartpole_swingup", "double_pendulum"])
def test_starts_are_drawn_around_the_chosen_centre(task):
    for start, cosine in (("hanging", -1.0), ("upright", 1.0)):
        env = AnalyticEnv(task, 64, start=start, start_angle=0.1, start_rate=0.0)
        observation = env.reset()["observation"]
        first = observation[:, 3 if task == "cartpole_swingup" else 0]
        rates = observation[:, [1, 4]] if task == "cartpole_swingup" else observation[:, 4:]
        assert ((first - cosine).abs() < 0.01).all() and (rates == 0).all()
    with pytest.raises(ValueError, match='"hanging" or "upright"'):
        AnalyticEnv(task, 2, start="lying")
    with pytest.raises(ValueError, match="at least 0"):
        AnalyticEnv(task, 2, start_angle=-1.0)


def test_staggered_envs_end_their_first_episodes_at_different_steps():
    env = AnalyticEnv("double_pendulum", 64, episode_length=20, stagger=True, seed=2)
    rollout = env.rollout(60, break_when_any_done=False)
    done = rollout["next", "done"].squeeze(-1)
    first = done.int().argmax(1)
    assert first.unique().numel() > 12 and first.max() < 20
    # Later episodes have their full length.
    for row, start in zip(done, first):
        assert row.nonzero().flatten().diff().tolist() == [20] * (int(row.sum()) - 1) and row[start]
    again = AnalyticEnv("double_pendulum", 64, episode_length=20, stagger=True, seed=2)
    assert torch.equal(again.rollout(60, break_when_any_done=False)["next", "done"], rollout["next", "done"])
    assert AnalyticEnv("double_pendulum", 3, episode_length=20).rollout(30)["next", "done"][:, -1].all()
