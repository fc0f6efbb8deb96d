"""A simulator env on a GPU, where it reads no number at a step: the same course, and the same errors, later."""

from __future__ import annotations

import pytest
import torch

from tests.envs.simulators.hover import Hover, Root, SelfResetting
from tests.envs.simulators.playing import draw_actions, follow
from torchrl_pwm.envs.simulators import AnalyticEnv, SimulatorEnv, _watch, env


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Has the code take the CPU for a device that must not be waited for."""

    def begin():
        for module in (env, _watch):
            monkeypatch.setattr(module, "is_host", lambda device: False)

    return begin


ENVS = {
    "synthetic": lambda: AnalyticEnv("synthetic", 4, requires_grad=True, stagger=True, episode_length=30, seed=3),
    "cart-pole": lambda: AnalyticEnv("cartpole_swingup", 3, requires_grad=True, stagger=True, episode_length=7),
    "ends together": lambda: AnalyticEnv("cartpole_swingup", 3, requires_grad=True, episode_length=4),
    "hover": lambda: SimulatorEnv(Hover(4, seed=1), requires_grad=True),
    "self-resetting": lambda: SimulatorEnv(SelfResetting(4, seed=1), requires_grad=True),
    "non-finite": lambda: SimulatorEnv(Root(4, seed=1), requires_grad=True, non_finite="terminate"),
}


@pytest.mark.parametrize("name", ENVS)
def test_the_course_and_its_gradient_are_the_same(name, as_on_a_gpu):
    def course():
        made = ENVS[name]()
        actions = draw_actions(made, 40 if name == "synthetic" else 12).requires_grad_()
        steps, _ = follow(made, actions)
        steps["next", "reward"].sum().backward()
        return steps.detach(), actions.grad, made.non_finite_count

    steps, gradient, lost = course()
    as_on_a_gpu()
    again, gradient_again, lost_again = course()
    assert (steps == again).all() and torch.equal(gradient, gradient_again) and lost == lost_again
    assert steps["next", "done"].any() and bool(lost) == (name == "non-finite")


@pytest.mark.parametrize("reads", ["the next window", "32 steps", "the next reset", "the state"])
def test_what_was_not_finite_is_named_with_its_step_when_it_is_looked_at(reads, as_on_a_gpu):
    as_on_a_gpu()
    made = SimulatorEnv(Root(4, seed=1))
    negative = torch.full((4, 2), 0.25)
    negative[[1, 3], 0] = -0.25
    actions = [negative.abs(), negative, *[negative.abs()] * 3]
    _, td = follow(made, actions)  # nothing is said yet
    with pytest.raises(FloatingPointError, match=r"envs \[1, 3\] became non-finite at step \[2, 2\].*terminate"):
        if reads == "the next window":
            made.truncate_graph(td)
        elif reads == "32 steps":
            follow(made, [negative.abs()] * 32, td)
        elif reads == "the next reset":
            made.reset()
        else:
            made.state_dict()


def test_a_start_that_is_not_finite_is_named(as_on_a_gpu):
    class Lost(Hover):
        def reset(self, rows):
            return super().reset(rows) / 0

    as_on_a_gpu()
    made = SimulatorEnv(Lost(2))
    td = made.reset()
    with pytest.raises(FloatingPointError, match=r"start of envs \[0, 1\] is not finite"):
        made.truncate_graph(td)
