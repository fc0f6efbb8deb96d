"""The 11 DMControl tasks of MT30 that the control suite does not have.

Ten run on the suite's own models; the three-link reacher has a model file of its own. Each class states its reward
with tol(x; [a, b], m, v), dm_control's tolerance: 1 inside [a, b], and outside a fall-off that reaches v at the
distance m from the nearest bound (Gaussian with v = 0.1, or linear where "lin" is written). Unless a class says
otherwise, reset, observation and control step are those of the suite's task of that domain.

The tasks were introduced with TD-MPC2 (Hansen et al., ICLR 2024, arXiv 2310.16828). This module imports dm_control.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup, cheetah, common, hopper, pendulum, reacher, walker
from dm_control.utils.rewards import tolerance

__all__ = ["CUSTOM_TASKS", "build_custom"]

_INF = float("inf")


def _at_most(value: float, bound: float, *, margin: float, at_margin: float) -> float:
    """tol(value; (-inf, bound], margin, at_margin, lin)."""
    return tolerance(value, bounds=(-_INF, bound), margin=margin, value_at_margin=at_margin, sigmoid="linear")


def _at_least(value: float, bound: float, *, margin: float, at_margin: float) -> float:
    """tol(value; [bound, inf), margin, at_margin, lin)."""
    return tolerance(value, bounds=(bound, _INF), margin=margin, value_at_margin=at_margin, sigmoid="linear")


class BackwardsWalker(walker.PlanarWalker):
    """Walks or runs backwards at ``speed`` m/s.

    r = stand (5 move + 1) / 6 with stand = (3 tol(z; [1.2, inf), 0.6) + (1 + c) / 2) / 4 for the torso's height z and
    uprightness c, and move = tol(u; (-inf, -speed], speed / 2, 0.5, lin) for the horizontal speed u.
    """

    def __init__(self, speed: float, random: np.random.RandomState) -> None:
        super().__init__(move_speed=speed, random=random)

    def get_reward(self, physics: Any) -> float:
        speed = self._move_speed
        standing = tolerance(physics.torso_height(), bounds=(1.2, _INF), margin=0.6)
        stand = (3 * standing + (1 + physics.torso_upright()) / 2) / 4
        move = _at_most(physics.horizontal_velocity(), -speed, margin=speed / 2, at_margin=0.5)
        return stand * (5 * move + 1) / 6


class BackwardsCheetah(cheetah.Cheetah):
    """Runs backwards: r = tol(u; (-inf, -8], 8, 0, lin)."""

    def get_reward(self, physics: Any) -> float:
        return _at_most(physics.speed(), -8.0, margin=8.0, at_margin=0.0)


class OneFootCheetah(cheetah.Cheetah):
    """Runs with the foot ``lifted`` in the air.

    r = up (5 run + 1) / 6 with up = (3 tol(z_foot; [1.2, inf), 0.6) + 2 tol(z_torso; [1.2, inf), 0.6)) / 5 and
    run = tol(u; [6, inf), 6, 0, lin).
    """

    def __init__(self, lifted: str, random: np.random.RandomState) -> None:
        super().__init__(random=random)
        self._lifted = lifted

    def get_reward(self, physics: Any) -> float:
        height = physics.named.data.xpos
        foot = tolerance(height[self._lifted, "z"], bounds=(1.2, _INF), margin=0.6)
        torso = tolerance(height["torso", "z"], bounds=(1.2, _INF), margin=0.6)
        run = _at_least(physics.speed(), 6.0, margin=6.0, at_margin=0.0)
        return (3 * foot + 2 * torso) / 5 * (5 * run + 1) / 6


class JumpingCheetah(cheetah.Cheetah):
    """Jumps on the spot: mean over both feet of (5 tol((z_torso + z_foot) / 2; [1.2, inf), 0.6) + still) / 6.

    still = tol(u; [-0.5, 0.5], 0.5, 0, lin).
    """

    def get_reward(self, physics: Any) -> float:
        height = physics.named.data.xpos
        torso = height["torso", "z"]
        still = tolerance(physics.speed(), bounds=(-0.5, 0.5), margin=0.5, value_at_margin=0.0, sigmoid="linear")
        feet = [
            tolerance((torso + height[foot, "z"]) / 2, bounds=(1.2, _INF), margin=0.6) for foot in ("bfoot", "ffoot")
        ]
        return (5 * sum(feet) / 2 + still) / 6


class BackwardsHopper(hopper.Hopper):
    """Hops backwards: r = [0.6 <= h <= 2] tol(u; (-inf, -1], 0.5, 0.5, lin), h the torso's height over the foot."""

    def __init__(self, random: np.random.RandomState) -> None:
        super().__init__(hopping=True, random=random)

    def get_reward(self, physics: Any) -> float:
        standing = tolerance(physics.height(), bounds=(0.6, 2.0))
        return standing * _at_most(physics.speed(), -1.0, margin=0.5, at_margin=0.5)


