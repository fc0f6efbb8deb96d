"""A simulator is the same with gradients and without them, and in a batch of any size."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.envs.simulators.hover import Hover, SelfResetting
from tests.envs.simulators.playing import draw_actions, follow
from torchrl_pwm.envs.simulators import AnalyticEnv, DFlexEnv, NewtonEnv, RewarpedEnv, SimulatorEnv, dflex, rewarped

STEPS = 40
KEYS = ("observation", ("next", "observation"), ("next", "reward"), ("next", "terminated"), ("next", "truncated"))


def analytic(task):
    return lambda num_envs, **options: AnalyticEnv(task, num_envs, episode_length=15, **options)


def newton(task):
    return lambda num_envs, **options: NewtonEnv(task, num_envs, episode_length=15, device="cpu", **options)


def by_hand(kind, task):
    return lambda num_envs, **options: kind(task, num_envs, episode_length=15, device="cpu", **options)


def own(kind):
    return lambda num_envs, seed=0, **options: SimulatorEnv(kind(num_envs, seed=seed), **options)


OURS = {f"analytic-{task}": analytic(task) for task in AnalyticEnv.available_envs}
OURS |= {f"newton-{task}": newton(task) for task in NewtonEnv.available_envs}
OURS_AND_OWN = {**OURS, "own": own(Hover), "own-self-resetting": own(SelfResetting)}
STAND_INS = {
    **{f"dflex-{task}": by_hand(DFlexEnv, task) for task in dflex.TASKS},
    **{f"rewarped-{task}": by_hand(RewarpedEnv, task) for task in rewarped.TASKS},
}


def course(env, actions, *, cut_every=10):
    """Transitions [T, N] in windows, each of which has its backward pass where there are gradients."""
    td, windows = env.reset(), []
    for window in actions.split(cut_every):
        td = env.truncate_graph(td)
        window = window.clone().requires_grad_(env.requires_grad and torch.is_grad_enabled())
        transitions, td = follow(env, window, td)
        if transitions["next", "observation"].requires_grad:
            transitions["next", "observation"].sum().backward()
        windows.append(transitions.detach())
    return torch.cat(windows)


def check_modes(make):
    env = make(3, requires_grad=True, seed=4)
    actions = draw_actions(env, STEPS)
    learning = course(env, actions)
    with torch.no_grad():
        switched_off = course(make(3, requires_grad=True, seed=4), actions)
    evaluated = course(make(3, seed=4), actions)
    assert learning["next", "done"].sum() >= 6
    for other in (switched_off, evaluated):
        for key in KEYS:
            assert torch.equal(learning[key], other[key]), key


@pytest.mark.parametrize("make", OURS_AND_OWN.values(), ids=OURS_AND_OWN)
def test_observations_rewards_and_ends_are_the_same_with_and_without_gradients(make):
    check_modes(make)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("make", STAND_INS.values(), ids=STAND_INS)
def test_they_are_the_same_in_simulators_installed_by_hand(make):
    check_modes(make)


@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_an_env_does_not_depend_on_how_many_there_are(make):
    many = make(7, stochastic_init=False)
    actions = draw_actions(many, STEPS)
    together, _ = follow(many, actions)
    alone, _ = follow(make(1, stochastic_init=False), actions[:, 2:3])
    for key in KEYS:
        torch.testing.assert_close(together[key][:, 2:3], alone[key], rtol=1e-4, atol=1e-4)


if importlib.util.find_spec("dflex") is not None:

    @pytest.mark.parametrize("task", dflex.TASKS)
    def test_the_real_dflex_observes_no_action_in_either_mode(task):
        def make(requires_grad):
            return DFlexEnv(task, 2, requires_grad=requires_grad, device="cpu", seed=1, shim=True, episode_length=15)

        actions = draw_actions(make(False), STEPS)
        learning, evaluated = course(make(True), actions), course(make(False), actions)
        for key in KEYS:
            assert torch.equal(learning[key], evaluated[key]), key
