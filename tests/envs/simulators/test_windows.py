"""Backward passes through windows: the first gives the gradient, another the same or an error, none keeps memory."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.envs.simulators.playing import draw_actions, play
from tests.envs.simulators.stand_ins import Tape
from torchrl_pwm.envs.simulators import AnalyticEnv, DFlexEnv, NewtonEnv

OURS = {
    "analytic": lambda: AnalyticEnv("cartpole_swingup", 3, requires_grad=True),
    **{f"newton-{task}": lambda task=task: NewtonEnv(task, 3, requires_grad=True, device="cpu") for task in ("ant",)},
}


def make_dflex(task="hopper", **options):
    return DFlexEnv(task, 3, requires_grad=True, device="cpu", **options)


def window(env, td=None, steps=4):
    """Actions of a window, the sum of its rewards, and where the env stands then."""
    td = env.truncate_graph(env.reset() if td is None else td)
    actions = draw_actions(env, steps, 0.3).requires_grad_()
    rewards, td = play(env, td, actions)
    return actions, rewards.sum(), td


@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_a_graph_that_is_retained_gives_the_same_gradient_again(make):
    actions, reward, _ = window(make())
    first, again = (torch.autograd.grad(reward, actions, retain_graph=True)[0] for _ in range(2))
    assert first.norm() > 0 and torch.equal(first, again)


@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_a_graph_that_is_not_retained_has_one_backward_pass(make):
    _, reward, _ = window(make())
    reward.backward()
    with pytest.raises(RuntimeError, match="second time"):
        reward.backward()


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_second_backward_pass_through_a_window_of_dflex_raises(installed, retain_graph):
    """Its tapes are empty then: the gradient would be zero."""
    actions, reward, _ = window(make_dflex())
    reward.backward(retain_graph=retain_graph)
    assert actions.grad.abs().sum(-1).all()
    with pytest.raises(
        RuntimeError, match=r"second backward pass.*call backward\(\) once" if retain_graph else "second"
    ):
        reward.backward()


def test_a_loss_on_a_part_of_a_window_of_dflex_and_then_one_on_all_of_it_raise(installed):
    """The gradient of the second would lack what goes through the steps of the first."""
    env = make_dflex()
    actions = draw_actions(env, 4, 0.3).requires_grad_()
    rewards, _ = play(env, env.truncate_graph(env.reset()), actions)
    rewards[:2].sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        rewards.sum().backward()


def test_windows_of_dflex_without_a_backward_pass_are_freed(installed):
    """Also steps that the loss does not reach, here the last, as a reward is that of the state which a step leaves."""
    env, td = make_dflex(), None
    gc.collect()
    before = len(Tape.alive)
    for _ in range(6):
        _, reward, td = window(env, td)
        reward.backward()
    for _ in range(6):
        _, reward, td = window(env, td)
    del reward, td
    env.truncate_graph(env.reset())
    gc.collect()
    assert len(Tape.alive) - before <= 8  # two windows of four steps


@pytest.mark.parametrize("cuts", [1, 2])
def test_a_window_of_dflex_may_be_cut_before_its_backward_pass(installed, cuts):
    env = make_dflex()
    actions, reward, td = window(env)
    for _ in range(cuts):
        td = env.truncate_graph(td)
    env.reset()
    del env
    reward.backward()
    assert actions.grad.norm() > 0


def test_a_window_of_dflex_that_was_freed_says_so(installed):
    env = make_dflex()
    _, reward, td = window(env)
    for _ in range(2):
        _, _, td = window(env, td)
    env.truncate_graph(td)
    with pytest.raises(RuntimeError, match=r"window of DFlex that was freed.*call backward\(\) before"):
        reward.backward()


def test_dflex_keeps_its_own_integrator(installed):
    """What the user built is changed for the time of a call alone."""
    env = make_dflex()
    inner = env.simulator.env
    before = inner.integrator
    window(env)
    assert inner.integrator is before


@pytest.mark.parametrize("task, penalty", [("ant", 0.0), ("hopper", -0.1), ("anymal", -0.005)])
def test_the_last_action_of_a_window_of_dflex_has_the_gradient_of_its_penalty(installed, task, penalty):
    actions, reward, _ = window(make_dflex(task))
    reward.backward()
    torch.testing.assert_close(actions.grad[-1], 2 * penalty * actions[-1].detach())
    assert actions.grad[0].abs().sum() > 0
