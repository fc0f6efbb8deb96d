"""The Newton tasks: what is observed and rewarded, where episodes start and end.

One episode of 64 envs, mean and standard deviation, of uniformly random actions and of no action:

| task | actions | return | way along x [m] | steps |
|---|---|---|---|---|
| ant | random | 1132 +- 64 | -0.01 +- 0.34 | 1000 |
| ant | zero | 1165 +- 25 | 0.01 +- 0.09 | 1000 |
| hopper | random | -82 +- 77 | -0.04 +- 0.38 | 34 |
| hopper | zero | -2 +- 126 | -0.03 +- 0.64 | 79 |
| humanoid | random | 46 +- 14 | -0.03 +- 0.16 | 30 |
| humanoid | zero | 58 +- 11 | -0.09 +- 0.15 | 35 |

The ant stands on the limits of its knees when nothing moves it, and one that runs earns more by its speed; the hopper
and the humanoid fall.

What SHAC made of the humanoid: one seed, 800 windows of 32 steps and 64 envs (10 minutes of one core) with
``conf/shac/newton/humanoid.yaml``, then 64 episodes, all of 1000 steps unless it falls. The same policy in finer steps:

| solver steps | return | way along x [m] | envs that stay up |
|---|---|---|---|
| 8, as in training | 9390 +- 1579 | 127 +- 22 | 62 of 64 |
| 16 | 8608 +- 1765 | 114 +- 24 | 61 of 64 |
| 32 | 7604 +- 1772 | 99 +- 24 | 46 of 64 |

So it learns, by what is mostly physics and in part the solver's step: ask for 16 where that matters. It does not move
as a person does. It leans forward by some 40 degrees and bounds at 9 m/s, both thighs nearly in step, the feet within
a hand's breadth, and crossed a quarter of the time: limbs pass through each other. Missing are contacts between limbs,
a limit to the speed and the power of motors, stiffness of idle joints, and other seeds.

In 8 solver steps its gradients agreed with finite differences of 4 steps to 1e-3 in 6 states on its feet, and to 2e-2
in 12 fallen; the norms of those of 32 random steps had a median of 30 and at most 150, or where fallen ones go on, of
400 and 1100. With 64 envs it does 12500 steps a second forward, and 4500 with gradients, on one core; in 16 solver
steps, which change neither starts nor gradients much, 9300 and 2900.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchrl_pwm.envs.simulators._analytic import AnalyticSimulator
from torchrl_pwm.envs.simulators.newton.humanoid import POSE, STANDING
from torchrl_pwm.envs.simulators.newton.models import ROBOTS
from torchrl_pwm.envs.simulators.newton.physics import NewtonPhysics
from torchrl_pwm.envs.simulators.newton.robot import Robot
from torchrl_pwm.envs.simulators.pendulums import CartPoleSwingUp, DoublePendulum, Mechanism

__all__ = ["TASKS", "Ant", "CartPole", "Hopper", "Humanoid", "Locomotion", "TwoRods", "Walker"]

_TIME_STEP = 1 / 60


class _Pendulum(Mechanism):
    """An analytic task with Newton's dynamics in place of its equations of motion."""

    robot: ClassVar[str]

    def __init__(self, num_envs: int, *, requires_grad: bool = False, substeps: int = 4, **options: Any) -> None:
        super().__init__(num_envs, dtype=torch.float32, substeps=substeps, **options)
        self.physics = NewtonPhysics(
            ROBOTS[self.robot],
            num_envs,
            device=self.device,
            requires_grad=requires_grad,
            substeps=substeps,
            dt=self.time_step,
            refreshes=substeps,
        )

    def advance(self, state: Tensor, actions: Tensor) -> Tensor:
        q, v = state.split(2, -1)
        return torch.cat(self.physics.step(q, v, actions), -1)


class CartPole(_Pendulum, CartPoleSwingUp):
    """:class:`~torchrl_pwm.envs.simulators.pendulums.CartPoleSwingUp` simulated by Newton."""

    robot = "cartpole"


class TwoRods(_Pendulum, DoublePendulum):
    """:class:`~torchrl_pwm.envs.simulators.pendulums.DoublePendulum` simulated by Newton."""

    robot = "double_pendulum"


