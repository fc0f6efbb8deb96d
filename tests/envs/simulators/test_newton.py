"""Newton's tasks as envs: specs, seeds, resets, and gradients that agree with finite differences."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import check_env_specs

from tests.envs.simulators.playing import draw_actions, play
from torchrl_pwm.envs.simulators import AnalyticEnv, NewtonEnv, SwingUpController
from torchrl_pwm.envs.simulators.pendulums import GRAVITY

newton = pytest.importorskip("newton")

SIZES = {"cartpole": (5, 1), "double_pendulum": (6, 1), "ant": (37, 8), "hopper": (11, 3), "humanoid": (76, 21)}
LENGTHS = {"cartpole": 240, "double_pendulum": 240, "ant": 1000, "hopper": 1000, "humanoid": 1000}
WALKERS = ["ant", "hopper", "humanoid"]
HEIGHT = {"ant": 2, "hopper": 1, "humanoid": 2}  # index in q
ANALYTIC = {"cartpole": "cartpole_swingup", "double_pendulum": "double_pendulum"}


def stand(env, state):
    """Puts every env into the same ``state`` [S]."""
    env.reset()
    env.simulator.state = state.detach().expand_as(env.simulator.state).clone()
    return env.truncate_graph()


def gradient_error(task, start, steps, scale, directions=3):
    """Largest error of a derivative along random unit directions of all actions.

    Each is compared with central differences at several step sizes, in other envs of the same batch, and measured at
    the best of them, relative to that derivative or to 5 % of the gradient's norm, whichever is larger.
    """
    sizes = torch.tensor([0.1, 0.03, 0.01, 0.003])
    env = NewtonEnv(task, 1 + 2 * directions * len(sizes), requires_grad=True, early_termination=False)
    base = draw_actions(env, steps, scale, seed=1, num_envs=1)
    along = torch.randn(directions, *base.shape, generator=torch.Generator().manual_seed(2))
    along = along / along.flatten(1).norm(dim=1)[:, None, None, None]
    moves = torch.stack([along * size for size in sizes])  # [E, K, T, 1, A]
    moves = torch.stack([moves, -moves]).flatten(0, 2).squeeze(2).transpose(0, 1)  # [T, 2 E K, A]
    actions = torch.cat([base, base + moves], 1).requires_grad_()
    rewards, _ = play(env, stand(env, start), actions)
    totals = rewards.double().sum(0).squeeze(-1)
    (gradient,) = torch.autograd.grad(totals[0], actions)
    assert not gradient[:, 1:].any()
    gradient = gradient[:, :1].double()
    up, down = totals[1:].detach().view(2, len(sizes), directions)
    differences = (up - down) / (2 * sizes[:, None])
    derivatives = (along.double() * gradient).flatten(1).sum(1)
    floor = 0.05 * gradient.norm()
    errors = (derivatives - differences).abs() / differences.abs().clamp(min=floor)
    return errors.min(0).values.max().item()


@pytest.mark.parametrize("task", list(ANALYTIC))
def test_pendulum_gradients_of_16_steps_agree_with_finite_differences(task):
    start = torch.tensor([0.3, 0.5, 0.4, -0.8])
    assert gradient_error(task, start, steps=16, scale=0.7) < 1e-3


def on_the_ground(task, steps=30):
    """A state [S] some steps of random actions after a start in the air: without ground, it would be far below."""
    env = NewtonEnv(task, 1, seed=3, early_termination=False)
    play(env, env.reset(), draw_actions(env, steps, 0.5))
    return env.simulator.state[0]


@pytest.mark.parametrize("task", WALKERS)
def test_walker_gradients_of_4_steps_on_the_ground_agree_with_finite_differences(task):
    assert gradient_error(task, on_the_ground(task), steps=4, scale=0.7) < 2e-2


def test_gradients_of_a_humanoid_that_lies_agree_with_finite_differences():
    lying = on_the_ground("humanoid", steps=150)
    assert lying[2] < 0.3
    assert gradient_error("humanoid", lying, steps=4, scale=0.7) < 2e-2


@pytest.mark.parametrize("task", SIZES)
def test_specs_hold(task):
    env = NewtonEnv(task, 2, requires_grad=True)
    check_env_specs(env)
    assert (env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]) == SIZES[task]
    assert env.episode_length == LENGTHS[task] and env.task == task
    assert task in NewtonEnv.available_envs


@pytest.mark.parametrize("task", SIZES)
def test_same_seed_gives_same_rewards_and_gradients_bit_for_bit(task):
    def run(seed):
        env = NewtonEnv(task, 3, requires_grad=True, seed=seed)
        actions = draw_actions(env, 6, 0.5).requires_grad_()
        rewards, _ = play(env, env.reset(), actions)
        (gradient,) = torch.autograd.grad(rewards.sum(), actions)
        return rewards.detach(), gradient

    one, again, other = run(5), run(5), run(6)
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("task", SIZES)
def test_reset_of_one_env_leaves_the_gradients_of_the_others_bit_identical(task):
    gradients = []
    for resets in (False, True):
        env = NewtonEnv(task, 3, requires_grad=True, seed=1)
        actions = draw_actions(env, 6, 0.5).requires_grad_()
        before, td = play(env, env.reset(), actions[:3])
        if resets:
            td = env.reset(td.set("_reset", torch.tensor([[False], [True], [False]])))
        after, _ = play(env, td, actions[3:])
        gradients.append(torch.autograd.grad(after.sum(), actions)[0])
        assert before.isfinite().all()
    whole, cut = gradients
    assert torch.equal(whole[:, [0, 2]], cut[:, [0, 2]])
    assert not cut[:3, 1].any() and whole[:3, 1].any() and cut[3:, 1].any()


def test_actor_learns_through_the_physics():
    env = NewtonEnv("ant", num_envs=2, requires_grad=True)
    actor = TensorDictModule(nn.Sequential(nn.Linear(37, 8), nn.Tanh()), ["observation"], ["action"])
    rollout = env.rollout(5, actor, break_when_any_done=False)
    rollout["next", "reward"].mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in actor.parameters())


@pytest.mark.parametrize("task", WALKERS)
def test_following_the_gradient_of_16_actions_raises_their_return(task):
    env = NewtonEnv(task, 2, requires_grad=True, seed=3, early_termination=False)
    start = on_the_ground(task)
    actions = torch.zeros(16, *env.action_spec.shape)
    totals = []
    for _ in range(5):
        actions = actions.detach().requires_grad_()
        total = play(env, stand(env, start), actions)[0].sum()
        (gradient,) = torch.autograd.grad(total, actions)
        totals.append(total.item())
        actions = (actions + 0.5 * gradient / gradient.norm()).clamp(-1, 1)
    assert totals == sorted(totals) and totals[-1] > totals[0] + 1


@pytest.mark.parametrize("task, bound", [("ant", 300), ("hopper", 3000), ("humanoid", 300)])
def test_gradients_of_32_steps_do_not_explode(task, bound):
    env = NewtonEnv(task, 8, requires_grad=True, seed=4)
    _, td = play(env, env.reset(), draw_actions(env, 30, seed=5))
    actions = draw_actions(env, 32).requires_grad_()
    rewards, _ = play(env, env.truncate_graph(td), actions)
    norms = torch.autograd.grad(rewards.sum(), actions)[0].transpose(0, 1).flatten(1).norm(dim=1)
    assert norms.median() > 1 and norms.max() < bound


def test_an_ant_stands_without_effort_and_random_actions_lead_it_nowhere():
    for effort in (0.0, 1.0):
        env = NewtonEnv("ant", 8, seed=2)
        td = env.reset()
        start = env.simulator.state[:, 0].clone()
        play(env, td, effort * draw_actions(env, 200))
        assert (env.state_dict()["steps"] == 200).all()  # nobody has fallen
        height, way = env.simulator.state[:, 2], env.simulator.state[:, 0] - start
        assert height.min() > 0.3 and height.max() < 0.6
        assert way.abs().max() < 1.0


@pytest.mark.parametrize("task", WALKERS)
def test_full_effort_that_turns_about_every_few_steps_keeps_energy_bounded(task):
    env = NewtonEnv(task, 8, seed=0)
    td = env.reset()
    for action in draw_actions(env, 60).sign():
        for _ in range(5):
            _, td = env.step_and_maybe_reset(td.set("action", action))
            q, v, _ = env.simulator.split(env.simulator.state)
            assert v[:, :2].abs().max() < 15 and v.abs().max() < 100
            assert q[:, HEIGHT[task]].max() < 2.5


def test_an_exploding_env_is_named_with_its_step():
    env = NewtonEnv("ant", 3, requires_grad=True)
    _, td = play(env, env.reset(), draw_actions(env, 2, 0.0))
    state = env.simulator.state.clone()
    state[1, 15:29] = 1e30
    env.simulator.state = state
    with pytest.raises(FloatingPointError, match=r"envs \[1\] became non-finite at step \[3\].*simulation is unstable"):
        play(env, td, draw_actions(env, 1, 0.0))


def test_gradients_of_an_env_built_without_are_refused():
    env = NewtonEnv("cartpole", 2)
    with pytest.raises(RuntimeError, match="built with requires_grad=False"):
        play(env, env.reset(), draw_actions(env, 1).requires_grad_())


@pytest.mark.parametrize("task", WALKERS)
def test_envs_that_fall_end_and_start_anew(task):
    env = NewtonEnv(task, 2, requires_grad=True, seed=0)
    env.reset()
    height = HEIGHT[task]
    state = env.simulator.state.clone()
    # Legs drawn up, so that none stands on the ground.
    if task == "ant":
        state[0, 7:15] = 0.0
    elif task == "hopper":
        state[0, 3:6] = torch.tensor([-1.5, 2.4, 0.0])
    else:
        for hip in (12, 18):
            state[0, hip : hip + 2] = torch.tensor([-1.9, 2.6])
    state[0, height] = env.simulator.lowest + 0.001
    state[0, env.simulator.sizes[0] + height] = -5.0
    env.simulator.state = state
    td = env.truncate_graph().set("action", torch.zeros(env.action_spec.shape))
    transition, td = env.step_and_maybe_reset(td)
    assert transition["next", "terminated"].flatten().tolist() == [True, False]
    assert not td["done"].any()
    assert env.simulator.state[0, height] > env.simulator.lowest + 0.2


@pytest.mark.parametrize("task", list(ANALYTIC))
def test_pendulums_move_as_the_analytic_ones(task):
    simulated, exact = NewtonEnv(task, 4, seed=7, substeps=32), AnalyticEnv(ANALYTIC[task], 4, seed=7)
    states = simulated.reset(), exact.reset()
    torch.testing.assert_close(states[0]["observation"], states[1]["observation"])
    actions = draw_actions(simulated, 20, 0.5)
    ends = [play(env, td, actions)[1]["observation"] for env, td in zip((simulated, exact), states)]
    torch.testing.assert_close(*ends, atol=0.05, rtol=0.05)


def test_controller_of_the_analytic_task_swings_the_simulated_cartpole_up():
    env = NewtonEnv("cartpole", 4, seed=2)
    rollout = env.rollout(240, SwingUpController("cartpole_swingup"))
    assert (rollout["next", "reward"][:, -20:] > -0.2).all()


@pytest.mark.parametrize("task", WALKERS)
def test_a_long_way_from_the_origin_everything_is_the_same(task):
    states = []
    for way in (0.0, 4096.0):
        env = NewtonEnv(task, 2, seed=1)
        env.reset()
        state = env.simulator.state.clone()
        state[:, 0] += way - state[:, 0].round()
        env.simulator.state = state
        play(env, env.truncate_graph(), draw_actions(env, 10, 0.5))
        states.append(env.simulator.state)
    assert torch.equal(states[0][:, 2:], states[1][:, 2:])


@pytest.mark.parametrize("task", SIZES)
def test_states_go_on_bit_for_bit_after_saving_and_loading(task):
    env, twin = NewtonEnv(task, 2, seed=1), NewtonEnv(task, 2, seed=9)
    actions = draw_actions(env, 12)
    _, td = play(env, env.reset(), actions[:6])
    play(twin, twin.reset(), actions[6:9])
    twin.load_state_dict(env.state_dict())
    rewards, _ = play(env, td, actions[6:])
    again, _ = play(twin, twin.truncate_graph(), actions[6:])
    assert torch.equal(rewards, again)


def test_envs_of_several_sizes_work_side_by_side():
    together = [NewtonEnv("hopper", n, seed=1, stochastic_init=False, requires_grad=True) for n in (1, 3)]
    ends = []
    for env in together:
        actions = draw_actions(env, 4, num_envs=1).expand(-1, env.num_envs, -1).clone().requires_grad_()
        rewards, _ = play(env, env.reset(), actions)
        ends.append((rewards[:, :1].detach(), torch.autograd.grad(rewards.sum(), actions)[0][:, :1]))
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("task", WALKERS)
def test_1000_random_steps_stay_finite(task):
    env = NewtonEnv(task, 2, seed=0)
    td = env.reset()
    for action in draw_actions(env, 1000):
        _, td = env.step_and_maybe_reset(td.set("action", action))
        assert env.simulator.state.abs().max() < 1e3


def test_a_softer_ground_yields_by_the_weight_over_the_stiffness():
    stiffnesses, heights = (20_000.0, 5_000.0), []
    for stiffness in stiffnesses:
        env = NewtonEnv("ant", 1, seed=0, stochastic_init=False, ground_stiffness=stiffness)
        td = env.reset()
        for _ in range(400):
            _, td = env.step_and_maybe_reset(td.set("action", torch.zeros(1, 8)))
        heights.append(td["observation"][0, 0].item())
    weight = sum(env.simulator.make_robot().builder.body_mass) * GRAVITY
    stiff, soft = (weight / 4 / stiffness for stiffness in stiffnesses)  # of one foot of four
    assert heights[0] - heights[1] == pytest.approx(soft - stiff, rel=0.05)
    assert NewtonEnv("ant", 1).simulator.make_robot().ground.stiffness == stiffnesses[0]


def test_unknown_tasks_and_options_are_refused():
    for stiffness in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"ground_stiffness must be a positive number \[N/m\], found {stiffness}"):
            NewtonEnv("hopper", 2, ground_stiffness=stiffness)
    with pytest.raises(ValueError, match="nothing of cartpole touches the ground: leave out ground_stiffness=1"):
        NewtonEnv("cartpole", 2, ground_stiffness=1)
    with pytest.raises(ValueError, match="unknown task 'cheetah'; expected one of 'cartpole'"):
        NewtonEnv("cheetah", 2)
    for task in ("cartpole", "ant"):
        with pytest.raises(ValueError, match="substeps must be at least 1, found 0"):
            NewtonEnv(task, 2, substeps=0)
        with pytest.raises(ValueError, match="num_envs"):
            NewtonEnv(task, 0)


def test_missing_newton_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "newton", None)
    with pytest.raises(ImportError, match=r"NewtonEnv needs newton.*pip install \"torchrl-pwm\[newton\]\""):
        NewtonEnv("cartpole", 2)


def test_rewarped_in_the_same_environment_is_refused(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: find("torch" if name == "rewarped" else name, *a))
    with pytest.raises(ImportError, match=r"Newton needs warp-lang 1[.]17 or later and rewarped"):
        NewtonEnv("cartpole", 2)
