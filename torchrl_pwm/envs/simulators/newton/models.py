"""The robots, built from capsules and joints: dimensions and masses are our own."""

from __future__ import annotations

import math
from collections.abc import Callable

import newton
import numpy as np
import warp as wp

from torchrl_pwm.envs.simulators.newton.humanoid import humanoid
from torchrl_pwm.envs.simulators.newton.robot import Robot, X, Y, Z, at, free_axis, hinge
from torchrl_pwm.envs.simulators.pendulums import CartPoleSwingUp, DoublePendulum

__all__ = ["ROBOTS"]


def cartpole() -> Robot:
    """A cart on rails along x, and a pole on it, with the parameters of the analytic task."""
    task = CartPoleSwingUp
    robot = Robot()
    builder = robot.builder
    cart = builder.add_link(mass=task.cart_mass, inertia=wp.mat33(*np.eye(3).flatten()))
    pole = _rod(builder, task.pole_mass, task.pole_length)
    rails = builder.add_joint_prismatic(-1, cart, axis=free_axis(X))
    pivot = builder.add_joint_revolute(cart, pole, axis=free_axis(Y))
    builder.add_articulation([rails, pivot])
    robot.motors = {0: task.max_force}
    return robot


def double_pendulum() -> Robot:
    """Two rods with a motor between them, with the parameters of the analytic task."""
    task = DoublePendulum
    robot = Robot()
    builder = robot.builder
    first, second = (_rod(builder, mass, length) for mass, length in zip(task.masses, task.lengths))
    pivot = builder.add_joint_revolute(-1, first, axis=free_axis(Y))
    middle = builder.add_joint_revolute(first, second, axis=free_axis(Y), parent_xform=at((0, 0, task.lengths[0])))
    builder.add_articulation([pivot, middle])
    robot.motors = {1: task.max_torque}
    return robot


def _rod(builder: newton.ModelBuilder, mass: float, length: float) -> int:
    """A uniform thin rod that stands on its origin."""
    across, along = mass * length**2 / 12, 1e-4 * mass * length**2
    inertia = wp.mat33(*np.diag([across, across, along]).flatten())
    return builder.add_link(com=wp.vec3(0.0, 0.0, length / 2), mass=mass, inertia=inertia)


def ant() -> Robot:
    """A ball with four legs of a thigh, turned by the hip about the vertical, and a shin, lowered by the knee.

    Degrees of freedom: place and turn of the torso, 3 each, then hip and knee of the legs at 45, 135, 225 and 315
    degrees from x.
    """
    density, radius = 500.0, 0.08
    robot = Robot()
    builder = robot.builder
    torso, joints = robot.floating()
    robot.ball(torso, (0.0, 0.0, 0.0), 0.25, density)
    for corner in range(4):
        heading = math.pi / 4 + corner * math.pi / 2
        x, y = math.cos(heading), math.sin(heading)
        thigh, shin = builder.add_link(), builder.add_link()
        robot.capsule(thigh, (0, 0, 0), (0.28 * x, 0.28 * y, 0), radius, density)
        robot.capsule(shin, (0, 0, 0), (0.56 * x, 0.56 * y, 0), radius, density)
        hip = hinge(robot, torso, thigh, (0.28 * x, 0.28 * y, 0), Z, (-0.6, 0.6))
        knee = hinge(robot, thigh, shin, (0.28 * x, 0.28 * y, 0), (-y, x, 0), (0.6, 1.7), limit=1500.0)
        joints += [hip, knee]
    builder.add_articulation(joints)
    robot.motors = {6 + i: 150.0 for i in range(8)}
    return robot


def hopper() -> Robot:
    """A torso, thigh, shin and foot that move in the plane y = 0.

    Degrees of freedom: x, height and pitch of the torso, then hip, knee and ankle; all zero when it stands straight.
    """
    density = 1000.0
    robot = Robot()
    builder = robot.builder
    torso, thigh, shin, foot = (builder.add_link() for _ in range(4))
    robot.capsule(torso, (0, 0, 0), (0, 0, 0.4), 0.05, density)
    robot.capsule(thigh, (0, 0, 0), (0, 0, -0.45), 0.05, density)
    robot.capsule(shin, (0, 0, 0), (0, 0, -0.5), 0.04, density)
    robot.capsule(foot, (-0.13, 0, 0), (0.26, 0, 0), 0.06, density)
    plane = builder.add_joint_d6(
        -1,
        torso,
        parent_xform=at((0, 0, HOPPER_HEIGHT)),
        linear_axes=[free_axis(X), free_axis(Z)],
        angular_axes=[free_axis(Y)],
    )
    hip = hinge(robot, torso, thigh, (0, 0, 0), Y, (-1.6, 0.5), armature=0.2)
    knee = hinge(robot, thigh, shin, (0, 0, -0.45), Y, (-0.2, 2.4), armature=0.2)
    ankle = hinge(robot, shin, foot, (0, 0, -0.5), Y, (-0.8, 0.8), armature=0.2)
    builder.add_articulation([plane, hip, knee, ankle])
    robot.motors = {3: 150.0, 4: 150.0, 5: 150.0}
    return robot


#: height of the hip of the hopper where its height coordinate is zero: 0.05 m above where it stands straight.
HOPPER_HEIGHT = 0.05 + 0.06 + 0.5 + 0.45


ROBOTS: dict[str, Callable[[], Robot]] = {
    "cartpole": cartpole,
    "double_pendulum": double_pendulum,
    "ant": ant,
    "hopper": hopper,
    "humanoid": humanoid,
}