class Locomotion(AnalyticSimulator):
    """A robot that is to run along x. State [N, Q + D + A]: joint positions q, joint velocities v, the last action.

    Args:
        num_envs (int): number N of parallel envs.

    Keyword Args:
        requires_grad (bool): whether steps are to be differentiable.
        substeps (int): solver steps in a control step of 1/60 s.
        ground_stiffness (float, optional): of contacts with the ground [N/m], instead of the robot's own.
        options: of :class:`AnalyticSimulator`.

    Raises:
        ValueError: for an option out of range.
    """

    episode_length = 1000
    robot: ClassVar[str]
    #: numbers Q, D and A.
    sizes: ClassVar[tuple[int, int, int]]
    #: entries of q that the ground, which is flat, is the same for.
    horizontal: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        num_envs: int,
        *,
        requires_grad: bool = False,
        substeps: int = 8,
        ground_stiffness: float | None = None,
        **options: Any,
    ) -> None:
        if substeps < 1:
            raise ValueError(f"substeps must be at least 1, found {substeps}")
        if ground_stiffness is not None and not 0 < ground_stiffness < math.inf:
            raise ValueError(f"ground_stiffness must be a positive number [N/m], found {ground_stiffness}")
        self.ground_stiffness = ground_stiffness
        self.state_size, self.action_size = sum(self.sizes), self.sizes[-1]
        super().__init__(num_envs, dtype=torch.float32, **options)
        self.substeps = substeps
        self.physics = NewtonPhysics(
            self.make_robot,
            num_envs,
            device=self.device,
            requires_grad=requires_grad,
            substeps=substeps,
            dt=_TIME_STEP,
        )
        travel = torch.zeros(self.sizes[0], device=self.device)
        travel[list(self.horizontal)] = 1
        self._travel = (travel,)  # in a tuple, as it is no part of the state

    def make_robot(self) -> Robot:
        """The robot, on the ground that was asked for."""
        robot = ROBOTS[self.robot]()
        if self.ground_stiffness is not None:
            robot.ground = replace(robot.ground, stiffness=self.ground_stiffness)
        return robot

    def split(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Joint positions [N, Q], joint velocities [N, D] and last action [N, A] of ``state``."""
        q, v, action = state.split(self.sizes, -1)
        return q, v, action

    def advance(self, state: Tensor, actions: Tensor) -> Tensor:
        q, v, _ = self.split(state)
        # Simulated near the origin, so that nothing is lost to rounding after a long way.
        place = q * self._travel[0]
        q, v = self.physics.step(q - place, v, actions)
        return torch.cat([q + place, v, actions], -1)

    def start(self) -> Tensor:
        return torch.cat([*self.pose(), torch.zeros_like(self.state[:, : self.action_size])], -1)

    def draw(self, size: int) -> Tensor:
        """Uniform draws in [-1, 1), [N, size], or zeros without ``stochastic_init``."""
        return self.uniform(size) if self.stochastic_init else torch.zeros_like(self.state[:, :size])

    @abstractmethod
    def pose(self) -> tuple[Tensor, Tensor]:
        """Positions [N, Q] and velocities [N, D] at a start."""


class Walker(Locomotion):
    """A torso that moves freely, on legs. q: position, quaternion (x, y, z, w), then J joints; v [6 + J].

    Observation [3 J + 13]: height h of the torso, quaternion, velocity, angular velocity, joint positions, 0.1 x joint
    velocities, up, head, last action; up is the cosine between the torso's and the world's vertical, head that between
    the torso's forward axis and x. Terminated where h < ``lowest``.

    Starts are drawn, all uniformly: the place within 0.1 m of the task's, a tilt within pi / 24 about an axis of any
    direction, joints within 0.2 rad of the task's pose, velocities within 0.25.
    """

    horizontal = (0, 1)
    lowest: ClassVar[float]  # m
    #: height [m] and joint positions [J] at the middle of the starts.
    standing: ClassVar[tuple[float, tuple[float, ...]]]

    def pose(self) -> tuple[Tensor, Tensor]:
        height, joints = self.standing
        place = self.numbers(0.0, 0.0, height) + 0.1 * self.draw(3)
        half_angle = math.pi / 48 * self.draw(1)
        axis = torch.nn.functional.normalize(self.normal(3), dim=-1)
        turn = torch.cat([half_angle.sin() * axis, half_angle.cos()], -1)
        angles = self.numbers(*joints) + 0.2 * self.draw(len(joints))
        return torch.cat([place, turn, angles], -1), 0.25 * self.draw(6 + len(joints))

    def observe(self, state: Tensor) -> Tensor:
        q, v, action = self.split(state)
        return torch.cat([q[:, 2:7], v[:, :6], q[:, 7:], 0.1 * v[:, 6:], self.attitude(q), action], -1)

    def terminated(self, state: Tensor) -> Tensor:
        return state[:, 2].detach() < self.lowest

    @staticmethod
    def attitude(q: Tensor) -> Tensor:
        """Cosines of the torso's vertical with the world's, and of its forward axis with x, [N, 2]."""
        x, y, z, _ = q[:, 3:7].unbind(-1)
        return torch.stack([1 - 2 * (x.square() + y.square()), 1 - 2 * (y.square() + z.square())], -1)


class Ant(Walker):
    """Four legs of two joints, hip and knee: q [15], v [14], observation [37].

    Reward: v + 0.1 up + head + (h - 0.27), where v is the velocity along x. Terminated where h < 0.27 m.
    """

    robot = "ant"
    sizes = (15, 14, 8)
    observation_size = 37
    lowest = 0.27
    standing = (0.72, 4 * (0.0, 1.0))

    def reward(self, state: Tensor, actions: Tensor) -> Tensor:
        q, v, _ = self.split(state)
        up, head = self.attitude(q).unbind(-1)
        return v[:, 0] + 0.1 * up + head + q[:, 2] - self.lowest


class Humanoid(Walker):
    """A torso with head, pelvis, legs and arms, 21 joints: q [28], v [27], observation [76].

    Reward: v + 0.1 up + head + H - 0.002 |a|^2, where v is the velocity along x and, for e = h - 0.84 clipped to
    [-1, 0.1], H = 10 e if that is positive and -200 e^2 if not. Terminated where h < 0.74 m, which stands at 1.26 m;
    a state that is not finite is left to ``non_finite`` of the env. It starts in the air, the soles 0.12 m above the
    ground, within 0.12 m.
    """

    robot = "humanoid"
    sizes = (28, 27, 21)
    observation_size = 76
    lowest = 0.74
    tolerance: ClassVar[float] = 0.1  # m
    # High enough that no draw puts a foot into the ground.
    standing = (STANDING + 0.12, POSE)

    def reward(self, state: Tensor, actions: Tensor) -> Tensor:
        q, v, _ = self.split(state)
        up, head = self.attitude(q).unbind(-1)
        excess = (q[:, 2] - self.lowest - self.tolerance).clamp(-1.0, 0.1)
        height = torch.where(excess > 0, 10 * excess, -200 * excess.square())
        return v[:, 0] + 0.1 * up + head + height - 0.002 * actions.square().sum(-1)


class Hopper(Locomotion):
    """A leg of three joints in a vertical plane. q [6]: x, height h, pitch, hip, knee, ankle; v [6].

    All are zero where it stands straight, 0.05 m above the ground. Observation [11]: q without x, and v. Reward:
    v + H + 1 - (pitch / (pi / 6))^2 - 0.1 |a|^2, where v is the velocity along x and, for e = h + 0.3 clipped to
    [-1, 0.3], H = e if that is positive and -200 e^2 if not. Terminated where h < -0.45 m.
    """

    robot = "hopper"
    sizes = (6, 6, 3)
    observation_size = 11
    horizontal = (0,)
    lowest: ClassVar[float] = -0.45  # m
    tolerance: ClassVar[float] = 0.15  # m

    def pose(self) -> tuple[Tensor, Tensor]:
        return 0.05 * self.draw(6), 0.05 * self.draw(6)

    def observe(self, state: Tensor) -> Tensor:
        return state[:, 1:12]

    def reward(self, state: Tensor, actions: Tensor) -> Tensor:
        q, v, _ = self.split(state)
        excess = (q[:, 1] - self.lowest - self.tolerance).clamp(-1.0, 0.3)
        height = torch.where(excess > 0, excess, -200 * excess.square())
        lean = q[:, 2] / (math.pi / 6)
        return v[:, 0] + height + 1 - lean.square() - 0.1 * actions.square().sum(-1)

    def terminated(self, state: Tensor) -> Tensor:
        return state[:, 1].detach() < self.lowest


TASKS: dict[str, type[AnalyticSimulator]] = {
    "cartpole": CartPole,
    "double_pendulum": TwoRods,
    "ant": Ant,
    "hopper": Hopper,
    "humanoid": Humanoid,
}