class SpinningBall(ball_in_cup.BallInCup):
    """Swings the ball around the cup: fast and far from it, never in it.

    r = (1 - in) (tol(|d|; [0.5, inf), 0.25, 0.5, lin) + 2 tol(w; [6, inf), 3, 0.5, lin)) / 3 with d from the ball to
    the target in (x, z) and w the speed of the ball. Nine of ten episodes begin with the ball in the cup.
    """

    def initialize_episode(self, physics: Any) -> None:
        free_start = self.random.uniform() < 0.1
        legal = False
        while not legal:
            physics.named.data.qpos["ball_x"] = self.random.uniform(-0.2, 0.2)
            physics.named.data.qpos["ball_z"] = self.random.uniform(0.2, 0.5)
            physics.after_reset()
            legal = physics.data.ncon == 0 and (free_start or physics.in_target() == 1.0)
        self.after_step(physics)

    def get_reward(self, physics: Any) -> float:
        distance = float(np.linalg.norm(physics.ball_to_target()))
        speed = float(np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]]))
        far = _at_least(distance, 0.5, margin=0.25, at_margin=0.5)
        fast = _at_least(speed, 6.0, margin=3.0, at_margin=0.5)
        return (1.0 - physics.in_target()) * (far + 2 * fast) / 3


class SpinningPendulum(pendulum.SwingUp):
    """Spins either way: r = tol(|angular velocity|; [9, inf), 4.5, 0.5, lin)."""

    def get_reward(self, physics: Any) -> float:
        speed = float(np.abs(physics.angular_velocity()).item())
        return _at_least(speed, 9.0, margin=4.5, at_margin=0.5)


# The hard three-link target has the radius of the suite's hard two-link one.
CUSTOM_TASKS: dict[tuple[str, str], Callable[[np.random.RandomState], Any]] = {
    ("walker", "walk_backwards"): lambda random: BackwardsWalker(1.0, random),
    ("walker", "run_backwards"): lambda random: BackwardsWalker(8.0, random),
    ("cheetah", "run_backwards"): lambda random: BackwardsCheetah(random=random),
    ("cheetah", "run_front"): lambda random: OneFootCheetah("bfoot", random),
    ("cheetah", "run_back"): lambda random: OneFootCheetah("ffoot", random),
    ("cheetah", "jump"): lambda random: JumpingCheetah(random=random),
    ("hopper", "hop_backwards"): lambda random: BackwardsHopper(random),
    ("reacher", "three_easy"): lambda random: reacher.Reacher(target_size=0.05, random=random),
    ("reacher", "three_hard"): lambda random: reacher.Reacher(target_size=0.015, random=random),
    ("ball_in_cup", "spin"): lambda random: SpinningBall(random=random),
    ("pendulum", "spin"): lambda random: SpinningPendulum(random=random),
}

# Physics steps of each raw step; 1000 raw steps make an episode.
_SUBSTEPS = {"walker": 10, "cheetah": 1, "hopper": 4, "reacher": 1, "ball_in_cup": 10, "pendulum": 1}
_DOMAINS = {
    "walker": walker,
    "cheetah": cheetah,
    "hopper": hopper,
    "reacher": reacher,
    "ball_in_cup": ball_in_cup,
    "pendulum": pendulum,
}


def build_custom(domain: str, task: str, random: np.random.RandomState) -> control.Environment:
    """Build one of the custom tasks as a dm_control environment.

    Args:
        domain: DMControl domain.
        task: name of the custom task.
        random: generator of all draws, kept for the life of the task.

    Returns:
        The environment; its own time limit is 1000 raw steps.

    Raises:
        KeyError: if there is no such custom task.
    """
    make_task = CUSTOM_TASKS[domain, task]
    module = _DOMAINS[domain]
    if domain == "reacher":
        xml = resources.files(__package__).joinpath("reacher_three.xml").read_text(encoding="utf-8")
        physics = module.Physics.from_xml_string(xml, common.ASSETS)
    else:
        physics = module.Physics.from_xml_string(*module.get_model_and_assets())
    substeps = _SUBSTEPS[domain]
    time_limit = 1000 * substeps * physics.timestep()
    return control.Environment(physics, make_task(random), time_limit=time_limit, n_sub_steps=substeps)
